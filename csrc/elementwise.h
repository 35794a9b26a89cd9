// Sigmoid and tanh over memory, as the cells compute them; the output may be the input.
#pragma once

#include <cstdint>

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

}  // namespace UNROLLED_ISA
}  // namespace unrolled
