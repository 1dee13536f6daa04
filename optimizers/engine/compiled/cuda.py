"""A `Program` written as CUDA C++: three kernels that go over a table of tensors on a device.

Every pass of a step is `prepare_all`, `advance_all` (once per `GRADS` rows) and, where it has terms, `sum_all`, in
this order on one stream. Their arguments, which are the same for every program, are

    prepare_all(const row *table, int64_t rows, float *counts, inputs in, const double *sums, numbers *prepared,
                const float *grad_scale, const float *found_inf)
    advance_all(const row *table, const numbers *prepared, const chunk *chunks, int64_t first, char *scratch,
                double *parts, grads in)
    sum_all(const row *table, const double *parts, double *sums)

`row` has 8 bytes for each of: the address of each of `Program.names` (the parameter, then its state); of each of
`Program.scalars` (float32); the number of elements; the index; the address of its layout (see `layout`); the number
of its first chunk, counted over all rows. The same table serves all passes of a step. In the place of the address
of `WHOLE` stands where it begins, in bytes behind `scratch`, a multiple of 16.

`counts` has a row's count of steps (float32), `sums` its `Program.width` sums, `prepared` `PREPARED` bytes for it.

`inputs` are the numbers of a step, by value: for each of `Program.reals` (at least one) a `real`, 24 bytes: a double, the
address of a float or 0, the address of a double or 0; the first address that is not 0 is read on the device, else the
value holds; then for each of `Program.wholes` (at least one) an int64.

`chunk` is two int32, a row and which `CHUNK` elements of it: a block of `advance_all` (`THREADS` threads) steps
one. A row of no elements has none. `grads` are `GRADS` addresses by value, of the gradients of the rows from `first` on: a launch is given those
chunks that belong to these rows, by the address of the first of them.

`parts` has room for `len(Program.terms)` doubles per chunk, counted over all rows; `sum_all`, a block of `THREADS` per row, adds
those of a row, in an order that is always the same, to `sums[row * width + len(Program.sums)]` and behind.

The grid of `prepare_all` is of any shape in x with at least as many threads as rows, at most `THREADS` to a block.
`grad_scale` and `found_inf` are a GradScaler's, float32, or 0. Gradients are divided by the first and written back, as
by torch's fused steps; where the second is not 0, nothing moves and no step is counted. Both are 0 in a step of
several passes, or where a stage's `before` looks at the gradients: there the scaler has to do it in front of the step.
"""

from collections.abc import Sequence

import torch

from ..eager import WHOLE
from .kernel import Kernel, block
from .recorder import Untraceable, Value
from .trace import Program

THREADS = 256  # of a block
CHUNK = 1 << 13  # elements to a block
GRADS = 448  # gradients' addresses to a launch: with all else they are less than the 4 KB that any driver takes
PREPARED = 512  # bytes of a row's numbers, at most

_PRELUDE = """
#ifndef HOST // the device's compiler has no headers
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)
#endif
enum {{ THREADS = {threads}, CHUNK = {chunk}, WIDTH = {width}, SUMS = {sums}, TERMS = {terms} }};

template <typename T, int N> struct alignas(sizeof(T) * N) pack {{ T at[N]; }};
template <typename T> __device__ __forceinline__ T load(T x) {{ return x; }}
template <typename T> __device__ __forceinline__ void store(T &at, T x) {{ at = x; }}

// An address that was read from memory is not known to be one of global memory: these instructions say so.
template <int BYTES> struct word;
template <> struct word<2> {{ typedef unsigned short type; }};
template <> struct word<4> {{ typedef unsigned int type; }};
template <> struct word<8> {{ typedef uint2 type; }};
template <> struct word<16> {{ typedef uint4 type; }};
template <typename T> union both {{ typename word<sizeof(T)>::type bits; T value; __device__ both() {{}} }};
template <typename T> __device__ __forceinline__ T read(const T *from) {{
    both<T> x;
    x.bits = __ldcg((const typename word<sizeof(T)>::type *)from);
    return x.value;
}}
template <typename T> __device__ __forceinline__ void write(T *to, const T &value) {{
    both<T> x;
    x.value = value;
    __stcg((typename word<sizeof(T)>::type *)to, x.bits);
}}

struct number {{ // of a step: a value, unless an address says where on the device it is
    double value;
    const float *at;
    const double *wide_at;
    __device__ __forceinline__ operator double() const {{ return at ? *at : wide_at ? *wide_at : value; }}
}};
struct inputs {{ number real[{reals}]; int64_t whole[{wholes}]; }};
struct chunk {{ int32_t row, number; }};
"""

