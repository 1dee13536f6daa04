"""The operations of a `Program` in expressions that C and CUDA have in common, whatever stands around them."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .recorder import Operation, Untraceable, Value

# How an operation is written, once its operands are of one type; {f} is the suffix of that type's C functions.
_INFIX = dict(add="+", sub="-", mul="*", div="/", lt="<", gt=">", le="<=", ge=">=", eq="==", ne="!=")
_INFIX |= dict(bitwise_and="&", bitwise_or="|", bitwise_xor="^", logical_and="&&", logical_or="||")
_INFIX |= {"__and__": "&", "__or__": "|", "__xor__": "^", "__rshift__": ">>", "__lshift__": "<<"}
_INFIX |= dict(bitwise_right_shift=">>", bitwise_left_shift="<<")
_WRITTEN = {name: f"{{0}} {symbol} {{1}}" for name, symbol in _INFIX.items()}
_WRITTEN |= {name: f"{name}{{f}}({{0}})" for name in ("sqrt", "exp", "log", "sin", "cos", "tanh", "floor")}
_WRITTEN |= dict.fromkeys(("_to_copy", "clone", "detach", "alias", "full_like", "full", "scalar_tensor"), "{0}")
_WRITTEN |= {
    "rsub": "{1} - {0}",
    "neg": "-{0}",
    "abs": "fabs{f}({0})",
    "rsqrt": "1 / sqrt{f}({0})",
    "reciprocal": "1 / {0}",
    "sign": "({0} > 0) - ({0} < 0)",
    "pow": "pow{f}({0}, {1})",
    "remainder": "{0} - {1} * floor{f}({0} / {1})",
    # As in torch, what is not a number stays so.
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "where": "{0} ? {1} : {2}",
    "logical_not": "!{0}",
    "bitwise_not": "!{0}",  # of booleans; of whole numbers see below
    "zeros_like": "0",
    "ones_like": "1",
}
_POWERS = {2: "{0} * {0}", 0.5: "sqrt{f}({0})", 1: "{0}", 3: "{0} * {0} * {0}", -1: "1 / {0}"}
# What may overflow: whole numbers then wrap in torch, and are of no value in C.
_OVERFLOWING = ("add", "sub", "mul", "rsub", "neg", "__lshift__", "bitwise_left_shift")
_PREDICATES = ("lt", "gt", "le", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not")

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "int",
}

_SAME_BITS = {torch.float32, torch.int32}, {torch.float64, torch.int64}


class Expressions:
    """Writes operations: those on numbers, done once per parameter, and those in the loop over its coordinates.

    Args:
        operations: of a program, in their order.
        wraps: whether the compiler is told that whole numbers that overflow wrap; else they do without their sign.
    """

    def __init__(self, operations: Sequence[Operation], wraps: bool) -> None:
        self._operations, self._wraps = operations, wraps
        # The numbers that the loop is given: their types there, and how they are written outside of it.
        self.handed_over: dict[str, tuple[str, str]] = {}

    def statements(self, elementwise: bool) -> list[str]:
        """Those in the loop, or those outside of it, each under its equation; Untraceable where there is no C."""
        lines, equation = [], ""
        for operation in self._operations:
            if operation.result.elementwise is elementwise:
                if operation.equation not in ("", equation):
                    equation = operation.equation
                    lines.append(f"// {equation}")
                lines += self._statement(operation, elementwise)
        return lines

    def _statement(self, operation: Operation, in_loop: bool) -> list[str]:
        name, args, result = operation.name, operation.args, operation.result
        dtype = _common(args) if name in _PREDICATES else result.dtype
        if result.dtype not in _TYPES:
            raise Untraceable(f"there is no C here for {result.dtype}, which torch's operation {name} gives")
        kind = _TYPES[result.dtype]
        overflows = name in _OVERFLOWING or (name == "pow" and args[1] in _POWERS)
        wrapped = overflows and not self._wraps and dtype in (torch.int32, torch.int64)

        def written(template: str, *operands: Any) -> str:
            texts = [
                f"(u{kind})" * wrapped
                + self.operand(a, torch.bool if name == "where" and i == 0 else dtype, in_loop)
                for i, a in enumerate(operands)
            ]
            return template.format(*texts, f="f" if dtype == torch.float32 else "")

        if name == "clamp":
            x, low, high = (*args, None)[:3]
            raised = Value(f"{result.name}_raised", result.dtype, result.elementwise)
            lift = written("{0} < {1} ? {1} : {0}", x, low) if low is not None else self.operand(x, dtype, in_loop)
            lower = written("{0} > {1} ? {1} : {0}", raised, high) if high is not None else raised.name
            return [f"const {kind} {raised.name} = {lift};", f"const {kind} {result.name} = {lower};"]
        if name == "view" and len(args) == 1:
            given = args[0].dtype
            if given != result.dtype and {given, result.dtype} not in _SAME_BITS:
                raise Untraceable(f"there is no C here for the bits of {given} as {result.dtype}")
            bits = self.operand(args[0], given, in_loop)
            return [f"const {kind} {result.name} = {bits if given == result.dtype else f'as_{kind}({bits})'};"]
        if name == "bitwise_not" and result.dtype != torch.bool:
            return [f"const {kind} {result.name} = {written('~{0}', args[0])};"]
        if name == "pow" and not isinstance(args[1], Value) and args[1] in _POWERS:
            return [f"const {kind} {result.name} = {written(_POWERS[args[1]], args[0])};"]
        if name == "div" and in_loop and isinstance(args[1], Value) and not args[1].elementwise:
            # A division takes several times as long as a product with the reciprocal, taken once.
            per = f"per_{args[1].name}_{kind}"
            self.handed_over[per] = kind, f"(1.0 / {args[1].name})"
            return [f"const {kind} {result.name} = {self.operand(args[0], dtype, in_loop)} * {per};"]
        if name in ("add", "sub") and len(args) == 3:  # with torch's factor alpha
            return [f"const {kind} {result.name} = {written(f'{{0}} {_INFIX[name]} {{2}} * {{1}}', *args)};"]
        if name not in _WRITTEN:
            raise Untraceable(f"there is no C for torch's operation {name}")
        return [f"const {kind} {result.name} = {written(_WRITTEN[name], *args)};"]

    def operand(self, value: Any, dtype: torch.dtype, in_loop: bool = False) -> str:
        """A value, or a Python number, as it is written where `dtype` is wanted."""
        kind = _TYPES[dtype]
        if not isinstance(value, Value):
            return _literal(value, dtype)
        if value.elementwise or not in_loop:
            return value.name if _TYPES[value.dtype] == kind else f"({kind}){value.name}"
        # A number, cast once and not at every coordinate; under its own name unless it is needed in two types.
        name = value.name if self.handed_over.get(value.name, (kind,))[0] == kind else f"{value.name}_{kind}"
        self.handed_over[name] = kind, value.name
        return name


def _literal(value: Any, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point:
        text = str(int(value))
    elif math.isfinite(value):
        text = repr(float(value)) + ("f" if dtype == torch.float32 else "")
    else:
        text = "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    return f"({text})" if text.startswith("-") else text


def _common(args: Sequence[Any]) -> torch.dtype:
    """The type in which operands are compared: numbers take a tensor's, as far as it has room for them."""
    values = [a for a in args if isinstance(a, Value)]
    values = [v for v in values if v.elementwise] or values
    kinds = [torch.bool, torch.int32, torch.int64, torch.float32, torch.float64]
    common = max((v.dtype for v in values), key=kinds.index)
    fractions = any(a.dtype.is_floating_point if isinstance(a, Value) else isinstance(a, float) for a in args)
    return torch.float32 if fractions and not common.is_floating_point else common
