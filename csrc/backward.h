// One layer over time, backward: the gradients of the pre-activations, step by step from the last.
//
// Where h is projected, a step's first product leaves the gradient of h for a second one, back through the projection;
// with layer normalisation what reaches h is stored, and when that is there for a row, its cell follows.
#pragma once

#include "backward_cell.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Some units of c for some rows of a step, from the gradient of the h that they were projected to.
template <unsigned kHas>
struct BackwardProjection {
    const BackwardStep<kHas>& step;
    const float* packed;
    int64_t block;

    template <int kRows>
    void tile(int64_t first) const {
        const UnrolledBackward& call = step.call;
        const int64_t hidden = call.hidden, width = call.projected, unit = block * kBlockColumns;
        const float* from[kRows];
        for (int r = 0; r < kRows; ++r) {
            from[r] = call.grad_projected + (step.t * call.rows + step.rows[first + r]) * width;
        }
        Vector sum[kRows][kPanel];
        clear(sum);
        accumulate<kRows, 1>(from, width, FloatPanels{packed + block * width * kBlockColumns, 0}, sum);
        for (int r = 0; r < kRows; ++r) {
            const int64_t row = step.rows[first + r];
            for (int v = 0; v < kPanel && unit + v * kLanes < hidden; ++v) {
                const int64_t at = unit + v * kLanes;
                if (step.normalises()) {
                    store_some(call.unprojected + row * hidden + at, sum[r][v], hidden - at);
                } else {
                    step.cell(row, at, sum[r][v]);
                }
            }
        }
    }
};

// Of a row that has ended, some columns of what its h has left to the step before.
inline void clear_ended_h(const UnrolledBackward& call, int64_t t, int64_t row, Range columns) {
    const int64_t width = h_width(call), bytes = (columns.end - columns.begin) * 4;
    std::memset(call.grad_h0 + row * width + columns.begin, 0, bytes);
    if (call.w_hr == nullptr) return;
    std::memset(call.grad_projected + (t * call.rows + row) * width + columns.begin, 0, bytes);
}

// The same of its cells.
inline void clear_ended(const UnrolledBackward& call, int64_t t, int64_t row, Range units) {
    const int64_t hidden = call.hidden, bytes = (units.end - units.begin) * 4;
    std::memset(call.grad_c0 + row * hidden + units.begin, 0, bytes);
    for (int gate = 0; gate < 4; ++gate) {
        std::memset(call.grad_pre + ((t * call.rows + row) * 4 + gate) * hidden + units.begin, 0, bytes);
    }
}

// Calls run(count, rows) for the rows that have not ended, some at a time, and clear(row) for the others.
template <typename Clear, typename Run>
UNROLLED_INLINE void for_live_rows(const UnrolledBackward& call, int64_t t, Range rows, const Clear& clear,
                                   const Run& run) {
    for (int64_t chunk = rows.begin; chunk < rows.end; chunk += kRowChunk) {
        int64_t live[kRowChunk], count = 0;
        const int64_t end = chunk + kRowChunk < rows.end ? chunk + kRowChunk : rows.end;
        for (int64_t row = chunk; row < end; ++row) {
            if (t >= 0 && ended(call, t, row)) {
                clear(row);
            } else {
                live[count++] = row;
            }
        }
        run(count, live);
    }
}

template <unsigned kHas>
void backward_step(const BackwardTask& task, int64_t t, Range rows, Range blocks) {
    const UnrolledBackward& call = task.call;
    const Range columns = columns_of(blocks, (kHas & kProjection) != 0 ? h_width(call) : call.hidden);
    const auto clear = [&](int64_t row) {
        clear_ended_h(call, t, row, columns);
        if ((kHas & kProjection) == 0 || call.w_hr == nullptr) clear_ended(call, t, row, columns);
    };
    for_live_rows(call, t, rows, clear, [&](int64_t count, const int64_t* live) {
        for (int64_t k = blocks.begin; k < blocks.end; ++k) {
            const int64_t block = t % 2 ? blocks.end - 1 - (k - blocks.begin) : k;
            for_each_tile(count, BackwardStep<kHas>{call, task.packed, task.zeros, t, block, live});
        }
    });
}

