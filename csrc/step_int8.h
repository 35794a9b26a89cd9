// One time step with int8 weights and inputs: exact sums of whole numbers, scaled to floats once at their end.
#pragma once

#include <cmath>

#include "step.h"

namespace unrolled {
namespace UNROLLED_ISA {

constexpr int64_t kQuad = 4;  // depth that one 32-bit lane holds
constexpr float kLargest = 127.0f;

// Sums in 32-bit lanes, weights in the form that `dot` wants them, and four bytes of a row in every lane.
//
// GCC 12 keeps sums in memory, and copies each before every step, unless their type is that of the instruction's lanes.
#if defined(_MSC_VER)
#define UNROLLED_SUMS(type, bytes) using Sums = type
#else
#define UNROLLED_SUMS(type, bytes) using Sums __attribute__((vector_size(bytes))) = int32_t
#endif

#if defined(UNROLLED_VNNI)

UNROLLED_SUMS(__m512i, 64);
using Bytes = __m512i;

// The instruction multiplies unsigned bytes by signed ones: weights carry 128 too much, and so 128 times the sum of the
// row's inputs is too much in the end, which is where the sums start from.
constexpr uint8_t kWeightOffset = 128;
UNROLLED_INLINE Sums start_sums(int32_t row_sum) { return Sums(_mm512_set1_epi32(-128 * row_sum)); }
UNROLLED_INLINE Bytes load_weights(const char* from) { return _mm512_loadu_si512(from); }
UNROLLED_INLINE Bytes broadcast_quad(const int8_t* from) {
    int32_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi32(quad);
}
UNROLLED_INLINE Sums dot(Sums sums, Bytes weights, Bytes inputs) {
    return Sums(_mm512_dpbusd_epi32(__m512i(sums), weights, inputs));
}
UNROLLED_INLINE Vector to_float(Sums sums) { return {_mm512_cvtepi32_ps(__m512i(sums))}; }
UNROLLED_INLINE void store_whole(int8_t* to, Vector x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.value)));
}

#elif defined(__AVX2__)

UNROLLED_SUMS(__m256i, 32);
using Bytes = __m256i;