_BFLOAT16 = """
struct bfloat16 { uint16_t bits; };
__device__ __forceinline__ float load(bfloat16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ void store(bfloat16 &at, float x) { // to nearest, ties to even
    const uint32_t bits = __float_as_uint(x);
    at.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
"""

_FLOAT16 = """
#ifndef HOST
struct float16 { uint16_t bits; };
__device__ __forceinline__ float load(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ void store(float16 &at, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(at.bits) : "f"(x)); }
#endif
"""

_BITS = """
__device__ __forceinline__ int32_t as_int32_t(float x) { return __float_as_int(x); }
__device__ __forceinline__ int64_t as_int64_t(double x) { return __double_as_longlong(x); }
__device__ __forceinline__ float as_float(int32_t x) { return __int_as_float(x); }
__device__ __forceinline__ double as_double(int64_t x) { return __longlong_as_double(x); }
"""

_LOCATE = """
// The outermost dimension needs no division: a tensor in the order of its coordinates needs none at all.
__device__ __forceinline__ int64_t locate(const int64_t *layout, int64_t element) {
    int64_t coordinate = layout[1];
    for (int64_t dims = layout[0]; dims > 1; --dims) {
        coordinate += element % layout[2 * dims] * layout[2 * dims + 1];
        element /= layout[2 * dims];
    }
    return coordinate + element * layout[3];
}
"""

_PREPARE = """
extern "C" __global__ void __launch_bounds__(THREADS) prepare_all(const row *table, int64_t rows, float *counts,
        const __grid_constant__ inputs in, const double *sums, numbers *prepared, const float *grad_scale,
        const float *found_inf) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows) return;
    numbers given = {0};
    const bool skipped = found_inf && *found_inf != 0;
    if (!skipped) given = prepare(table + i, counts + i, table[i].index, in.real, in.whole, sums + i * WIDTH);
    given.skipped = skipped;
    given.scaled = grad_scale != 0;
    given.per_scale = grad_scale ? 1.0 / *grad_scale : 1;
    prepared[i] = given;
}
"""

_ADVANCE_ALL = """
extern "C" __global__ void __launch_bounds__(THREADS) advance_all(const row *table, const numbers *prepared,
        const chunk *chunks, int64_t first, char *scratch, double *parts, const __grid_constant__ grads in) {{
    const chunk mine = chunks[blockIdx.x];
    row at = table[mine.row];
    const numbers given = prepared[mine.row];
    if (given.skipped) return;
    {grad} *grad_at = in.at[mine.row - first];
    const int64_t begin = (int64_t)mine.number * CHUNK, end = begin + CHUNK < at.size ? begin + CHUNK : at.size;
""".strip()

_PACKS = """
const int64_t packed = ({pointers}) % 16 == 0 ? end - (end - begin) % {pack} : begin;
for (int64_t i = begin + threadIdx.x * {pack}; i < packed; i += THREADS * {pack}) advance<{pack}>({arguments});
for (int64_t i = packed + threadIdx.x; i < end; i += THREADS) advance<1>({arguments});
"""
_SINGLES = "for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) advance<1>({arguments});"

# Of two sums that are added up, the later thread makes one: the last thread has them all.
_ADD_UP = """
__device__ __forceinline__ void add_up(double (*all)[THREADS]) {
    for (unsigned apart = 1, last = 1; apart < THREADS; apart *= 2, last = 2 * apart - 1) {
        __syncthreads();
        if ((threadIdx.x & last) == last)
            for (int term = 0; term < TERMS; ++term) all[term][threadIdx.x] += all[term][threadIdx.x - apart];
    }
}
"""

_PARTS = """
__shared__ double all[TERMS][THREADS];
for (int term = 0; term < TERMS; ++term) all[term][threadIdx.x] = total[term];
add_up(all);
if (threadIdx.x == THREADS - 1)
    for (int term = 0; term < TERMS; ++term) parts[(at.chunk + mine.number) * TERMS + term] = all[term][threadIdx.x];
"""

