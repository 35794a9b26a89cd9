// One vector of floats of the instruction set that this translation unit is compiled for, and what the kernels do with it.
//
// Every translation unit defines UNROLLED_ISA before it includes this file: all that is compiled for an instruction set
// lives in a namespace of its own, so that the linker can never hand AVX-512 code to a processor without it.
// No operation rounds differently between AVX2 and AVX-512; the baseline has no fused multiply-add and does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__) || defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

#if defined(_MSC_VER)
#define UNROLLED_INLINE __forceinline
#define UNROLLED_NOINLINE __declspec(noinline)
#define UNROLLED_INLINE_LAMBDA
#else
#define UNROLLED_INLINE inline __attribute__((always_inline))
#define UNROLLED_NOINLINE __attribute__((noinline))
#define UNROLLED_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace unrolled {
namespace UNROLLED_ISA {

// 1.5 * 2^23 + 127: a sum with a float below 2^22 has no bits below one, and ends in the biased exponent of 2^n, n being
// the float's nearest whole number.
constexpr float kExponentShift = 12583039.0f;

#if defined(__AVX512F__)

constexpr int kLanes = 16;
constexpr bool kFused = true;  // whether `fma` rounds once

struct Vector {
    __m512 value;
};
struct Mask {
    __mmask16 value;
};

UNROLLED_INLINE Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
UNROLLED_INLINE Vector zero() { return {_mm512_setzero_ps()}; }
UNROLLED_INLINE Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
UNROLLED_INLINE void store(float* to, Vector x) { _mm512_storeu_ps(to, x.value); }
UNROLLED_INLINE __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
// The first `count` lanes, 0 to kLanes; the others are 0, and their memory is not touched.
UNROLLED_INLINE Vector load(const float* from, int count) { return {_mm512_maskz_loadu_ps(first(count), from)}; }
UNROLLED_INLINE void store(float* to, Vector x, int count) { _mm512_mask_storeu_ps(to, first(count), x.value); }
// The first `count` lanes, the others 0.
UNROLLED_INLINE Vector first_lanes(Vector x, int count) { return {_mm512_maskz_mov_ps(first(count), x.value)}; }
// The lanes added up by halves, until four are left.
UNROLLED_INLINE void store_four(float* to, Vector x) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x.value), _mm512_extractf32x8_ps(x.value, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
UNROLLED_INLINE Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.value, b.value)}; }
// a * b + c, rounded once.
UNROLLED_INLINE Vector fma(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
// c - a * b, rounded once.
UNROLLED_INLINE Vector subtract_product(Vector c, Vector a, Vector b) {
    return {_mm512_fnmadd_ps(a.value, b.value, c.value)};
}
// Where either is NaN, the second.
UNROLLED_INLINE Vector minimum(Vector a, Vector b) { return {_mm512_min_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector maximum(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector nearest(Vector x) {
    return {_mm512_roundscale_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for whole n from -127 to 128, given n + kExponentShift; 2^-127 is 0 and 2^128 infinity.
UNROLLED_INLINE Vector power_of_two(Vector shifted) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.value), 23))};
}
// In every lane table[k], k being the last four bits of that lane; the table is aligned to 64 bytes.
UNROLLED_INLINE Vector look_up(const float* table, Vector k) {
    return {_mm512_permutexvar_ps(_mm512_castps_si512(k.value), _mm512_load_ps(table))};
}
UNROLLED_INLINE Vector magnitude(Vector x) { return {_mm512_abs_ps(x.value)}; }
// For x without a sign.
UNROLLED_INLINE Vector with_sign_of(Vector x, Vector sign) {
    const __m512i bit = _mm512_set1_epi32(INT32_MIN);
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign.value),
                                                          _mm512_castps_si512(x.value), 0xCA))};
}
UNROLLED_INLINE Mask less(Vector a, Vector b) { return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ)}; }
UNROLLED_INLINE Mask is_nan(Vector x) { return {_mm512_cmp_ps_mask(x.value, x.value, _CMP_UNORD_Q)}; }
UNROLLED_INLINE Vector select(Mask where, Vector yes, Vector no) {
    return {_mm512_mask_blend_ps(where.value, no.value, yes.value)};
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;
constexpr bool kFused = true;

struct Vector {
    __m256 value;
};
struct Mask {
    __m256 value;
};

UNROLLED_INLINE Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
UNROLLED_INLINE Vector zero() { return {_mm256_setzero_ps()}; }
UNROLLED_INLINE Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
UNROLLED_INLINE void store(float* to, Vector x) { _mm256_storeu_ps(to, x.value); }
UNROLLED_INLINE __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first `count` lanes, 0 to kLanes; the others are 0, and their memory is not touched.
UNROLLED_INLINE Vector load(const float* from, int count) { return {_mm256_maskload_ps(from, first(count))}; }
UNROLLED_INLINE void store(float* to, Vector x, int count) { _mm256_maskstore_ps(to, first(count), x.value); }
UNROLLED_INLINE Vector first_lanes(Vector x, int count) {
    return {_mm256_and_ps(_mm256_castsi256_ps(first(count)), x.value)};
}
UNROLLED_INLINE void store_four(float* to, Vector x) {
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(x.value), _mm256_extractf128_ps(x.value, 1)));
}
UNROLLED_INLINE Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector fma(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
UNROLLED_INLINE Vector subtract_product(Vector c, Vector a, Vector b) {
    return {_mm256_fnmadd_ps(a.value, b.value, c.value)};
}
UNROLLED_INLINE Vector minimum(Vector a, Vector b) { return {_mm256_min_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector maximum(Vector a, Vector b) { return {_mm256_max_ps(a.value, b.value)}; }
UNROLLED_INLINE Vector nearest(Vector x) {
    return {_mm256_round_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
UNROLLED_INLINE Vector power_of_two(Vector shifted) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.value), 23))};
}
UNROLLED_INLINE Vector look_up(const float* table, Vector k) {
    const __m256i bits = _mm256_castps_si256(k.value);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), bits);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), bits);
    return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 28)))};
}
UNROLLED_INLINE Vector magnitude(Vector x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.value)}; }
UNROLLED_INLINE Vector with_sign_of(Vector x, Vector sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(x.value, _mm256_and_ps(bit, sign.value))};
}
UNROLLED_INLINE Mask less(Vector a, Vector b) { return {_mm256_cmp_ps(a.value, b.value, _CMP_LT_OQ)}; }
UNROLLED_INLINE Mask is_nan(Vector x) { return {_mm256_cmp_ps(x.value, x.value, _CMP_UNORD_Q)}; }
UNROLLED_INLINE Vector select(Mask where, Vector yes, Vector no) {
    return {_mm256_blendv_ps(no.value, yes.value, where.value)};
}

