// The cell: from the pre-activations of its four gates and the state before to the gates and the state after.
#pragma once

#include "activations.h"
#include "tasks.h"
#include "threefry.h"
#include "tile.h"
#include "unrolled.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Where a unit of h or c is held, and where one of g is dropped.
struct Masks {
    Mask held_h, held_c, dropped_g;
};

UNROLLED_INLINE Masks no_masks() {
    const Mask none = less(zero(), zero());
    return {none, none, none};
}

// A call's options. Those that its kernel has no code for are constants, so that no trace of them is left.
template <unsigned kHas>
struct Options {
    const UnrolledCell& cell;
    int64_t hidden;
    bool projects = false;  // h is held behind the projection, and not here

    bool peephole() const { return (kHas & kPeephole) != 0 && cell.peephole != nullptr; }
    bool clips() const { return (kHas & kClip) != 0 && cell.clip > 0.0f; }
    bool hard_gates() const { return (kHas & kActivations) != 0 && cell.hard_gates != 0; }
    bool relu() const { return (kHas & kActivations) != 0 && cell.relu != 0; }
    bool normalises() const { return (kHas & kNorm) != 0 && cell.norm != nullptr; }

    bool draws() const { return (kHas & kDraws) != 0 && cell.keys != nullptr; }
    bool holds_h() const { return (kHas & kDraws) != 0 && !projects && cell.zoneout_h > 0.0f; }
    bool holds_c() const { return (kHas & kDraws) != 0 && cell.zoneout_c > 0.0f; }
    bool drops() const { return (kHas & kDraws) != 0 && cell.dropout > 0.0f; }

    // Without keys none: nothing reads them then.
    UNROLLED_INLINE Masks masks(int64_t row, int64_t step, int64_t unit) const {
        if (!draws() || !(holds_h() || holds_c() || drops())) return no_masks();
        const RandomWords x = random_words(cell.keys[row], cell.first + static_cast<uint32_t>(step),
                                           static_cast<uint32_t>(unit));
        return {below(low_half(x.first), all_words(cell.held_h)), below(high_half(x.first), all_words(cell.held_c)),
                below(low_half(x.second), all_words(cell.dropped_g))};
    }

    // The same where only that of h is asked for.
    UNROLLED_INLINE Masks masks_of_h(int64_t row, int64_t step, int64_t unit) const {
        return holds_h() ? masks(row, step, unit) : no_masks();
    }

    // g as c takes it in, and a gradient of that as one of g.
    UNROLLED_INLINE Vector written(Vector g, const Masks& at) const {
        return drops() ? select(at.dropped_g, zero(), g * broadcast(cell.scale)) : g;
    }

    // What goes on of the new and the old value; and the gradients of both.
    UNROLLED_INLINE Vector held(Vector now, Vector before, Mask where, float share) const {
        return draws() ? select(where, before, now)
                       : fma(before, broadcast(share), now * broadcast(1.0f - share));
    }
    UNROLLED_INLINE Vector to_new(Vector grad, Mask where, float share) const {
        return draws() ? select(where, zero(), grad) : grad * broadcast(1.0f - share);
    }
    UNROLLED_INLINE Vector to_before(Vector grad, Mask where, float share) const {
        return draws() ? select(where, grad, zero()) : grad * broadcast(share);
    }

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

// c before any of it is held; `g` is what c takes in.
template <unsigned kHas>
UNROLLED_INLINE Vector new_c(Vector i, Vector f, Vector g, Vector c_before, const Options<kHas>& options) {
    const Vector c = fma(f, c_before, i * g);
    return options.clips() ? options.clipped(c) : c;
}

template <unsigned kHas>
UNROLLED_INLINE Gates next_gates(const Vector* pre, Vector c_before, const Options<kHas>& options, int64_t unit,
                                 const Masks& masks) {
    Vector pre_i = pre[0], pre_f = pre[1], pre_o = pre[3];
    if (options.peephole()) {
        pre_i = fma(options.peephole_at(0, unit), c_before, pre_i);
        pre_f = fma(options.peephole_at(1, unit), c_before, pre_f);
    }
    const Vector i = options.gate(pre_i), f = options.gate(pre_f), g = options.squashed(pre[2]);
    const Vector c = new_c(i, f, options.written(g, masks), c_before, options);
    if (options.peephole()) pre_o = fma(options.peephole_at(2, unit), c, pre_o);
    return {i, f, g, options.gate(pre_o), c};
}

// `h_before` is where h of the step before lies: it is read where h can be held.
template <unsigned kHas>
UNROLLED_INLINE Cell next_cell(const Vector* pre, Vector c_before, const float* h_before,
                               const Options<kHas>& options, int64_t unit, const Masks& masks) {
    const Gates next = next_gates(pre, c_before, options, unit, masks);
    Vector c = next.c, h = next.o * options.squashed(next.c);
    if (options.holds_h()) {
        h = options.held(h, load_some(h_before, options.hidden - unit), masks.held_h, options.cell.zoneout_h);
    }
    if (options.holds_c()) c = options.held(c, c_before, masks.held_c, options.cell.zoneout_c);
    return {next.i, next.f, next.g, next.o, c, h};
}

// The same out of line, for kernels whose time goes into reading weights: their code stays small.
// A step draws no masks.
inline UNROLLED_NOINLINE Cell next_variant(const Vector* pre, Vector c_before, const float* h_before,
                                           const Options<kEverything>& options, int64_t unit) {
    return next_cell(pre, c_before, h_before, options, unit, no_masks());
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
