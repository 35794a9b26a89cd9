// One layer over time, backward: the gradients of the pre-activations, step by step from the last.
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

template <bool kPlain>
struct BackwardStep {
    const UnrolledBackward& call;
    const float* packed;
    const float* zeros;
    int64_t t, block;  // t = -1: what reaches h0
    const int64_t* rows;

    bool starts(int64_t step, int64_t row) const {
        return call.resets != nullptr && step < call.steps && call.resets[step * call.rows + row] != 0;
    }

    template <int kRows>
    void tile(int64_t first) const {
        const int64_t hidden = call.hidden, unit = block * kBlockColumns;
        Vector sum[kRows][kPanel];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kPanel; ++v) sum[r][v] = zero();
        }
        if (t + 1 < call.steps) {
            const float* later[kRows];
            for (int r = 0; r < kRows; ++r) {
                later[r] = call.grad_pre + ((t + 1) * call.rows + rows[first + r]) * 4 * hidden;
            }
            accumulate<kRows, 1>(later, 4 * hidden, FloatPanels{packed + block * 4 * hidden * kBlockColumns, 0}, sum);
        }
        for (int r = 0; r < kRows; ++r) {
            const int64_t row = rows[first + r];
            const bool cut = starts(t + 1, row);
            for (int v = 0; v < kPanel && unit + v * kLanes < hidden; ++v) {
                const Vector dh = cut ? zero() : sum[r][v];
                if (t < 0) {
                    store_some(call.grad_h0 + row * hidden + unit + v * kLanes, dh, hidden - unit - v * kLanes);
                } else {
                    cell(row, unit + v * kLanes, dh);
                }
            }
        }
    }

    // `carried` is what comes from later steps; grad_c0 holds dL/dc on its way down.
    UNROLLED_INLINE void cell(int64_t row, int64_t unit, Vector carried) const {
        const int64_t hidden = call.hidden, count = hidden - unit, at = t * call.rows + row;
        const float* gates = call.gates + at * 4 * hidden + unit;
        const Vector i = load_some(gates, count), f = load_some(gates + hidden, count);
        const Vector g = load_some(gates + 2 * hidden, count), o = load_some(gates + 3 * hidden, count);
        const Options<kPlain> options{call.cell, hidden};
        const Vector c = load_some(call.c + at * hidden + unit, count), squashed_c = options.squashed(c);
        const bool fresh = starts(t, row);
        const float* before = fresh ? zeros : t ? call.c + (at - call.rows) * hidden : call.c0 + row * hidden;
        const Vector c_before = load_some(before + unit, count);
        float* carried_c = call.grad_c0 + row * hidden + unit;

        const Vector dh = carried + cotangent(call.grad_h, t, row, unit, count);
        Vector dc = cotangent(call.grad_c, t, row, unit, count);
        if (t + 1 < call.steps) dc = dc + load_some(carried_c, count);
        dc = fma(dh * o, options.squashed_slope(squashed_c), dc);
        Vector d_o = dh * squashed_c;
        if (call.grad_gates.data != nullptr) d_o = d_o + cotangent(call.grad_gates, t, row, 3 * hidden + unit, count);
        d_o = d_o * options.gate_slope(o);
        if (options.peephole()) dc = fma(d_o, options.peephole_at(2, unit), dc);
        if (options.clips()) dc = options.through_clip(dc, c);
        Vector di = dc * g, df = dc * c_before, dg = dc * i;
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
        float* pre = call.grad_pre + at * 4 * hidden + unit;
        store_some(pre, di, count);
        store_some(pre + hidden, df, count);
        store_some(pre + 2 * hidden, dg * options.squashed_slope(g), count);
        store_some(pre + 3 * hidden, d_o, count);
        store_some(carried_c, fresh ? zero() : dc, count);
    }
};

inline void clear_ended(const UnrolledBackward& call, int64_t t, int64_t row, int64_t begin, int64_t end) {
    const int64_t hidden = call.hidden, bytes = (end - begin) * 4;
    std::memset(call.grad_c0 + row * hidden + begin, 0, bytes);
    for (int gate = 0; gate < 4; ++gate) {
        std::memset(call.grad_pre + ((t * call.rows + row) * 4 + gate) * hidden + begin, 0, bytes);
    }
}

template <bool kPlain>
void backward_step(const BackwardTask& task, int64_t t, Range rows, Range blocks) {
    const UnrolledBackward& call = task.call;
    const int64_t units = call.hidden < blocks.end * kBlockColumns ? call.hidden : blocks.end * kBlockColumns;
    for (int64_t chunk = rows.begin; chunk < rows.end; chunk += kRowChunk) {
        int64_t live[kRowChunk], count = 0;
        const int64_t end = chunk + kRowChunk < rows.end ? chunk + kRowChunk : rows.end;
        for (int64_t row = chunk; row < end; ++row) {
            if (t >= 0 && call.lengths != nullptr && call.lengths[row] <= t) {
                clear_ended(call, t, row, blocks.begin * kBlockColumns, units);
            } else {
                live[count++] = row;
            }
        }
        for (int64_t k = blocks.begin; k < blocks.end; ++k) {
            const int64_t block = t % 2 ? blocks.end - 1 - (k - blocks.begin) : k;
            for_each_tile(count, BackwardStep<kPlain>{call, task.packed, task.zeros, t, block, live});
        }
    }
}

// Row (gate, j) of the block's panel: W_h[n, gate, j] for the block's n, 0 behind the last.
inline void pack_backward(const BackwardTask& task, int64_t block, int64_t gate) {
    const int64_t hidden = task.call.hidden, unit = block * kBlockColumns;
    const int64_t units = hidden - unit < kBlockColumns ? hidden - unit : kBlockColumns;
    float* to = task.packed + (block * 4 + gate) * hidden * kBlockColumns;
    if (units < kBlockColumns) std::memset(to, 0, hidden * kBlockColumns * 4);
    constexpr int64_t kTile = 16;
    for (int64_t j = 0; j < hidden; j += kTile) {
        const int64_t width = hidden - j < kTile ? hidden - j : kTile;
        for (int64_t n = 0; n < units; ++n) {
            const float* from = task.call.w_h + ((unit + n) * 4 + gate) * hidden + j;
            for (int64_t k = 0; k < width; ++k) to[(j + k) * kBlockColumns + n] = from[k];
        }
    }
}

template <bool kPlain>
void backward(const void* given, int64_t phase, int64_t slot) {
    const BackwardTask& task = *static_cast<const BackwardTask*>(given);
    const Grid& grid = task.grid;
    const int64_t blocks = blocks_of(task.call.hidden, kBlockColumns);
    if (phase == 0) {
        const Range share = part(blocks * 4, grid.slots(), slot);
        for (int64_t k = share.begin; k < share.end; ++k) pack_backward(task, k / 4, k % 4);
        return;
    }
    const Range rows = part(task.call.rows, grid.row_groups, slot / grid.unit_groups);
    const Range mine = part(blocks, grid.unit_groups, slot % grid.unit_groups);
    if (grid.unit_groups > 1) return backward_step<kPlain>(task, task.call.steps - phase, rows, mine);
    for (int64_t t = task.call.steps - 1; t >= -1; --t) backward_step<kPlain>(task, t, rows, mine);
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
