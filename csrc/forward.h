// One layer over time, forward: at every step the product with W_h, and in its registers the cell.
//
// With layer normalisation the sums are stored instead, and when those of a row are there, its cell follows.
#pragma once

#include "cell.h"
#include "norm.h"
#include "tasks.h"
#include "tile.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Rows that are handled together before the next panel of weights: their list lives on the stack.
constexpr int64_t kRowChunk = 128;

template <typename Call>
UNROLLED_INLINE int64_t planes(const Call& call) {
    return call.cell.norm != nullptr ? 8 : 4;
}

inline float* sums_at(const UnrolledForward& call, int64_t at) {
    if (call.gates == nullptr) return call.sums + at * 4 * call.hidden;
    return call.gates + (at * 8 + 4) * call.hidden;
}

template <bool kPlain>
struct ForwardStep {
    const UnrolledForward& call;
    const float* packed;
    const float* zeros;
    int64_t t, block, blocks_left;
    const int64_t* rows;

    const float* before(const float* sequence, const float* initial, int64_t row, bool kept) const {
        const int64_t hidden = call.hidden;
        if (call.resets != nullptr && call.resets[t * call.rows + row]) return zeros;
        if (t == 0) return initial + row * hidden;
        return sequence + (kept ? ((t - 1) * call.rows + row) * hidden : row * hidden);
    }

    // h of the step before, as W_h takes it in.
    const float* taken_in(int64_t row) const {
        const float* h = before(call.h, call.h0, row, true);
        if (kPlain || call.h_mask == nullptr || h == zeros) return h;
        return call.h_in + (t % 2 * call.rows + row) * call.hidden;
    }

    // What the next step's W_h takes in.
    void leave(int64_t row, int64_t unit, Vector h, int64_t count) const {
        const int64_t at = row * call.hidden + unit;
        float* to = call.h_in + ((t + 1) % 2) * call.rows * call.hidden + at;
        store_some(to, h * load_some(call.h_mask + at, count), count);
    }

    template <int kRows>
    void tile(int64_t first) const {
        if constexpr (kRows <= kMaxPairedRows) {
            if (blocks_left >= 2) return panels<kRows, 2>(first);
        }
        panels<kRows, 1>(first);
    }

    template <int kRows, int kPanels>
    void panels(int64_t first) const {
        const int64_t hidden = call.hidden, panel = hidden * kBlockColumns, unit = block * kLanes;
        const float* h_before[kRows];
        for (int r = 0; r < kRows; ++r) h_before[r] = taken_in(rows[first + r]);
        Vector sum[kRows][kPanels * kPanel];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const float* pre = call.pre + (t * call.rows + rows[first + r]) * 4 * hidden + unit;
#pragma GCC unroll 8
            for (int v = 0; v < kPanels * kPanel; ++v) {
                const int64_t offset = (v / kPanel) * kLanes;
                sum[r][v] = load_some(pre + (v % kPanel) * hidden + offset, hidden - unit - offset);
            }
        }
        accumulate<kRows, kPanels>(h_before, hidden, FloatPanels{packed + block * panel, panel}, sum);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int p = 0; p < kPanels; ++p) finish(rows[first + r], unit + p * kLanes, &sum[r][p * kPanel]);
        }
    }

    UNROLLED_INLINE void finish(int64_t row, int64_t unit, const Vector* sum) const {
        const int64_t hidden = call.hidden, count = hidden - unit, at = t * call.rows + row;
        const bool kept = call.keep_c != 0;
        const Options<kPlain> options{call.cell, hidden};
        if (options.normalises()) {
            float* sums = sums_at(call, at) + unit;
            for (int gate = 0; gate < 4; ++gate) store_some(sums + gate * hidden, sum[gate], count);
            return;
        }
        const float* c_before = before(call.c, call.c0, row, kept) + unit;
        const float* h_before = before(call.h, call.h0, row, true) + unit;
        const Masks masks = options.masks(row, t, unit);
        const Cell cell = next_cell(sum, load_some(c_before, count), h_before, options, unit, masks);
        if (call.gates != nullptr) {
            float* gates = call.gates + at * 4 * hidden + unit;
            store_some(gates, cell.i, count);
            store_some(gates + hidden, cell.f, count);
            store_some(gates + 2 * hidden, cell.g, count);
            store_some(gates + 3 * hidden, cell.o, count);
        }
        store_some(call.c + (kept ? at : row) * hidden + unit, cell.c, count);
        store_some(call.h + at * hidden + unit, cell.h, count);
        if (!kPlain && call.h_mask != nullptr) leave(row, unit, cell.h, count);
    }

    void normed(int64_t row) const {
        const int64_t hidden = call.hidden, at = t * call.rows + row;
        const bool kept = call.keep_c != 0;
        normed_cell({call.cell, hidden}, {sums_at(call, at), hidden, 1},
                    {row, t, before(call.c, call.c0, row, kept), before(call.h, call.h0, row, true),
                     call.c + (kept ? at : row) * hidden, call.h + at * hidden,
                     call.gates != nullptr ? call.gates + at * 8 * hidden : nullptr});
        if (call.h_mask == nullptr) return;
        for_each_vector(hidden, [&](int64_t unit, int64_t count, int) {
            leave(row, unit, load_some(call.h + at * hidden + unit, count), count);
        });
    }
};

