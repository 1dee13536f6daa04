"""What the text of every kernel is made of, whether C or CUDA stands around it.

Two functions make a kernel. `prepare` counts a parameter's step and computes the numbers that hold for all of its
coordinates (bias corrections and the like), in double precision. `advance` is the rule itself, one coordinate after
the other, in the precision of the tensors.
"""

import re
from collections import Counter
from collections.abc import Sequence

import torch

from .expressions import Expressions
from .recorder import Untraceable, Value
from .trace import Program

# 16-bit floats are stored as such and computed with as float.
STORED = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Kernel:
    """A pass whose text is to be written.

    Args:
        program: what the pass computes.
        stored: how the parameter, its gradient and then each state tensor is kept in memory.

    Raises:
        Untraceable: two things have one name, which one of them would hide.
    """

    wraps = False  # see `Expressions`
    own: tuple[str, ...] = ()  # the variables around the rule

    def __init__(self, program: Program, stored: Sequence[torch.dtype]) -> None:
        self.program = program
        given = (*program.names, *program.scalars, *program.reals, *program.wholes, *program.sums)
        for name, count in Counter((*self.own, "grad", "step", "index", "coordinate", *given)).items():
            if count > 1 or re.fullmatch(r"x\d+", name):
                raise Untraceable(f"{name} has another meaning in a kernel's text: give it another name")
        param, grad, *state = (STORED[dtype] for dtype in stored)
        self.stored = {"grad": grad, **dict(zip(program.names, (param, *state), strict=True))}
        self.gates = self._gates()
        self.expressions = Expressions(program.operations, self.wraps)
        self.used = {a.name for op in program.operations for a in op.args if isinstance(a, Value)}
        self.counts = "coordinate" in self.used
        # What is to be stored of each coordinate, by tensor.
        self.stores = {
            name: value
            for name, value in program.stores
            if name in self.stored and not (isinstance(value, Value) and value.name == name)
        }
        ones = {operation.result for operation in program.operations if operation.name == "ones_like"}
        # The terms whose sums are to be made, by their places; that of ones is the number of coordinates.
        self.terms = {i: value for i, (_, value) in enumerate(program.terms) if value not in ones}

    def structs(self, fields: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[str]:
        """A row of the table and the numbers of a parameter, once `advance` has said which it needs."""
        row = [f"{kind} *{name};" for name, kind in self.stored.items() if name != "grad"]
        row += [f"float *{name};" for name in self.program.scalars]
        own = [f"{kind} {name};" for name, (kind, _) in self.expressions.handed_over.items()]
        own = [*own, *numbers] or ["char none;"]
        return [block("typedef struct {", [*row, *fields], "} row;"), block("typedef struct {", own, "} numbers;")]

    def prepare(self, head: str) -> str:
        lines = [f"const double step = *count{' += 1' if self.program.counts else ''};"]
        lines += [f"const double {name} = sums[{i}];" for i, name in enumerate(self.program.sums)]
        lines += [f"const double {name} = *at->{name};" for name in self.program.scalars]
        lines += [f"const double {name} = real[{i}];" for i, name in enumerate(self.program.reals)]
        lines += [f"const int64_t {name} = whole[{i}];" for i, name in enumerate(self.program.wholes)]
        lines += self.expressions.statements(elementwise=False)
        for name, value in self.program.stores:
            if name in self.program.scalars:
                lines.append(f"*at->{name} = {self.expressions.operand(value, torch.float32)};")
        lines.append("numbers given = {0};")
        lines += [f"given.{name} = ({kind}){text};" for name, (kind, text) in self.expressions.handed_over.items()]
        return block(head, [*lines, "return given;"], "}")

    def computed(self, name: str) -> str:
        """In which type a tensor's coordinates are computed with."""
        return "double" if self.stored[name] == "double" else "float"

    def results(self) -> dict[str, str]:
        """What is to be stored, as it is written."""
        dtypes = {"float": torch.float32, "double": torch.float64}
        return {
            name: self.expressions.operand(value, dtypes[self.computed(name)], in_loop=True)
            for name, value in self.stores.items()
        }

    def totals(self) -> dict[int, str]:
        """What is to be added up of each coordinate, in double precision, as it is written."""
        return {i: self.expressions.operand(value, torch.float64, in_loop=True) for i, value in self.terms.items()}

    def _gates(self) -> dict[str, str]:
        """The tensors that a step leaves as they are unless a number says otherwise, each with that number's name.

        (Lookahead's slow weights: but for every k-th step, they need neither be read nor written.)
        """
        made = {operation.result: operation for operation in self.program.operations}
        gates = {}
        for name, value in self.program.stores:
            operation = made.get(value)
            if name in self.stored and operation is not None and operation.name == "where":
                condition, _, other = operation.args
                if isinstance(other, Value) and other.name == name and not condition.elementwise:
                    gates[name] = condition.name
        return gates if len(set(gates.values())) <= 2 else {}


def block(head: str, lines: Sequence[str], tail: str) -> str:
    return "\n".join([head, *(f"    {line}" for line in lines), tail])