// Back through the projection, behind all that reaches h.
template <unsigned kHas>
void projection_step(const BackwardTask& task, int64_t t, Range rows, Range blocks) {
    const UnrolledBackward& call = task.call;
    const Range units = columns_of(blocks, call.hidden);
    const auto clear = [&](int64_t row) { clear_ended(call, t, row, units); };
    for_live_rows(call, t, rows, clear, [&](int64_t count, const int64_t* live) {
        const BackwardStep<kHas> step{call, task.packed, task.zeros, t, 0, live};
        for (int64_t block = blocks.begin; block < blocks.end; ++block) {
            for_each_tile(count, BackwardProjection<kHas>{step, task.packed_hr, block});
        }
    });
}

// The cells of whole rows, behind the step's products.
template <unsigned kHas>
void normed_step(const BackwardTask& task, int64_t t, Range rows) {
    const UnrolledBackward& call = task.call;
    const BackwardStep<kHas> step{call, task.packed, task.zeros, t, 0, nullptr};
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (!ended(call, t, row)) step.normed(row);
    }
}

// Row (gate, j) of the block's panel: W_h[n, gate, j] for the block's n, 0 behind the last.
inline void pack_backward(const BackwardTask& task, int64_t block, int64_t gate) {
    const int64_t hidden = task.call.hidden, unit = block * kBlockColumns, left = h_width(task.call) - unit;
    const int64_t units = left < kBlockColumns ? left : kBlockColumns;
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

// All weights, of which a slot has its share.
inline void pack_all(const BackwardTask& task, int64_t slot) {
    const UnrolledBackward& call = task.call;
    const int64_t slots = task.grid.slots(), panels = 4 * blocks_of(h_width(call), kBlockColumns);
    const Range share = part(panels, slots, slot);
    for (int64_t k = share.begin; k < share.end; ++k) pack_backward(task, k / 4, k % 4);
    if (call.w_hr == nullptr) return;
    const int64_t width = call.projected;
    const ProductTask product = packing(call.w_hr, width, call.hidden, 1, width, task.packed_hr);
    const Range columns = part(blocks_of(call.hidden, kBlockColumns), slots, slot);
    for (int64_t block = columns.begin; block < columns.end; ++block) pack_product(product, block);
}

// The phases of a step: what reaches h and, without more, the cells; back through a projection; and with layer
// normalisation the cells.
template <unsigned kHas>
void phase_of_step(const BackwardTask& task, int64_t t, int64_t turn, Range rows, int64_t slot) {
    const UnrolledBackward& call = task.call;
    const bool projects = (kHas & kProjection) != 0 && call.w_hr != nullptr;
    if constexpr ((kHas & kNorm) != 0) {
        if (turn > (projects ? 1 : 0)) return normed_step<kHas>(task, t, own_rows(rows, task.grid, slot));
    }
    const int64_t columns = projects && turn == 0 ? call.projected : call.hidden;
    const ProductShare share(rows, blocks_of(columns, kBlockColumns), task.grid, slot);
    if (turn == 0) return backward_step<kHas>(task, t, share.rows, share.blocks);
    if constexpr ((kHas & kProjection) != 0) projection_step<kHas>(task, t, share.rows, share.blocks);
}

template <unsigned kHas>
void backward(const void* given, int64_t phase, int64_t slot) {
    const BackwardTask& task = *static_cast<const BackwardTask*>(given);
    const Grid& grid = task.grid;
    if (phase-- == 0) return pack_all(task, slot);
    const Range rows = part(task.call.rows, grid.row_groups, slot / grid.unit_groups);
    const int64_t last = task.call.steps - 1, turns = task.turns;
    if (grid.unit_groups > 1) {
        return phase_of_step<kHas>(task, last - phase / turns, phase % turns, rows, slot);
    }
    for (int64_t t = last; t >= -1; --t) {
        for (int64_t turn = 0; turn < (t >= 0 ? turns : 1); ++turn) phase_of_step<kHas>(task, t, turn, rows, slot);
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
