// The cell: from the pre-activations of its four gates and the state before to the gates and the state after.
#pragma once

#include "activations.h"

namespace unrolled {
namespace UNROLLED_ISA {

struct Cell {
    Vector i, f, g, o, c, h;
};

UNROLLED_INLINE Cell next_cell(const Vector* pre, Vector c_before) {
    const Vector i = sigmoid(pre[0]), f = sigmoid(pre[1]), g = tanh(pre[2]), o = sigmoid(pre[3]);
    const Vector c = fma(f, c_before, i * g);
    return {i, f, g, o, c, o * tanh(c)};
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
