// A step of one layer, backward: from what reaches h and c to the gradients of the pre-activations.
#pragma once

#include "cell.h"
#include "forward.h"
#include "tasks.h"
#include "tile.h"

namespace unrolled {
namespace UNROLLED_ISA {

UNROLLED_INLINE Vector cotangent(const UnrolledGradient& gradient, int64_t t, int64_t row, int64_t at, int64_t count) {
    if (gradient.data == nullptr) return zero();
    return load_some(gradient.data + t * gradient.time_stride + row * gradient.row_stride + at, count);
}

// Steps whose share of a bias's gradient is summed before it joins the rest: the rounding error grows with their number
// and that of the sums, not with the number of all steps.
constexpr int64_t kBiasSteps = 64;

template <unsigned kHas>
struct BackwardStep {
    const UnrolledBackward& call;
    const float* packed;
    const float* zeros;
    int64_t t, block;  // t = -1: what reaches h0
    const int64_t* rows;

    bool projects() const { return (kHas & kProjection) != 0 && call.w_hr != nullptr; }
    bool masks_h() const { return (kHas & kMaskOfH) != 0 && call.h_mask != nullptr; }
    bool normalises() const { return (kHas & kNorm) != 0 && call.cell.norm != nullptr; }
    int64_t width() const { return projects() ? call.projected : call.hidden; }

    bool starts(int64_t step, int64_t row) const {
        return call.resets != nullptr && step < call.steps && call.resets[step * call.rows + row] != 0;
    }

    template <int kRows>
    void tile(int64_t first) const {
        const int64_t hidden = call.hidden, all = width(), unit = block * kBlockColumns;
        Vector sum[kRows][kPanel];
        clear(sum);
        if (t + 1 < call.steps) {
            const float* later[kRows];
            for (int r = 0; r < kRows; ++r) {
                later[r] = call.grad_pre + ((t + 1) * call.rows + rows[first + r]) * 4 * hidden;
            }
            accumulate<kRows, 1>(later, 4 * hidden, FloatPanels{packed + block * 4 * hidden * kBlockColumns, 0}, sum);
        }
        const Options<kHas> options{call.cell, all};
        for (int r = 0; r < kRows; ++r) {
            const int64_t row = rows[first + r];
            const bool cut = starts(t + 1, row);
            for (int v = 0; v < kPanel && unit + v * kLanes < all; ++v) {
                const int64_t at = row * all + unit + v * kLanes, count = all - unit - v * kLanes;
                Vector dh = cut ? zero() : sum[r][v];
                if (masks_h()) dh = dh * load_some(call.h_mask + at, count);
                if (options.holds_h() && t + 1 < call.steps) dh = dh + load_some(call.grad_h0 + at, count);
                if (t >= 0 && projects()) {
                    const Masks masks = options.masks_of_h(row, t, unit + v * kLanes);
                    dh = of_new_h(options, row, unit + v * kLanes, dh, masks);
                    store_some(call.grad_projected + t * call.rows * all + at, dh, count);
                } else if (t < 0 || normalises()) {
                    store_some(call.grad_h0 + at, dh, count);
                } else {
                    cell(row, unit + v * kLanes, dh);
                }
            }
        }
    }

    // `carried` is what comes from later steps, or through a projection; grad_c0 holds dL/dc on its way down, and grad_h0
    // what of dL/dh passes by the cell, where units are held.
    UNROLLED_INLINE void cell(int64_t row, int64_t unit, Vector carried) const {
        const int64_t hidden = call.hidden, count = hidden - unit, at = t * call.rows + row;
        const Options<kHas> options{call.cell, hidden, projects()};
        const Masks masks = options.masks(row, t, unit);
        const Vector o = load_some(gates_of(row) + 3 * hidden + unit, count);
        const Vector c = options.holds_c() ? not_held(options, row, unit, masks)
                                           : load_some(call.c + at * hidden + unit, count);
        const Vector squashed_c = options.squashed(c);
        const Vector dh = projects() ? carried : of_new_h(options, row, unit, carried, masks);
        const FromLater later = of_new_c(options, row, unit, masks);
        const Vector dc = fma(dh * o, options.squashed_slope(squashed_c), later.now);
        const Vector d_o = output_gate(options, row, unit, dh * squashed_c, o);
        const Gradients found = gates(row, unit, c, dc, d_o, masks, later.passing);
        if (options.peephole()) add_peephole(row, unit, found, c);
        float* pre = call.grad_pre + at * 4 * hidden + unit;
        for (int gate = 0; gate < 4; ++gate) store_some(pre + gate * hidden, found.pre[gate], count);
        if (call.grad_bias != nullptr) add_bias(row, unit, found);
    }

    const float* gates_of(int64_t row) const {
        return call.gates + (t * call.rows + row) * (normalises() ? 8 : 4) * call.hidden;
    }

