"""A `Program` written as CUDA C++: three kernels that go over a table of tensors on a device.

A pass is `prepare_all`, `advance_all` (once per `GRADS` rows) and, where it has terms, `sum_all`, in this order
on one stream. Their arguments are the same for every program:

    prepare_all(const row *table, int64_t rows, float *counts, inputs in, const double *sums, numbers *prepared,
                const float *grad_scale, const float *found_inf)
    advance_all(const row *table, const numbers *prepared, const chunk *chunks, int64_t first, char *scratch,
                double *parts, grads in)
    sum_all(const row *table, const double *parts, double *sums)

- `row` has 8 bytes for each of: the addresses of `Program.names` (the parameter, then its state) and of
  `Program.scalars` (float32); the number of elements; the index; the address of the layout (see `layout`); the
  number of its first chunk, counted over all rows. One table serves all passes of a step. In the place of the
  address of `WHOLE` stands where it begins, in bytes behind `scratch`, a multiple of 16.
- `counts` has a row's count of steps (float32), `sums` its `Program.width` sums, `prepared` `PREPARED` bytes for
  it.
- `inputs` are the numbers of a step, by value. For each of `Program.reals` (at least one) they have 24 bytes: a
  double, the address of a float, the address of a double; what is at an address that is not 0 is taken for the
  value. Behind these, for each of `Program.wholes` (at least one), an int64.
- `chunk` is two int32: a row, and which `CHUNK` elements of it. A block of `advance_all`, of `THREADS` threads,
  steps one; a row without elements has none. `grads` are the addresses, by value, of the gradients of the rows
  from `first` on, `GRADS` of them: a launch is given the chunks of these rows, by the address of the first one.
- `parts` has room for `len(Program.terms)` doubles per chunk, counted over all rows. `sum_all`, a block of
  `THREADS` threads per row, adds those of a row, in an order that is always the same, to be its sums from number
  `len(Program.sums)` on.
- A thread of `prepare_all` prepares one row, in blocks of at most `THREADS`.
- `grad_scale` and `found_inf` are a GradScaler's, float32, or 0. Gradients are divided by the first and written
  back, as by torch's fused steps; where the second is not 0, nothing moves and no step is counted. Both are 0 in
  a step of several passes, or where a stage's `before` looks at the gradients: there the scaler acts in front of
  the step.
"""

from collections.abc import Sequence

import torch

from ..eager import WHOLE
from . import cuda_frame as frame
from .kernel import Kernel, block
from .recorder import Untraceable, Value
from .trace import Program

THREADS = 256  # of a block
CHUNK = 1 << 13  # elements to a block
GRADS = 448  # gradients' addresses to a launch: with all else they are less than the 4 KB that any driver takes
PREPARED = 512  # bytes of a row's numbers, at most

_BYTES = {"float": 4, "double": 8, "bfloat16": 2, "float16": 2}


def cuda_source(program: Program, stored: Sequence[torch.dtype]) -> str:
    """The CUDA text of a pass.

    Args:
        program: what the pass computes.
        stored: how the parameter, its gradient and then each state tensor is kept in memory.

    Raises:
        Untraceable: the program has an operation for which there is no text here, or too many numbers.
    """
    return _Kernel(program, stored).text()