#else

constexpr int kLanes = 4;
constexpr bool kFused = false;

#if defined(__GNUC__)
// Four floats that GCC and Clang keep in a register, on every processor that has such registers.
typedef float Floats __attribute__((vector_size(16)));
#else
struct Floats {
    float lane[kLanes];
    float& operator[](int k) { return lane[k]; }
    float operator[](int k) const { return lane[k]; }
};
#define UNROLLED_LANEWISE(sign)                                           \
    UNROLLED_INLINE Floats operator sign(Floats a, Floats b) {            \
        for (int k = 0; k < kLanes; ++k) a.lane[k] = a.lane[k] sign b.lane[k]; \
        return a;                                                         \
    }
UNROLLED_LANEWISE(+)
UNROLLED_LANEWISE(-)
UNROLLED_LANEWISE(*)
UNROLLED_LANEWISE(/)
#undef UNROLLED_LANEWISE
#endif

struct Vector {
    Floats value;
};
struct Mask {
    bool value[kLanes];
};

#define UNROLLED_LANES(expression)                                 \
    Vector result;                                                 \
    for (int k = 0; k < kLanes; ++k) result.value[k] = expression; \
    return result

UNROLLED_INLINE Vector broadcast(float x) { UNROLLED_LANES(x); }
UNROLLED_INLINE Vector zero() { UNROLLED_LANES(0.0f); }
UNROLLED_INLINE Vector load(const float* from) { UNROLLED_LANES(from[k]); }
UNROLLED_INLINE void store(float* to, Vector x) { std::memcpy(to, &x.value, sizeof x.value); }
// The first `count` lanes, 0 to kLanes; the others are 0, and their memory is not touched.
UNROLLED_INLINE Vector load(const float* from, int count) { UNROLLED_LANES(k < count ? from[k] : 0.0f); }
UNROLLED_INLINE void store(float* to, Vector x, int count) {
    for (int k = 0; k < count; ++k) to[k] = x.value[k];
}
UNROLLED_INLINE Vector first_lanes(Vector x, int count) { UNROLLED_LANES(k < count ? x.value[k] : 0.0f); }
UNROLLED_INLINE void store_four(float* to, Vector x) { store(to, x); }
UNROLLED_INLINE Vector operator+(Vector a, Vector b) { return {a.value + b.value}; }
UNROLLED_INLINE Vector operator-(Vector a, Vector b) { return {a.value - b.value}; }
UNROLLED_INLINE Vector operator*(Vector a, Vector b) { return {a.value * b.value}; }
UNROLLED_INLINE Vector operator/(Vector a, Vector b) { return {a.value / b.value}; }
// a * b + c, rounded twice: a fused one in software would take a hundred times as long.
UNROLLED_INLINE Vector fma(Vector a, Vector b, Vector c) { return {a.value * b.value + c.value}; }
UNROLLED_INLINE Vector subtract_product(Vector c, Vector a, Vector b) {
    return {c.value - a.value * b.value};
}
UNROLLED_INLINE Vector minimum(Vector a, Vector b) { UNROLLED_LANES(a.value[k] < b.value[k] ? a.value[k] : b.value[k]); }
UNROLLED_INLINE Vector maximum(Vector a, Vector b) { UNROLLED_LANES(a.value[k] > b.value[k] ? a.value[k] : b.value[k]); }
UNROLLED_INLINE Vector nearest(Vector x) {
    // Adding 1.5 * 2^23 leaves no bits below one; right for magnitudes below 2^22.
    const volatile float shift = 12582912.0f;
    const float s = shift;
    UNROLLED_LANES((x.value[k] + s) - s);
}
UNROLLED_INLINE Vector power_of_two(Vector shifted) {
    uint32_t bits[kLanes];
    std::memcpy(bits, &shifted.value, sizeof bits);
    for (int k = 0; k < kLanes; ++k) bits[k] <<= 23;
    Vector result;
    std::memcpy(&result.value, bits, sizeof bits);
    return result;
}
UNROLLED_INLINE Vector look_up(const float* table, Vector k) {
    uint32_t bits[kLanes];
    std::memcpy(bits, &k.value, sizeof bits);
    Vector result;
    for (int lane = 0; lane < kLanes; ++lane) result.value[lane] = table[bits[lane] & 15];
    return result;
}
UNROLLED_INLINE Vector magnitude(Vector x) { UNROLLED_LANES(std::fabs(x.value[k])); }
UNROLLED_INLINE Vector with_sign_of(Vector x, Vector sign) {
    UNROLLED_LANES(std::copysign(x.value[k], sign.value[k]));
}
UNROLLED_INLINE Mask less(Vector a, Vector b) {
    Mask result;
    for (int k = 0; k < kLanes; ++k) result.value[k] = a.value[k] < b.value[k];
    return result;
}
UNROLLED_INLINE Mask is_nan(Vector x) {
    Mask result;
    for (int k = 0; k < kLanes; ++k) result.value[k] = x.value[k] != x.value[k];
    return result;
}
UNROLLED_INLINE Vector select(Mask where, Vector yes, Vector no) {
    UNROLLED_LANES(where.value[k] ? yes.value[k] : no.value[k]);
}
#undef UNROLLED_LANES

#endif

}  // namespace UNROLLED_ISA
}  // namespace unrolled
