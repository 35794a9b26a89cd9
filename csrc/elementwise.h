// Sigmoid, tanh and log-softmax over memory; the output may be the input.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "activations.h"

namespace unrolled {
namespace UNROLLED_ISA {

template <typename Function>
UNROLLED_INLINE void for_all(const float* x, float* y, int64_t n, const Function& function) {
    const int64_t whole = n - n % kLanes;
    for (int64_t k = 0; k < whole; k += kLanes) store(y + k, function(load(x + k)));
    const int rest = static_cast<int>(n - whole);
    if (rest > 0) store(y + whole, function(load(x + whole, rest)), rest);
}

inline void sigmoid_all(const float* x, float* y, int64_t n) {
    for_all(x, y, n, [](Vector v) { return sigmoid(v); });
}

inline void tanh_all(const float* x, float* y, int64_t n) {
    for_all(x, y, n, [](Vector v) { return tanh(v); });
}

// Columns that are summed side by side, whatever a vector holds: AVX2 and AVX-512 add in the same order.
constexpr int kColumns = 16;
constexpr int64_t kVectors = kColumns / kLanes;

template <typename Function>
UNROLLED_INLINE float folded(const Vector (&x)[kVectors], const Function& function) {
    float columns[kColumns];
    for (int64_t v = 0; v < kVectors; ++v) store(columns + v * kLanes, x[v]);
    for (int half = kColumns / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) columns[k] = function(columns[k], columns[k + half]);
    }
    return columns[0];
}

// One row: where it ends inside kColumns, `last` goes on with -infinity, whose share of the sum is exactly 0.
struct Row {
    const float* x;
    int64_t whole, width;
    float last[kColumns];

    Row(const float* from, int64_t columns) : x(from), whole(columns - columns % kColumns), width(columns) {
        for (int k = 0; k < kColumns; ++k) {
            last[k] = whole + k < width ? x[whole + k] : -std::numeric_limits<float>::infinity();
        }
    }

    // begin..end of the row's full width and of the padding behind it.
    template <typename Function>
    UNROLLED_INLINE void for_each(int64_t begin, int64_t end, const Function& function) const {
        const int64_t inside = end < whole ? end : whole;
        for (int64_t k = begin; k < inside; k += kColumns) {
            for (int64_t v = 0; v < kVectors; ++v) function(v, load(x + k + v * kLanes));
        }
        if (end <= whole || whole == width) return;
        for (int64_t v = 0; v < kVectors; ++v) function(v, load(last + v * kLanes));
    }

    // A row that holds NaN may get any maximum: its sum is NaN.
    float greatest() const {
        Vector most[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) most[v] = broadcast(-std::numeric_limits<float>::infinity());
        for_each(0, width, [&](int64_t v, Vector values) { most[v] = maximum(most[v], values); });
        return folded(most, [](float a, float b) { return a > b ? a : b; });
    }

    // log(sum(e^(x - top))). A block's sum is short enough for float32; blocks add up in float64.
    float log_sum(float top) const {
        constexpr int64_t kBlock = 64 * kColumns;
        double sum = 0.0;
        for (int64_t begin = 0; begin < width; begin += kBlock) {
            Vector sums[kVectors];
            for (int64_t v = 0; v < kVectors; ++v) sums[v] = zero();
            for_each(begin, begin + kBlock, [&](int64_t v, Vector values) {
                const Decay d = decay(broadcast(top) - values);
                sums[v] = fma(d.power, d.over / d.under, sums[v]);
            });
            sum += folded(sums, [](float a, float b) { return a + b; });
        }
        return static_cast<float>(std::log(sum));
    }
};

inline void log_softmax_rows(const float* x, float* y, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
        const Row row(x, width);
        const float top = row.greatest(), log_sum = row.log_sum(top);
        for_all(x, y, width, [&](Vector v) { return (v - broadcast(top)) - broadcast(log_sum); });
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