constexpr uint8_t kWeightOffset = 0;
UNROLLED_INLINE Sums start_sums(int32_t) { return Sums(_mm256_setzero_si256()); }
UNROLLED_INLINE Bytes load_weights(const char* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
UNROLLED_INLINE Bytes broadcast_quad(const int8_t* from) {
    int32_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return _mm256_set1_epi32(quad);
}
// Pairs of products fit 16 bits because no factor is -128.
UNROLLED_INLINE Sums dot(Sums sums, Bytes weights, Bytes inputs) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(inputs), _mm256_sign_epi8(weights, inputs));
    return Sums(_mm256_add_epi32(__m256i(sums), _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
UNROLLED_INLINE Vector to_float(Sums sums) { return {_mm256_cvtepi32_ps(__m256i(sums))}; }
UNROLLED_INLINE void store_whole(int8_t* to, Vector x) {
    const __m256i whole = _mm256_cvtps_epi32(x.value);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

#else

struct Sums {
    int32_t value[kLanes];
};
struct Bytes {
    int8_t value[kLanes * kQuad];
};

constexpr uint8_t kWeightOffset = 0;
UNROLLED_INLINE Sums start_sums(int32_t) { return {}; }
UNROLLED_INLINE Bytes load_weights(const char* from) {
    Bytes bytes;
    std::memcpy(bytes.value, from, sizeof bytes.value);
    return bytes;
}
UNROLLED_INLINE Bytes broadcast_quad(const int8_t* from) {
    Bytes bytes;
    for (int lane = 0; lane < kLanes; ++lane) std::memcpy(bytes.value + lane * kQuad, from, kQuad);
    return bytes;
}
UNROLLED_INLINE Sums dot(Sums sums, const Bytes& weights, const Bytes& inputs) {
    for (int at = 0; at < kLanes * kQuad; ++at) sums.value[at / kQuad] += weights.value[at] * inputs.value[at];
    return sums;
}
UNROLLED_INLINE Vector to_float(const Sums& sums) {
    Vector result;
    for (int lane = 0; lane < kLanes; ++lane) result.value[lane] = static_cast<float>(sums.value[lane]);
    return result;
}
UNROLLED_INLINE void store_whole(int8_t* to, Vector x) {
    for (int lane = 0; lane < kLanes; ++lane) {
        to[lane] = x.value[lane] == x.value[lane] ? static_cast<int8_t>(x.value[lane]) : int8_t{0};
    }
}

#endif

#undef UNROLLED_SUMS

// A row of floats as whole numbers: how they are summed up, and 0, or NaN where one of them is NaN or infinite.
struct Quantized {
    int32_t sum;
    float poison;
};

inline Quantized quantize(const float* from, int64_t depth, float inverse_scale, int8_t* to) {
    const Vector scale = broadcast(inverse_scale), most = broadcast(kLargest), least = broadcast(-kLargest);
    Vector sum = zero(), poison = zero();
    for (int64_t k = 0; k < depth; k += kLanes) {
        const Vector x = load_some(from + k, depth - k);
        const Vector whole = nearest(minimum(most, maximum(least, x * scale)));
        poison = fma(x, zero(), poison);
        sum = sum + whole;
        store_whole(to + k, whole);
    }
    float sums[kLanes], poisons[kLanes], total = 0.0f, any = 0.0f;
    store(sums, sum);
    store(poisons, poison);
    for (int lane = 0; lane < kLanes; ++lane) {
        total += sums[lane];
        any += poisons[lane];
    }
    return {any == 0.0f ? static_cast<int32_t>(total) : 0, any};
}

inline float largest_magnitude(const float* from, int64_t depth) {
    Vector largest = zero();
    for (int64_t k = 0; k < depth; k += kLanes) largest = maximum(magnitude(load_some(from + k, depth - k)), largest);
    float lanes[kLanes], result = 0.0f;
    store(lanes, largest);
    for (float lane : lanes) result = lane > result ? lane : result;
    return result;
}

// Magnitudes below it count as zero: their scale would have no inverse.
constexpr float kSmallest = 1e-35f;

inline float column_scale(const float* column, int64_t depth, int64_t depth_stride) {
    float largest = 0.0f;
    for (int64_t k = 0; k < depth; ++k) {
        const float size = std::fabs(column[k * depth_stride]);
        if (!(size <= largest)) largest = size;
        if (size != size) break;
    }
    return largest < kSmallest ? 0.0f : largest / kLargest;
}

inline uint8_t whole_weight(float w, float scale) {
    const float whole = scale > 0.0f ? std::nearbyint(w / scale) : 0.0f;
    const float inside = whole > kLargest ? kLargest : whole < -kLargest ? -kLargest : whole;
    return static_cast<uint8_t>(static_cast<int>(inside == inside ? inside : 0.0f) + kWeightOffset);
}

struct Int8Format {
    static constexpr int64_t kFront = 3 * kBlockColumns * 4;
    static int64_t bytes(int64_t depth) { return blocks_of(depth, kQuad) * kQuad * kBlockColumns; }
    static int64_t block_bytes(int64_t input, int64_t hidden) { return kFront + bytes(input) + bytes(hidden); }

    static void pack_weights(const PackTask& task, const float* w, int64_t depth, int64_t block, char* scales,
                             char* to) {
        for (int column = 0; column < kBlockColumns; ++column) {
            const int v = column / kLanes, lane = column % kLanes;
            const PanelColumns columns = panel_columns(*task.packed, block, v);
            const bool used = depth > 0 && lane < columns.count;
            const float* from = used ? w + (columns.first + lane) * task.column_stride : nullptr;
            const float scale = used ? column_scale(from, depth, task.depth_stride) : 0.0f;
            std::memcpy(scales + column * 4, &scale, sizeof scale);
            for (int64_t k = 0; k < blocks_of(depth, kQuad) * kQuad; ++k) {
                const float weight = used && k < depth ? from[k * task.depth_stride] : 0.0f;
                const uint8_t byte = whole_weight(weight, scale);
                std::memcpy(to + (k / kQuad * kBlockColumns + column) * kQuad + k % kQuad, &byte, 1);
            }
        }
    }

    static void pack(const PackTask& task, int64_t block, char* panel) {
        const Packed& packed = *task.packed;
        char* scales = pack_bias(task, block, panel);
        pack_weights(task, task.w_x, packed.input, block, scales, panel + kFront);
        pack_weights(task, task.w_h, packed.hidden, block, scales + kBlockColumns * 4,
                     panel + kFront + bytes(packed.input));
    }

    const StepInputs& inputs;
    int64_t panel_input;
    const int8_t* x;
    const int8_t* h;
    const Int8Row* rows;

    // Every slot that shares the rows quantizes them for itself: to wait for another one would take longer.
    Int8Format(const StepInputs& given, const Packed& packed, Range range, char* scratch)
        : inputs(given), panel_input(packed.input) {
        const int64_t count = range.end - range.begin, x_bytes = int8_row_bytes(given.input);
        const int64_t h_bytes = int8_row_bytes(given.hidden);
        auto* all = reinterpret_cast<Int8Row*>(scratch);
        auto* x_to = reinterpret_cast<int8_t*>(all + count);
        auto* h_to = x_to + count * x_bytes;
        rows = all;
        x = x_to;
        h = h_to;
        for (int64_t r = 0; r < count; ++r) {
            const float* from = given.x.at(range.begin + r);
            const float largest = given.x_is_state ? 1.0f : largest_magnitude(from, given.input);
            const bool counts = largest >= kSmallest;
            const float inverse = counts ? kLargest / largest : 0.0f;
            const Quantized of_x = quantize(from, given.input, inverse, x_to + r * x_bytes);
            const Quantized of_h = quantize(given.h.at(range.begin + r), given.hidden, kLargest, h_to + r * h_bytes);
            all[r] = {(counts ? largest / kLargest : 0.0f) + of_x.poison, 1.0f / kLargest + of_h.poison, of_x.sum,
                      of_h.sum};
        }
    }

    template <int kRows, int kPanels>
    UNROLLED_INLINE void add(int64_t first, const char* panel, int64_t stride,
                             Vector (&sum)[kRows][kPanels * kPanel]) const {
        int32_t row_sums[kRows];
        float scales[kRows];
        if (inputs.input > 0) {
            for (int r = 0; r < kRows; ++r) {
                row_sums[r] = rows[first + r].x_sum;
                scales[r] = rows[first + r].x_scale;
            }
            const int64_t bytes_of_row = int8_row_bytes(inputs.input);
            add_part<kRows, kPanels>(x + first * bytes_of_row, bytes_of_row, inputs.input, row_sums, scales,
                                     panel + kBlockColumns * 4, panel + kFront, stride, sum);
        }
        if (inputs.hidden == 0) return;
        for (int r = 0; r < kRows; ++r) {
            row_sums[r] = rows[first + r].h_sum;
            scales[r] = rows[first + r].h_scale;
        }
        const int64_t bytes_of_row = int8_row_bytes(inputs.hidden);
        add_part<kRows, kPanels>(h + first * bytes_of_row, bytes_of_row, inputs.hidden, row_sums, scales,
                                 panel + 2 * kBlockColumns * 4, panel + kFront + bytes(panel_input), stride, sum);
    }

    template <int kRows, int kPanels>
    UNROLLED_INLINE static void add_part(const int8_t* a, int64_t bytes_of_row, int64_t depth,
                                         const int32_t (&row_sums)[kRows], const float (&row_scales)[kRows],
                                         const char* scales, const char* panel, int64_t stride,
                                         Vector (&sum)[kRows][kPanels * kPanel]) {
        Sums sums[kRows][kPanels * kPanel];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < kPanels * kPanel; ++v) sums[r][v] = start_sums(row_sums[r]);
        }
        for (int64_t quad = 0; quad < blocks_of(depth, kQuad); ++quad) {
            Bytes weights[kPanels * kPanel];
#pragma GCC unroll 8
            for (int v = 0; v < kPanels * kPanel; ++v) {
                const int64_t at = (quad * kPanel + v % kPanel) * kLanes * kQuad;
                weights[v] = load_weights(panel + (v / kPanel) * stride + at);
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const Bytes inputs_of_row = broadcast_quad(a + r * bytes_of_row + quad * kQuad);
#pragma GCC unroll 8
                for (int v = 0; v < kPanels * kPanel; ++v) sums[r][v] = dot(sums[r][v], weights[v], inputs_of_row);
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < kPanels * kPanel; ++v) {
            const auto* column_scales = reinterpret_cast<const float*>(scales + (v / kPanel) * stride);
            const Vector scale = load(column_scales + v % kPanel * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                sum[r][v] = fma(to_float(sums[r][v]), scale * broadcast(row_scales[r]), sum[r][v]);
            }
        }
    }
};

}  // namespace UNROLLED_ISA
}  // namespace unrolled