inline void clear_ended(const UnrolledForward& call, int64_t t, int64_t row, int64_t begin, int64_t end) {
    const int64_t hidden = call.hidden, at = t * call.rows + row, bytes = (end - begin) * 4;
    std::memset(call.h + at * hidden + begin, 0, bytes);
    std::memset(call.c + (call.keep_c ? at : row) * hidden + begin, 0, bytes);
    if (call.gates == nullptr) return;
    const int64_t all = planes(call);
    for (int64_t k = 0; k < all; ++k) std::memset(call.gates + (at * all + k) * hidden + begin, 0, bytes);
}

// The cells of whole rows, behind the step's sums.
inline void normed_step(const ForwardTask& task, int64_t t, Range rows) {
    const UnrolledForward& call = task.call;
    const ForwardStep<false> step{call, task.packed, task.zeros, t, 0, 0, nullptr};
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (call.lengths == nullptr || call.lengths[row] > t) step.normed(row);
    }
}

// The share of a group's rows that one of its slots has, where they take turns with units and with rows.
inline Range own_rows(Range rows, const Grid& grid, int64_t slot) {
    const Range share = part(rows.end - rows.begin, grid.unit_groups, slot % grid.unit_groups);
    return {rows.begin + share.begin, rows.begin + share.end};
}

template <bool kPlain>
void forward_step(const ForwardTask& task, int64_t t, Range rows, Range blocks) {
    const UnrolledForward& call = task.call;
    const int64_t units = call.hidden < blocks.end * kLanes ? call.hidden : blocks.end * kLanes;
    for (int64_t chunk = rows.begin; chunk < rows.end; chunk += kRowChunk) {
        int64_t live[kRowChunk], count = 0;
        const int64_t end = chunk + kRowChunk < rows.end ? chunk + kRowChunk : rows.end;
        for (int64_t row = chunk; row < end; ++row) {
            if (call.lengths != nullptr && call.lengths[row] <= t) {
                clear_ended(call, t, row, blocks.begin * kLanes, units);
            } else {
                live[count++] = row;
            }
        }
        // Up and down in turn: the panels that the last step ended with are still in the cache.
        const bool paired = count <= kMaxPairedRows;
        const int64_t width = paired ? 2 : 1, groups = blocks_of(blocks.end - blocks.begin, width);
        for (int64_t k = 0; k < groups; ++k) {
            const int64_t block = blocks.begin + width * (t % 2 ? groups - 1 - k : k);
            const int64_t left = paired ? blocks.end - block : 1;
            const ForwardStep<kPlain> step{call, task.packed, task.zeros, t, block, left, live};
            for_each_tile(count, step);
        }
    }
}

inline void pack_forward(const ForwardTask& task, int64_t block) {
    const int64_t hidden = task.call.hidden, unit = block * kLanes;
    float* to = task.packed + block * hidden * kBlockColumns;
    for (int64_t k = 0; k < hidden; ++k) {
        for (int gate = 0; gate < kPanel; ++gate, to += kLanes) {
            store(to, load_some(task.call.w_h + (k * 4 + gate) * hidden + unit, hidden - unit));
        }
    }
}

template <bool kPlain>
void forward(const void* given, int64_t phase, int64_t slot) {
    const ForwardTask& task = *static_cast<const ForwardTask*>(given);
    const Grid& grid = task.grid;
    const int64_t blocks = blocks_of(task.call.hidden, kLanes);
    const Range mine = part(blocks, grid.unit_groups, slot % grid.unit_groups);
    if (!task.call.packed && phase-- == 0) {
        const int64_t groups = grid.row_groups;
        const Range share = part(mine.end - mine.begin, groups, slot / grid.unit_groups);
        for (int64_t block = share.begin; block < share.end; ++block) pack_forward(task, mine.begin + block);
        return;
    }
    const Range rows = part(task.call.rows, grid.row_groups, slot / grid.unit_groups);
    const bool normalises = !kPlain && task.call.cell.norm != nullptr;
    if (grid.unit_groups > 1) {
        if (!normalises) return forward_step<kPlain>(task, phase, rows, mine);
        if (phase % 2 == 0) return forward_step<kPlain>(task, phase / 2, rows, mine);
        return normed_step(task, phase / 2, own_rows(rows, grid, slot));
    }
    for (int64_t t = 0; t < task.call.steps; ++t) {
        forward_step<kPlain>(task, t, rows, mine);
        if (normalises) normed_step(task, t, rows);
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
