"""A `Program` written as C: one function that walks over a table of tensors and reads and writes each once.

Two functions make the kernel. `prepare` counts a parameter's step and computes the numbers that hold for all of its
coordinates (bias corrections and the like), in double precision. `advance` is the rule itself, one coordinate after
the other, in the precision of the tensors; the compiler makes vectors of it. What is around them is the same for
every chain, and stands in `_FRAME`; the operations in both are written by `expressions`.

A pass that sums terms stores nothing. Each chunk has its own sums, which are added up in order: they do not depend
on the number of threads.
"""

from collections.abc import Sequence

import torch

from .expressions import Expressions
from .recorder import Value
from .trace import Program

# 16-bit floats are stored as such and computed with as float.
STORED = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "_Float16"}

_INCLUDES = """
#define __FAST_MATH__ // so that glibc has vectors of logf and cosf; nothing else depends on it
#include <math.h>
#undef __FAST_MATH__
#include <stdint.h>
#include <stdlib.h>
"""

_BFLOAT16 = """
typedef struct { uint16_t bits; } bfloat16;

static inline float load(bfloat16 x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x.bits << 16};
    return u.value;
}

static inline bfloat16 store(float x) { // to nearest, ties to even
    union { float value; uint32_t bits; } u = {x};
    return (bfloat16){x != x ? 0x7fc0 : (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16};
}
"""

# A tensor's elements, in the order of memory, are runs of evenly spaced coordinates: see `layout`.
_LOCATE = """
static int64_t locate(const int64_t *layout, int64_t element, int64_t *stride, int64_t *rest) {
    int64_t dims = layout[0], coordinate = layout[1];
    *stride = layout[2 * dims + 1];
    *rest = layout[2 * dims] - element % layout[2 * dims];
    for (; dims > 0; --dims) {
        coordinate += element % layout[2 * dims] * layout[2 * dims + 1];
        element /= layout[2 * dims];
    }
    return coordinate;
}
"""

_FRAME = """
int step(int64_t rows, int threads, const row *table, float *counts, const {grad} *const *grads,
         const int64_t *sizes, const int64_t *indices, const int64_t *const *layouts, const double *real,
         const int64_t *whole, double *sums) {{
    enum {{ CHUNK = {chunk}, WIDTH = {width}, SUMS = {sums}, TERMS = {terms} }};
    numbers *prepared = malloc(rows * sizeof *prepared);
    int64_t *first = malloc((rows + 1) * sizeof *first); // the number of a tensor's first chunk
    if (!prepared || !first) {{ free(prepared); free(first); return 1; }}
    first[0] = 0;
    for (int64_t i = 0; i < rows; ++i) {{
        {prepare}
        first[i + 1] = first[i] + (sizes[i] + CHUNK - 1) / CHUNK;
    }}
    double *parts = TERMS ? calloc(first[rows] * TERMS + 1, sizeof *parts) : 0; // each chunk's sums
    if (TERMS && !parts) {{ free(prepared); free(first); return 1; }}
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t chunk = 0; chunk < first[rows]; ++chunk) {{
        int64_t low = 0, high = rows; // first[low] <= chunk < first[high]
        while (high - low > 1) {{
            int64_t middle = (low + high) / 2;
            if (first[middle] <= chunk) low = middle; else high = middle;
        }}
        int64_t begin = (chunk - first[low]) * CHUNK, end = begin + CHUNK < sizes[low] ? begin + CHUNK : sizes[low];
        double *part = TERMS ? parts + chunk * TERMS : 0;
{call}
    }}
    for (int64_t i = 0; TERMS && i < rows; ++i)
        for (int64_t chunk = first[i]; chunk < first[i + 1]; ++chunk)
            for (int64_t term = 0; term < TERMS; ++term)
                sums[i * WIDTH + SUMS + term] += parts[chunk * TERMS + term];
    free(parts);
    free(prepared);
    free(first);
    return 0;
}}
"""

_PREPARE = "prepared[i] = prepare(table + i, counts + i, indices[i], real, whole, sums + i * WIDTH);"
# Where they depend on nothing but the count, which most parameters have in common.
_PREPARE_ONCE = """
        if (i && counts[i] + {counted} == counts[i - 1]) {{
            prepared[i] = prepared[i - 1];
            counts[i] += {counted};
        }} else
            {prepare}""".strip()

_UPDATE = "        update(table + low, grads[low], prepared + low, begin, end, 0, 0, part);"
_UPDATE_RUNS = """
        while (begin < end) {
            int64_t stride, rest, coordinate = locate(layouts[low], begin, &stride, &rest);
            int64_t stop = begin + rest < end ? begin + rest : end;
            update(table + low, grads[low], prepared + low, begin, stop, coordinate, stride, part);
            begin = stop;
        }""".strip("\n")

# Elements that a thread updates at a time: few enough to share out the work, many enough to forget the loop around.
CHUNK = 1 << 15


def c_source(program: Program, stored: Sequence[torch.dtype]) -> str:
    """The C text of a program's kernel.

    Args:
        program: what one step computes.
        stored: how the parameter, its gradient and then each state tensor is kept in memory.

    Raises:
        Untraceable: the program has an operation for which there is no C here.
    """
    return _Kernel(program, stored).text()