class _Kernel(Kernel):
    own = ("at", "grad_at", "given", "i", "total", "k")

    def __init__(self, program: Program, stored: Sequence[torch.dtype]) -> None:
        super().__init__(program, stored)
        self._read = self._needed()
        work = sum(operation.result.elementwise for operation in program.operations)
        # (Long rules take long to compile several times over, and do not wait for memory.)
        widest = max((_BYTES[self.stored[name]] for name in (*self._read, *self.stores)), default=16)
        self._pack = 1 if work > 64 else 16 // widest

    def text(self) -> str:
        program, kinds = self.program, set(self.stored.values())
        given = dict(reals=max(1, len(program.reals)), wholes=max(1, len(program.wholes)))
        sizes = dict(width=program.width, sums=len(program.sums), terms=len(program.terms))
        advance = self._advance()  # says which numbers it needs from `prepare`
        if (
            8 * len(self.expressions.handed_over) + 16 > PREPARED
            or 24 * given["reals"] + 8 * given["wholes"] > 4000
        ):
            raise Untraceable("a device is not given as many numbers")
        parts = [
            frame.PRELUDE.format(threads=THREADS, chunk=CHUNK, **given, **sizes),
            frame.BFLOAT16 if "bfloat16" in kinds else "",
            frame.FLOAT16 if "float16" in kinds else "",
            frame.BITS if any(operation.name == "view" for operation in program.operations) else "",
            f"struct grads {{ {self.stored['grad']} *at[{GRADS}]; }};",
            *self.structs(
                ["int64_t size, index;", "const int64_t *layout;", "int64_t chunk;"],
                ["int skipped, scaled;", "float per_scale;"],
            ),
            self.prepare(
                "__device__ numbers prepare(const row *at, float *count, int64_t index, const number *real,\n"
                "        const int64_t *whole, const double *sums) {"
            ),
            frame.PREPARE,
            frame.LOCATE if self.counts else "",
            advance,
            frame.ADD_UP if program.terms else "",
            self._advance_all(),
            frame.SUM if program.terms else "",
        ]
        return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

    def _advance(self) -> str:
        """The rule for N coordinates at a time, 16 bytes of the widest tensor or one."""
        loads, values, stores, writes = [], [], [], []
        for name, kind in self.stored.items():
            load = f"{name}_pack = read((const pack<{kind}, N> *)({self._at(name)} + i));"
            if name not in self._read:
                loads += [f"pack<{kind}, N> {name}_pack;"] if name in self.stores else []
                continue
            if name in self.gates and name not in self._needed(self.gates[name]):
                loads += [f"pack<{kind}, N> {name}_pack{{}};", f"if (given.{self.gates[name]}) {load}"]
            else:
                loads.append(f"pack<{kind}, N> {load}")
            values.append(f"const {self.computed(name)} {name} = load({name}_pack.at[k]);")
        if "grad" in self._read:
            scaled = f"load(grad_pack.at[k]) * ({self.computed('grad')})given.per_scale"
            lines = [
                f"for (int k = 0; k < N; ++k) store(grad_pack.at[k], {scaled});",
                f"write((pack<{self.stored['grad']}, N> *)(grad_at + i), grad_pack);",
            ]
            loads += block("if (given.scaled) {", lines, "}").splitlines()
        if self.counts:
            values.append("const int64_t coordinate = locate(at.layout, i + k);")
        body = self.expressions.statements(elementwise=True)
        for name, result in self.results().items():
            stores.append(f"store({name}_pack.at[k], {result});")
            write = f"write((pack<{self.stored[name]}, N> *)(at.{name} + i), {name}_pack);"
            writes.append(f"if (given.{self.gates[name]}) {write}" if name in self.gates else write)
        stores += [f"total[{i}] += {value};" for i, value in self.totals().items()]
        numbers = [
            f"const {kind} {name} = given.{name};" for name, (kind, _) in self.expressions.handed_over.items()
        ]
        loop = block("for (int k = 0; k < N; ++k) {", [*values, *body, *stores], "}")
        head = (
            "template <int N> __device__ __forceinline__ void advance(const row &at,\n"
            f"        {self.stored['grad']} *grad_at, const numbers &given, int64_t i"
            f"{', double *total' if self.terms else ''}) {{"
        )
        return block(head, [*loads, *numbers, "#pragma unroll", *loop.splitlines(), *writes], "}")

    def _advance_all(self) -> str:
        arguments = f"at, grad_at, given, i{', total' if self.terms else ''}"
        pointers = " | ".join(f"(uint64_t){self._at(name)}" for name in dict.fromkeys([*self._read, *self.stores]))
        body = frame.SINGLES if self._pack == 1 else frame.PACKS
        lines = body.format(pack=self._pack, pointers=pointers, arguments=arguments).strip().splitlines()
        if WHOLE in self.stored:
            kind = self.stored[WHOLE]
            lines.insert(0, f"at.{WHOLE} = ({kind} *)((int64_t)scratch + (int64_t)at.{WHOLE});")
        if self.program.terms:
            ones = [i for i in range(len(self.program.terms)) if i not in self.terms]
            lines.insert(0, "double total[TERMS] = {0};")
            lines += [f"if (threadIdx.x == 0) total[{i}] = end - begin;" for i in ones]
            lines += frame.PARTS.strip().splitlines()
        return block(frame.ADVANCE_ALL.format(grad=self.stored["grad"]), lines, "}")

    def _at(self, name: str) -> str:
        return "grad_at" if name == "grad" else f"at.{name}"

    def _needed(self, shut: str = "") -> list[str]:
        """The tensors on which what is stored or summed depends, in a step in which the gate `shut` is not open."""
        made = {operation.result: operation for operation in self.program.operations}
        waiting = [value for name, value in self.stores.items() if self.gates.get(name) != shut]
        waiting += self.terms.values()
        found = set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, Value) and value.name not in found:
                found.add(value.name)
                name, args = (made[value].name, made[value].args) if value in made else ("", ())
                waiting += args[2:] if name == "where" and getattr(args[0], "name", "") == shut else args
        return [name for name in self.stored if name in found]
