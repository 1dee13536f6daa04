// What the CUDA text of a step takes from its compiler, so that a C++ compiler for the CPU takes it as it is, and a
// launch like the driver's: arguments by their addresses, every thread of every block, one after the other. (The text
// waits for other threads only where a later one goes on with what earlier ones have left.)
#define HOST
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static struct { unsigned x, y, z; } blockIdx, blockDim, threadIdx;
static inline void __syncthreads() {}
template <typename T> T __ldcg(const T *from) { return *from; }
template <typename T> void __stcg(T *to, T x) { *to = x; }
template <typename To, typename From> To same_bits(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "");
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline float __uint_as_float(uint32_t x) { return same_bits<float>(x); }
static inline uint32_t __float_as_uint(float x) { return same_bits<uint32_t>(x); }
static inline float __int_as_float(int32_t x) { return same_bits<float>(x); }
static inline int32_t __float_as_int(float x) { return same_bits<int32_t>(x); }
static inline double __longlong_as_double(int64_t x) { return same_bits<double>(x); }
static inline int64_t __double_as_longlong(double x) { return same_bits<int64_t>(x); }

struct float16 { uint16_t bits; }; // which not every C++ compiler has
static inline float load(float16 x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                      : ldexpf(fraction, -24);
    return x.bits >> 15 ? -size : size;
}
static inline void store(float16 &at, float x) { // to nearest, ties to even
    const float size = fabsf(x);
    int exponent;
    frexpf(size, &exponent);
    const int last = size < 0x1p-14f ? -24 : exponent - 11; // the power of two of the last bit
    const uint16_t bits = x != x            ? 0x7e00
                          : size >= 65520   ? 0x7c00
                          : size < 0x1p-14f ? (uint16_t)nearbyintf(ldexpf(size, 24))
                                            : (uint16_t)(nearbyintf(ldexpf(size, -last)) + ((last + 24) << 10));
    at.bits = bits | (std::signbit(x) ? 0x8000 : 0);
}

template <typename... A, size_t... I>
void launch(void (*kernel)(A...), unsigned grid, unsigned block, void **arguments, std::index_sequence<I...>) {
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
            kernel(*(typename std::remove_const<A>::type *)arguments[I]...);
}
template <typename... A> void launch(void (*kernel)(A...), unsigned grid, unsigned block, void **arguments) {
    launch(kernel, grid, block, arguments, std::index_sequence_for<A...>());
}
