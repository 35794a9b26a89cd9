// The cell: from the pre-activations of its four gates and the state before to the gates and the state after.
#pragma once

#include "activations.h"
#include "tile.h"
#include "unrolled.h"

namespace unrolled {
namespace UNROLLED_ISA {

// A call's options. Those of the plain cell are constants, so that its code has no trace of any.
template <bool kPlain>
struct Options {
    const UnrolledCell& cell;
    int64_t hidden;

    bool peephole() const { return !kPlain && cell.peephole != nullptr; }
    bool clips() const { return !kPlain && cell.clip > 0.0f; }
    bool hard_gates() const { return !kPlain && cell.hard_gates != 0; }
    bool relu() const { return !kPlain && cell.relu != 0; }
    bool normalises() const { return !kPlain && cell.norm != nullptr; }

    // Of i, f and o, in this order.
    UNROLLED_INLINE Vector peephole_at(int64_t which, int64_t unit) const {
        return load_some(cell.peephole + which * hidden + unit, hidden - unit);
    }

    // Gain and shift of i, f, g, o or c.
    UNROLLED_INLINE Vector gain_at(int64_t which, int64_t unit) const {
        return load_some(cell.norm + which * hidden + unit, hidden - unit);
    }
    UNROLLED_INLINE Vector normed(int64_t which, int64_t unit, Vector standard) const {
        return fma(standard, gain_at(which, unit), gain_at(5 + which, unit));
    }

    // NaN stays NaN everywhere here: of two operands `minimum` and `maximum` then give the second.
    UNROLLED_INLINE Vector gate(Vector x) const {
        if (!hard_gates()) return sigmoid(x);
        const Vector line = fma(x, broadcast(1.0f / 6.0f), broadcast(0.5f));
        return minimum(broadcast(1.0f), maximum(zero(), line));
    }
    UNROLLED_INLINE Vector squashed(Vector x) const { return relu() ? maximum(zero(), x) : tanh(x); }

    // The slopes of both, from what they returned.
    UNROLLED_INLINE Vector gate_slope(Vector y) const {
        const Vector one = broadcast(1.0f);
        if (!hard_gates()) return y * (one - y);
        const Vector below_one = select(less(y, one), broadcast(1.0f / 6.0f), zero());
        return select(less(zero(), y), below_one, zero());
    }
    UNROLLED_INLINE Vector squashed_slope(Vector y) const {
        const Vector one = broadcast(1.0f);
        return relu() ? select(less(zero(), y), one, zero()) : one - y * y;
    }

    UNROLLED_INLINE Vector clipped(Vector c) const {
        return maximum(broadcast(-cell.clip), minimum(broadcast(cell.clip), c));
    }
    // dL/dc before clipping: none where c was clipped.
    UNROLLED_INLINE Vector through_clip(Vector dc, Vector c) const {
        return select(less(magnitude(c), broadcast(cell.clip)), dc, zero());
    }
};

inline constexpr UnrolledCell kPlainCell{};

struct Gates {
    Vector i, f, g, o, c;
};

struct Cell {
    Vector i, f, g, o, c, h;
};

template <bool kPlain>
UNROLLED_INLINE Gates next_gates(const Vector* pre, Vector c_before, const Options<kPlain>& options, int64_t unit) {
    Vector pre_i = pre[0], pre_f = pre[1], pre_o = pre[3];
    if (options.peephole()) {
        pre_i = fma(options.peephole_at(0, unit), c_before, pre_i);
        pre_f = fma(options.peephole_at(1, unit), c_before, pre_f);
    }
    const Vector i = options.gate(pre_i), f = options.gate(pre_f), g = options.squashed(pre[2]);
    Vector c = fma(f, c_before, i * g);
    if (options.clips()) c = options.clipped(c);
    if (options.peephole()) pre_o = fma(options.peephole_at(2, unit), c, pre_o);
    return {i, f, g, options.gate(pre_o), c};
}

template <bool kPlain>
UNROLLED_INLINE Cell next_cell(const Vector* pre, Vector c_before, const Options<kPlain>& options, int64_t unit) {
    const Gates next = next_gates(pre, c_before, options, unit);
    return {next.i, next.f, next.g, next.o, next.c, next.o * options.squashed(next.c)};
}

// The same out of line, for kernels whose time goes into reading weights: their code stays small.
inline UNROLLED_NOINLINE Cell next_variant(const Vector* pre, Vector c_before, const Options<false>& options,
                                           int64_t unit) {
    return next_cell(pre, c_before, options, unit);
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