_SUM = """
extern "C" __global__ void __launch_bounds__(THREADS) sum_all(const row *table, const double *parts, double *sums) {
    __shared__ double all[TERMS][THREADS];
    const row at = table[blockIdx.x];
    const int64_t chunks = (at.size + CHUNK - 1) / CHUNK;
    for (int term = 0; term < TERMS; ++term) {
        double total = 0;
        for (int64_t i = threadIdx.x; i < chunks; i += THREADS) total += parts[(at.chunk + i) * TERMS + term];
        all[term][threadIdx.x] = total;
    }
    add_up(all);
    if (threadIdx.x == THREADS - 1)
        for (int term = 0; term < TERMS; ++term)
            sums[(int64_t)blockIdx.x * WIDTH + SUMS + term] = all[term][threadIdx.x];
}
"""

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
    def __init__(self, program: Program, stored: Sequence[torch.dtype]) -> None:
        super().__init__(program, stored)
        self._read = self._needed()
        work = sum(operation.result.elementwise for operation in program.operations)
        # (Long rules take long to compile several times over, and do not wait for memory.)
        self._pack = 1 if work > 64 else 16 // max(_BYTES[self.stored[n]] for n in {*self._read, *self.stores})

    def text(self) -> str:
        program, kinds = self.program, set(self.stored.values())
        given = dict(reals=max(1, len(program.reals)), wholes=max(1, len(program.wholes)))
        sizes = dict(width=program.width, sums=len(program.sums), terms=len(program.terms))
        advance = self._advance()  # says which numbers it needs from `prepare`
        if 8 * len(self.expressions.handed_over) + 16 > PREPARED or 24 * given["reals"] + 8 * given["wholes"] > 4000:
            raise Untraceable("a device is not given as many numbers")
        parts = [
            _PRELUDE.format(threads=THREADS, chunk=CHUNK, **given, **sizes),
            _BFLOAT16 if "bfloat16" in kinds else "",
            _FLOAT16 if "float16" in kinds else "",
            _BITS if any(operation.name == "view" for operation in program.operations) else "",
            f"struct grads {{ {self.stored['grad']} *at[{GRADS}]; }};",
            *self.structs(
                ["int64_t size, index;", "const int64_t *layout;", "int64_t chunk;"],
                ["int skipped, scaled;", "float per_scale;"],
            ),
            self.prepare(
                "__device__ numbers prepare(const row *at, float *count, int64_t index, const number *real,\n"
                "        const int64_t *whole, const double *sums) {"
            ),
            _PREPARE,
            _LOCATE if self.counts else "",
            advance,
            _ADD_UP if program.terms else "",
            self._advance_all(),
            _SUM if program.terms else "",
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
        numbers = [f"const {kind} {name} = given.{name};" for name, (kind, _) in self.expressions.handed_over.items()]
        loop = block("for (int k = 0; k < N; ++k) {", [*values, *body, *stores], "}")
        head = (
            f"template <int N> __device__ __forceinline__ void advance(const row &at, {self.stored['grad']} *grad_at,\n"
            f"        const numbers &given, int64_t i{', double *total' if self.terms else ''}) {{"
        )
        return block(head, [*loads, *numbers, "#pragma unroll", *loop.splitlines(), *writes], "}")

    def _advance_all(self) -> str:
        arguments = f"at, grad_at, given, i{', total' if self.terms else ''}"
        pointers = " | ".join(f"(uint64_t){self._at(name)}" for name in dict.fromkeys([*self._read, *self.stores]))
        body = _SINGLES if self._pack == 1 else _PACKS
        lines = body.format(pack=self._pack, pointers=pointers, arguments=arguments).strip().splitlines()
        if WHOLE in self.stored:
            kind = self.stored[WHOLE]
            lines.insert(0, f"at.{WHOLE} = ({kind} *)((int64_t)scratch + (int64_t)at.{WHOLE});")
        if self.program.terms:
            ones = [i for i in range(len(self.program.terms)) if i not in self.terms]
            lines.insert(0, "double total[TERMS] = {0};")
            lines += [f"if (threadIdx.x == 0) total[{i}] = end - begin;" for i in ones]
            lines += _PARTS.strip().splitlines()
        return block(_ADVANCE_ALL.format(grad=self.stored["grad"]), lines, "}")

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