    // dL/dh of what the cell made, from what comes of later steps; grad_h0 is left what passes by the cell.
    UNROLLED_INLINE Vector of_new_h(const Options<kHas>& options, int64_t row, int64_t unit, Vector carried,
                                    const Masks& masks) const {
        const int64_t count = options.hidden - unit;
        const Vector dh = carried + cotangent(call.grad_h, t, row, unit, count);
        if (!options.holds_h()) return dh;
        const Vector passing = options.to_before(dh, masks.held_h, options.cell.zoneout_h);
        store_some(call.grad_h0 + row * options.hidden + unit, starts(t, row) ? zero() : passing, count);
        return options.to_new(dh, masks.held_h, options.cell.zoneout_h);
    }

    struct FromLater {
        Vector now, passing;
    };

    // dL/dc of what the cell made, from later steps and from outside, and what passes by the cell.
    UNROLLED_INLINE FromLater of_new_c(const Options<kHas>& options, int64_t row, int64_t unit,
                                       const Masks& masks) const {
        const int64_t count = call.hidden - unit;
        Vector dc = cotangent(call.grad_c, t, row, unit, count);
        if (t + 1 < call.steps) dc = dc + load_some(call.grad_c0 + row * call.hidden + unit, count);
        if (!options.holds_c()) return {dc, zero()};
        return {options.to_new(dc, masks.held_c, options.cell.zoneout_c),
                options.to_before(dc, masks.held_c, options.cell.zoneout_c)};
    }

    UNROLLED_INLINE Vector output_gate(const Options<kHas>& options, int64_t row, int64_t unit, Vector d_o,
                                       Vector o) const {
        const int64_t at = 3 * call.hidden + unit, count = call.hidden - unit;
        if (call.grad_gates.data != nullptr) d_o = d_o + cotangent(call.grad_gates, t, row, at, count);
        return d_o * options.gate_slope(o);
    }

    struct Gradients {
        Vector pre[4], c_before;
    };

    // To the row's sums: of all steps, and of the last ones.
    UNROLLED_INLINE void add_bias(int64_t row, int64_t unit, const Gradients& found) const {
        const int64_t hidden = call.hidden, count = hidden - unit;
        const bool joins = t % kBiasSteps == 0;
        for (int gate = 0; gate < 4; ++gate) {
            float *all = call.bias_sums + (row * 8 + gate) * hidden + unit, *last = all + 4 * hidden;
            const Vector sum = load_some(last, count) + found.pre[gate];
            if (joins) store_some(all, load_some(all, count) + sum, count);
            store_some(last, joins ? zero() : sum, count);
        }
    }

    // To the row's gradient of the peepholes, which is the last of its cell's.
    UNROLLED_INLINE void add_peephole(int64_t row, int64_t unit, const Gradients& found, Vector c) const {
        const int64_t hidden = call.hidden, count = hidden - unit;
        float* to = call.grad_cell + ((row + 1) * gradient_planes(call.cell) - 3) * hidden + unit;
        store_some(to, fma(found.pre[0], found.c_before, load_some(to, count)), count);
        store_some(to + hidden, fma(found.pre[1], found.c_before, load_some(to + hidden, count)), count);
        store_some(to + 2 * hidden, fma(found.pre[3], c, load_some(to + 2 * hidden, count)), count);
    }

    const float* c_before_of(int64_t row) const {
        if (starts(t, row)) return zeros;
        return t ? call.c + ((t - 1) * call.rows + row) * call.hidden : call.c0 + row * call.hidden;
    }

    // c as o and h saw it.
    UNROLLED_INLINE Vector not_held(const Options<kHas>& options, int64_t row, int64_t unit,
                                    const Masks& masks) const {
        const int64_t hidden = call.hidden, count = hidden - unit;
        const float* own = gates_of(row) + unit;
        const Vector g = options.written(load_some(own + 2 * hidden, count), masks);
        return new_c(load_some(own, count), load_some(own + hidden, count), g,
                     load_some(c_before_of(row) + unit, count), options);
    }

    const float* row_not_held(const Options<kHas>& options, int64_t row, float* to) const {
        for_each_vector(call.hidden, [&](int64_t unit, int64_t count, int) {
            store_some(to + unit, not_held(options, row, unit, options.masks(row, t, unit)), count);
        });
        return to;
    }

    // From dL/dc_t, but for what o sees of it, and the gradient behind o to those behind the other gates; and on to
    // dL/dc of the step before.
    UNROLLED_INLINE Gradients gates(int64_t row, int64_t unit, Vector c, Vector dc, Vector d_o, const Masks& masks,
                                    Vector passing_c) const {
        const int64_t hidden = call.hidden, count = hidden - unit;
        const Options<kHas> options{call.cell, hidden};
        const float* own = gates_of(row) + unit;
        const Vector i = load_some(own, count), f = load_some(own + hidden, count);
        const Vector g = load_some(own + 2 * hidden, count);
        const bool fresh = starts(t, row);
        const Vector c_before = load_some(c_before_of(row) + unit, count);
        if (options.peephole()) dc = fma(d_o, options.peephole_at(2, unit), dc);
        if (options.clips()) dc = options.through_clip(dc, c);
        Vector di = dc * options.written(g, masks), df = dc * c_before, dg = options.written(dc * i, masks);
        if (call.grad_gates.data != nullptr) {
            di = di + cotangent(call.grad_gates, t, row, unit, count);
            df = df + cotangent(call.grad_gates, t, row, hidden + unit, count);
            dg = dg + cotangent(call.grad_gates, t, row, 2 * hidden + unit, count);
        }
        di = di * options.gate_slope(i);
        df = df * options.gate_slope(f);
        dc = dc * f;
        if (options.peephole()) {
            dc = fma(di, options.peephole_at(0, unit), fma(df, options.peephole_at(1, unit), dc));
        }
        if (options.holds_c()) dc = dc + passing_c;
        store_some(call.grad_c0 + row * hidden + unit, fresh ? zero() : dc, count);
        return {{di, df, dg * options.squashed_slope(g), d_o}, c_before};
    }

