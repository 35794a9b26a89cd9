// A number in double precision, and how far from it float32 arithmetic may end: running error analysis.
//
// Every operation adds what rounding its result once is worth, which is all that IEEE 754 allows; a fused one rounds
// less. Sums are bounded for whatever order they are added up in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace driver {

struct Near {
    double value, error;
};

constexpr double kRounding = 0x1p-24;
// What the kernels may flush to zero.
constexpr double kTiny = 0x1p-126;
// Sigmoid and tanh are guaranteed to 2.5 ulp, an ulp being at most two roundings.
constexpr double kFunctionRoundings = 5.0;

inline Near exact(float x) { return {x, 0.0}; }

inline Near rounded(double value, double error, double roundings = 1.0) {
    return {value, error + (std::fabs(value) + error) * roundings * kRounding + kTiny};
}

inline Near operator+(Near a, Near b) { return rounded(a.value + b.value, a.error + b.error); }
inline Near operator-(Near a, Near b) { return rounded(a.value - b.value, a.error + b.error); }
inline Near operator*(Near a, Near b) {
    const double error = std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error;
    return rounded(a.value * b.value, error);
}

// Of a function that never falls, so that an argument's error shows at the two ends.
template <typename Function>
Near through(const Function& function, Near x) {
    const double value = function(x.value);
    if (std::isinf(x.value)) return rounded(value, 0.0, kFunctionRoundings);
    const double error = std::max(function(x.value + x.error) - value, value - function(x.value - x.error));
    return rounded(value, error, kFunctionRoundings);
}

inline Near sigmoid(Near x) {
    return through([](double v) { return 1.0 / (1.0 + std::exp(-v)); }, x);
}
inline Near tanh(Near x) {
    return through([](double v) { return std::tanh(v); }, x);
}

// What the kernels have in the place of sigmoid and of tanh on request.
inline Near kept_within(double low, double high, Near x) {
    return {std::min(high, std::max(low, x.value)), x.error};
}
inline Near hard_sigmoid(Near x) {
    const Near sixth{1.0 / 6.0, kRounding / 6.0};
    return kept_within(0.0, 1.0, x * sixth + exact(0.5f));
}
inline Near relu(Near x) { return {std::max(0.0, x.value), x.error}; }

inline Near divided(Near a, double by) { return rounded(a.value / by, a.error / by); }
// 1 / sqrt(x), by a root and a division.
inline Near inverse_root(Near x) {
    const double value = 1.0 / std::sqrt(x.value);
    return rounded(value, 1.0 / std::sqrt(x.value - x.error) - value, 3.0);
}

// A sum of `terms` products, whose magnitudes add up to `size`: each is rounded once, and takes part in at most as many
// additions as there are terms, and one.
inline Near summed(Near start, double sum, double size, int64_t terms) {
    const double roundings = static_cast<double>(terms) + 2.0, tiny = roundings * kTiny;
    return {start.value + sum, start.error + (std::fabs(start.value) + size) * roundings * kRounding + tiny};
}

}  // namespace driver
