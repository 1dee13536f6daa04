"""A `Program` written as C: one function that walks over a table of tensors and reads and writes each once.

What is in its functions `prepare` and `advance` comes from `kernel`; the compiler makes vectors of `advance`. What
is around them is the same for every chain, and stands in `_FRAME`.

A pass that sums terms stores nothing. Each chunk has its own sums, which are added up in order: they do not depend
on the number of threads.
"""

from collections.abc import Sequence

import torch

from .kernel import Kernel, block
from .trace import Program

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

_FLOAT16 = "typedef _Float16 float16;"

# The same bits as another type.
_BITS = """
#define as_int32_t(x) ((union { float from; int32_t to; }){x}).to
#define as_int64_t(x) ((union { double from; int64_t to; }){x}).to
#define as_float(x) ((union { int32_t from; float to; }){x}).to
#define as_double(x) ((union { int64_t from; double to; }){x}).to
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


class _Kernel(Kernel):
    wraps = True  # by -fwrapv
    own = ("i",)

    def text(self) -> str:
        advance = self._advance()  # says which numbers it needs from `prepare`
        program = self.program
        once = "index" not in self.used and not program.scalars and not program.sums
        parts = [
            _INCLUDES,
            _BFLOAT16 if "bfloat16" in self.stored.values() else "",
            _FLOAT16 if "float16" in self.stored.values() else "",
            _BITS if any(operation.name == "view" for operation in program.operations) else "",
            *self.structs(),
            self.prepare(
                "static numbers prepare(const row *at, float *count, int64_t index, const double *real,\n"
                "        const int64_t *whole, const double *sums) {"
            ),
            advance,
            self._update(),
            _LOCATE if self.counts else "",
            _FRAME.format(
                grad=self.stored["grad"],
                chunk=CHUNK,
                width=program.width,
                sums=len(program.sums),
                terms=len(program.terms),
                prepare=_PREPARE_ONCE.format(counted=int(program.counts), prepare=_PREPARE) if once else _PREPARE,
                call=_UPDATE_RUNS if self.counts else _UPDATE,
            ),
        ]
        return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

    def _advance(self) -> str:
        loads, stores = [], []
        for name, kind in self.stored.items():
            element = f"{name}_at[i]"
            loads.append(
                f"const {self.computed(name)} {name} = {f'load({element})' if kind == 'bfloat16' else element};"
            )
        if self.counts:
            loads.append("const int64_t coordinate = at_begin + (i - begin) * stride;")
        body = self.expressions.statements(elementwise=True)
        for name, result in self.results().items():
            store = f"{name}_at[i] = {f'store({result})' if self.stored[name] == 'bfloat16' else result};"
            stores.append(f"if ({self.gates[name]}) {store}" if name in self.gates else store)
        stores += [f"total{i} += {value};" for i, value in self.totals().items()]
        sums = [f"double total{i} = 0;" for i in self.terms]
        reduction = f" reduction(+:{','.join(f'total{i}' for i in self.terms)})" if self.terms else ""
        pointers = [f"{self.stored[name]} *restrict const {name}_at = at->{name};" for name in self.program.names]
        numbers = [
            f"const {kind} {name} = given->{name};"
            for name, (kind, _) in self.expressions.handed_over.items()
            if name not in self.gates.values()
        ]
        loop = block("for (int64_t i = begin; i < end; ++i) {", [*loads, *body, *stores], "}")
        gates = "".join(f", const int {gate}" for gate in dict.fromkeys(self.gates.values()))
        head = f"static inline void advance({self._parameters('restrict grad_at')}{gates}) {{"
        totals = {i: f"total{i}" if i in self.terms else "end - begin" for i in range(len(self.program.terms))}
        ends = [f"part[{i}] += {total};" for i, total in totals.items()]
        body = [*pointers, *numbers, *sums, f"#pragma omp simd{reduction}", *loop.splitlines(), *ends]
        return block(head, body, "}")

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
        return block(f"static void update({self._parameters('grad')}) {{", lines, "}")

    def _parameters(self, grad: str) -> str:
        return (
            f"const row *at, const {self.stored['grad']} *{grad}, const numbers *given,\n"
            "        int64_t begin, int64_t end, int64_t at_begin, int64_t stride, double *part"
        )