    // The cells of a whole row, behind the product, which has left in grad_h0 what reaches h from later steps, or behind a
    // projection, which has left it in `unprojected`. Where the gradients of the sums will be, there are meanwhile c as o
    // and h saw it, the gradient of the normed c, and those behind the gates.
    void normed(int64_t row) const {
        const int64_t hidden = call.hidden, at = t * call.rows + row;
        const Options<kHas> options{call.cell, hidden, projects()};
        const float* into_h = (projects() ? call.unprojected : call.grad_h0) + row * hidden;
        const float *own = gates_of(row), *sums = own + 4 * hidden;
        float *pre = call.grad_pre + at * 4 * hidden, *through = pre + hidden;
        const float* c = options.holds_c() ? row_not_held(options, row, pre) : call.c + at * hidden;
        const NormGradient gradient{call.grad_cell + row * gradient_planes(call.cell) * hidden, hidden};
        const float size = static_cast<float>(hidden);

        const auto of_c = moments<1>(hidden, [&](int, int64_t unit) UNROLLED_INLINE_LAMBDA { return c + unit; });
        RowSums<2> along_c;
        for_each_vector(hidden, [&](int64_t unit, int64_t count, int v) UNROLLED_INLINE_LAMBDA {
            const Vector standard = of_c.standard(0, load_some(c + unit, count));
            const Vector squashed_c = options.squashed(options.normed(4, unit, standard));
            const Vector o = load_some(own + 3 * hidden + unit, count);
            Vector dh = load_some(into_h + unit, count);
            if (!projects()) dh = of_new_h(options, row, unit, dh, options.masks_of_h(row, t, unit));
            const Vector seen = dh * o * options.squashed_slope(squashed_c);
            gradient.add(4, unit, count, seen, standard);
            store_some(through + unit, seen, count);
            store_some(pre + 3 * hidden + unit, output_gate(options, row, unit, dh * squashed_c, o), count);
            along_c.add(0, v, seen * options.gain_at(4, unit), standard);
        });
        const Along<1> back_to_c(along_c, size);

        const auto of_gates = moments<4>(hidden, [&](int gate, int64_t unit) UNROLLED_INLINE_LAMBDA {
            return sums + gate * hidden + unit;
        });
        RowSums<8> along;
        for_each_vector(hidden, [&](int64_t unit, int64_t count, int v) UNROLLED_INLINE_LAMBDA {
            const Masks masks = options.masks(row, t, unit);
            const Vector c_now = load_some(c + unit, count);
            const Vector seen = load_some(through + unit, count) * options.gain_at(4, unit);
            const Vector d_o = load_some(pre + 3 * hidden + unit, count);
            const FromLater later = of_new_c(options, row, unit, masks);
            const Vector dc = later.now + back_to_c.through(0, seen, of_c.standard(0, c_now), of_c.factor[0]);
            const Gradients found = gates(row, unit, c_now, dc, d_o, masks, later.passing);
#pragma GCC unroll 4
            for (int gate = 0; gate < 4; ++gate) {
                const Vector standard = of_gates.standard(gate, load_some(sums + gate * hidden + unit, count));
                gradient.add(gate, unit, count, found.pre[gate], standard);
                store_some(pre + gate * hidden + unit, found.pre[gate], count);
                along.add(gate, v, found.pre[gate] * options.gain_at(gate, unit), standard);
            }
            if (options.peephole()) add_peephole(row, unit, found, c_now);
        });
        const Along<4> back(along, size);
        for_each_vector(hidden, [&](int64_t unit, int64_t count, int) UNROLLED_INLINE_LAMBDA {
#pragma GCC unroll 4
            for (int gate = 0; gate < 4; ++gate) {
                const int64_t k = gate * hidden + unit;
                const Vector standard = of_gates.standard(gate, load_some(sums + k, count));
                const Vector behind = load_some(pre + k, count) * options.gain_at(gate, unit);
                const Vector given = cotangent(call.grad_gates, t, row, 4 * hidden + k, count);
                store_some(pre + k, back.through(gate, behind, standard, of_gates.factor[gate]) + given, count);
            }
        });
    }
};

}  // namespace UNROLLED_ISA
}  // namespace unrolled