class _Kernel:
    def __init__(self, program: Program, stored: Sequence[torch.dtype]) -> None:
        self.program = program
        param, grad, *state = (STORED[dtype] for dtype in stored)
        self.stored = {"grad": grad, **dict(zip(program.names, (param, *state), strict=True))}
        self.gates = self._gates()
        self.expressions = Expressions(program.operations)
        used = {a.name for op in program.operations for a in op.args if isinstance(a, Value)}
        self.counts = "coordinate" in used
        self.prepares_once = "index" not in used and not program.scalars and not program.sums

    def text(self) -> str:
        advance = self._advance()  # says which numbers it needs from `prepare`
        fields = [f"{kind} *{name};" for name, kind in self.stored.items() if name != "grad"]
        fields += [f"float *{name};" for name in self.program.scalars]
        numbers = [f"{kind} {name};" for name, (kind, _) in self.expressions.handed_over.items()]
        parts = [
            _INCLUDES,
            _BFLOAT16 if "bfloat16" in self.stored.values() else "",
            _block("typedef struct {", fields, "} row;"),
            _block("typedef struct {", numbers or ["char none;"], "} numbers;"),
            self._prepare(),
            advance,
            self._update(),
            _LOCATE if self.counts else "",
            _FRAME.format(
                grad=self.stored["grad"],
                chunk=CHUNK,
                width=self.program.width,
                sums=len(self.program.sums),
                terms=len(self.program.terms),
                prepare=_PREPARE_ONCE.format(counted=int(self.program.counts), prepare=_PREPARE)
                if self.prepares_once
                else _PREPARE,
                call=_UPDATE_RUNS if self.counts else _UPDATE,
            ),
        ]
        return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

    def _prepare(self) -> str:
        lines = [f"const double step = *count{' += 1' if self.program.counts else ''};"]
        lines += [f"const double {name} = sums[{i}];" for i, name in enumerate(self.program.sums)]
        lines += [f"const double {name} = *at->{name};" for name in self.program.scalars]
        lines += [f"const double {name} = real[{i}];" for i, name in enumerate(self.program.reals)]
        lines += [f"const int64_t {name} = whole[{i}];" for i, name in enumerate(self.program.wholes)]
        lines += self.expressions.statements(elementwise=False)
        for name, value in self.program.stores:
            if name in self.program.scalars:
                lines.append(f"*at->{name} = {self.expressions.operand(value, torch.float32)};")
        given = [f".{name} = ({kind}){text}" for name, (kind, text) in self.expressions.handed_over.items()]
        lines.append(f"return (numbers){{{', '.join(given) or '0'}}};")
        head = (
            "static numbers prepare(const row *at, float *count, int64_t index, const double *real,\n"
            "        const int64_t *whole, const double *sums) {"
        )
        return _block(head, lines, "}")

    def _advance(self) -> str:
        loads, stores = [], []
        for name, kind in self.stored.items():
            element = f"{name}_at[i]"
            computed = "double" if kind == "double" else "float"
            loads.append(f"const {computed} {name} = {f'load({element})' if kind == 'bfloat16' else element};")
        if self.counts:
            loads.append("const int64_t coordinate = at_begin + (i - begin) * stride;")
        body = self.expressions.statements(elementwise=True)
        for name, value in self.program.stores:
            if name in self.stored and not (isinstance(value, Value) and value.name == name):
                kind = self.stored[name]
                result = self.expressions.operand(
                    value, torch.float64 if kind == "double" else torch.float32, in_loop=True
                )
                store = f"{name}_at[i] = {f'store({result})' if kind == 'bfloat16' else result};"
                stores.append(f"if ({self.gates[name]}) {store}" if name in self.gates else store)
        ones = {operation.result for operation in self.program.operations if operation.name == "ones_like"}
        terms = {i: value for i, (_, value) in enumerate(self.program.terms) if value not in ones}
        sums = [f"double total{i} = 0;" for i in terms]
        stores += [
            f"total{i} += {self.expressions.operand(value, torch.float64, in_loop=True)};"
            for i, value in terms.items()
        ]
        reduction = f" reduction(+:{','.join(f'total{i}' for i in terms)})" if terms else ""
        pointers = [f"{self.stored[name]} *restrict const {name}_at = at->{name};" for name in self.program.names]
        numbers = [
            f"const {kind} {name} = given->{name};"
            for name, (kind, _) in self.expressions.handed_over.items()
            if name not in self.gates.values()
        ]
        loop = _block("for (int64_t i = begin; i < end; ++i) {", [*loads, *body, *stores], "}")
        gates = "".join(f", const int {gate}" for gate in dict.fromkeys(self.gates.values()))
        head = f"static inline void advance({self._parameters('restrict grad_at')}{gates}) {{"
        totals = {i: f"total{i}" if i in terms else "end - begin" for i in range(len(self.program.terms))}
        ends = [f"part[{i}] += {total};" for i, total in totals.items()]
        body = [*pointers, *numbers, *sums, f"#pragma omp simd{reduction}", *loop.splitlines(), *ends]
        return _block(head, body, "}")

    def _update(self) -> str:
        """Choose among the compiled forms of `advance`: with every gate open or shut."""
        arguments = "at, grad, given, begin, end, at_begin, stride, part"
        calls = [("", arguments)]
        for gate in dict.fromkeys(self.gates.values()):
            calls = [
                (" && ".join(filter(None, (condition, f"{'' if state else '!'}given->{gate}"))), f"{call}, {state}")
                for condition, call in calls
                for state in (0, 1)
            ]
        lines = [f"if ({condition or 1}) advance({call});" for condition, call in calls]
        return _block(f"static void update({self._parameters('grad')}) {{", lines, "}")

    def _parameters(self, grad: str) -> str:
        return (
            f"const row *at, const {self.stored['grad']} *{grad}, const numbers *given,\n"
            "        int64_t begin, int64_t end, int64_t at_begin, int64_t stride, double *part"
        )

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


def _block(head: str, lines: Sequence[str], tail: str) -> str:
    return "\n".join([head, *(f"    {line}" for line in lines), tail])
