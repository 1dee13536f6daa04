"""What stands around a rule in CUDA text: how tensors are read and written, and the kernels that go over them."""

PRELUDE = """
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

BFLOAT16 = """
struct bfloat16 { uint16_t bits; };
__device__ __forceinline__ float load(bfloat16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ void store(bfloat16 &at, float x) { // to nearest, ties to even
    const uint32_t bits = __float_as_uint(x);
    at.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
"""

FLOAT16 = """
#ifndef HOST
struct float16 { uint16_t bits; };
__device__ __forceinline__ float load(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ void store(float16 &at, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(at.bits) : "f"(x));
}
#endif
"""

BITS = """
__device__ __forceinline__ int32_t as_int32_t(float x) { return __float_as_int(x); }
__device__ __forceinline__ int64_t as_int64_t(double x) { return __double_as_longlong(x); }
__device__ __forceinline__ float as_float(int32_t x) { return __int_as_float(x); }
__device__ __forceinline__ double as_double(int64_t x) { return __longlong_as_double(x); }
"""

LOCATE = """
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

PREPARE = """
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

ADVANCE_ALL = """
extern "C" __global__ void __launch_bounds__(THREADS) advance_all(const row *table, const numbers *prepared,
        const chunk *chunks, int64_t first, char *scratch, double *parts, const __grid_constant__ grads in) {{
    const chunk mine = chunks[blockIdx.x];
    row at = table[mine.row];
    const numbers given = prepared[mine.row];
    if (given.skipped) return;
    {grad} *grad_at = in.at[mine.row - first];
    const int64_t begin = (int64_t)mine.number * CHUNK, end = begin + CHUNK < at.size ? begin + CHUNK : at.size;
""".strip()

PACKS = """
const int64_t packed = ({pointers}) % 16 == 0 ? end - (end - begin) % {pack} : begin;
for (int64_t i = begin + threadIdx.x * {pack}; i < packed; i += THREADS * {pack}) advance<{pack}>({arguments});
for (int64_t i = packed + threadIdx.x; i < end; i += THREADS) advance<1>({arguments});
"""
SINGLES = "for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) advance<1>({arguments});"

# Of two sums that are added up, the later thread makes one: the last thread has them all.
ADD_UP = """
__device__ __forceinline__ void add_up(double (*all)[THREADS]) {
    for (unsigned apart = 1, last = 1; apart < THREADS; apart *= 2, last = 2 * apart - 1) {
        __syncthreads();
        if ((threadIdx.x & last) == last)
            for (int term = 0; term < TERMS; ++term) all[term][threadIdx.x] += all[term][threadIdx.x - apart];
    }
}
"""

PARTS = """
__shared__ double all[TERMS][THREADS];
for (int term = 0; term < TERMS; ++term) all[term][threadIdx.x] = total[term];
add_up(all);
if (threadIdx.x == THREADS - 1)
    for (int term = 0; term < TERMS; ++term)
        parts[(at.chunk + mine.number) * TERMS + term] = all[term][threadIdx.x];
"""

SUM = """
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
