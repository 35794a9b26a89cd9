// One layer over time, forward: at every step the product with W_h, and in its registers the cell.
//
// With layer normalisation the sums are stored instead, and when those of a row are there, its cell follows. Where h is
// projected, another product follows all cells.
#pragma once

#include "cell.h"
#include "norm.h"
#include "product.h"
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

template <typename Call>
UNROLLED_INLINE bool ended(const Call& call, int64_t t, int64_t row) {
    return call.lengths != nullptr && call.lengths[row] <= t;
}

// The columns of some blocks of a matrix.
inline Range columns_of(Range blocks, int64_t all) {
    return {blocks.begin * kBlockColumns, all < blocks.end * kBlockColumns ? all : blocks.end * kBlockColumns};
}

inline float* sums_at(const UnrolledForward& call, int64_t at) {
    if (call.gates == nullptr) return call.sums + at * 4 * call.hidden;
    return call.gates + (at * 8 + 4) * call.hidden;
}

template <unsigned kHas>
struct ForwardStep {
    const UnrolledForward& call;
    const float* packed;
    const float* zeros;
    int64_t t, block, blocks_left;
    const int64_t* rows;

    bool projects() const { return (kHas & kProjection) != 0 && call.w_hr != nullptr; }
    bool masks_h() const { return (kHas & kMaskOfH) != 0 && call.h_mask != nullptr; }
    int64_t width() const { return projects() ? call.projected : call.hidden; }

    const float* before(const float* sequence, const float* initial, int64_t row, bool kept, int64_t width) const {
        if (call.resets != nullptr && call.resets[t * call.rows + row]) return zeros;
        if (t == 0) return initial + row * width;
        return sequence + (kept ? ((t - 1) * call.rows + row) * width : row * width);
    }
    const float* c_before(int64_t row) const { return before(call.c, call.c0, row, call.keep_c != 0, call.hidden); }
    const float* h_before(int64_t row) const { return before(call.h, call.h0, row, true, width()); }

    // h of the step before, as W_h takes it in.
    const float* taken_in(int64_t row) const {
        const float* h = h_before(row);
        if (!masks_h() || h == zeros) return h;
        return call.h_in + (t % 2 * call.rows + row) * width();
    }

    // What the next step's W_h takes in.
    void leave(int64_t row, int64_t unit, Vector h, int64_t count) const {
        const int64_t at = row * width() + unit;
        float* to = call.h_in + ((t + 1) % 2) * call.rows * width() + at;
        store_some(to, h * load_some(call.h_mask + at, count), count);
    }

    // Where the cell's h goes: where it is projected, that is not h yet.
    float* h_at(int64_t row) const {
        return projects() ? call.unprojected + row * call.hidden : call.h + (t * call.rows + row) * call.hidden;
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
        const int64_t hidden = call.hidden, depth = width(), panel = depth * kBlockColumns, unit = block * kLanes;
        const float* h[kRows];
        for (int r = 0; r < kRows; ++r) h[r] = taken_in(rows[first + r]);
        Vector sum[kRows][kPanels * kPanel];
#pragma GCC unroll 8
        for (int v = 0; v < kPanels * kPanel; ++v) {
            const int64_t offset = (v / kPanel) * kLanes, count = hidden - unit - offset;
            const int64_t at = (v % kPanel) * hidden + unit + offset;
            const Vector bias = call.bias != nullptr ? load_some(call.bias + at, count) : zero();
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const float* pre = call.pre + (t * call.rows + rows[first + r]) * 4 * hidden;
                sum[r][v] = load_some(pre + at, count) + bias;
            }
        }
        accumulate<kRows, kPanels>(h, depth, FloatPanels{packed + block * panel, panel}, sum);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int p = 0; p < kPanels; ++p) finish(rows[first + r], unit + p * kLanes, &sum[r][p * kPanel]);
        }
    }

    UNROLLED_INLINE void finish(int64_t row, int64_t unit, const Vector* sum) const {
        const int64_t hidden = call.hidden, count = hidden - unit, at = t * call.rows + row;
        const Options<kHas> options{call.cell, hidden, projects()};
        if (options.normalises()) {
            float* sums = sums_at(call, at) + unit;
            for (int gate = 0; gate < 4; ++gate) store_some(sums + gate * hidden, sum[gate], count);
            return;
        }
        const Vector c = load_some(c_before(row) + unit, count);
        const Masks masks = options.masks(row, t, unit);
        const Cell cell = next_cell(sum, c, h_before(row) + unit, options, unit, masks);
        if (call.gates != nullptr) {
            float* gates = call.gates + at * 4 * hidden + unit;
            store_some(gates, cell.i, count);
            store_some(gates + hidden, cell.f, count);
            store_some(gates + 2 * hidden, cell.g, count);
            store_some(gates + 3 * hidden, cell.o, count);
        }
        store_some(call.c + (call.keep_c ? at : row) * hidden + unit, cell.c, count);
        store_some(h_at(row) + unit, cell.h, count);
        if (masks_h() && !projects()) leave(row, unit, cell.h, count);
    }

    // The cells of some rows, `kNormRows` at most.
    void normed(const int64_t* of, int count) const {
        const int64_t hidden = call.hidden;
        RowOfSums sums[kNormRows];
        RowOfStep steps[kNormRows];
        for (int r = 0; r < count; ++r) {
            const int64_t row = of[r], at = t * call.rows + row;
            sums[r] = {sums_at(call, at), hidden, 1};
            steps[r] = {row, t, c_before(row), h_before(row), call.c + (call.keep_c ? at : row) * hidden, h_at(row),
                        call.gates != nullptr ? call.gates + at * 8 * hidden : nullptr};
        }
        normed_cells<kHas>({call.cell, hidden, projects()}, count, sums, steps);
        if (!masks_h() || projects()) return;
        for (int r = 0; r < count; ++r) {
            for_each_vector(hidden, [&](int64_t unit, int64_t left, int) {
                leave(of[r], unit, load_some(steps[r].h + unit, left), left);
            });
        }
    }
};

// Some columns of h for some rows of a step, from what their cells have left.
template <unsigned kHas>
struct ProjectionStep {
    const ForwardStep<kHas>& step;
    const float* packed;
    int64_t block;

    template <int kRows>
    void tile(int64_t first) const {
        const UnrolledForward& call = step.call;
        const int64_t hidden = call.hidden, width = call.projected, column = block * kBlockColumns;
        const float* from[kRows];
        for (int r = 0; r < kRows; ++r) from[r] = step.h_at(step.rows[first + r]);
        Vector sum[kRows][kPanel];
        clear(sum);
        accumulate<kRows, 1>(from, hidden, FloatPanels{packed + block * hidden * kBlockColumns, 0}, sum);
        for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kPanel && column + v * kLanes < width; ++v) {
                finish(step.rows[first + r], column + v * kLanes, sum[r][v]);
            }
        }
    }

    UNROLLED_INLINE void finish(int64_t row, int64_t unit, Vector h) const {
        const UnrolledForward& call = step.call;
        const int64_t width = call.projected, count = width - unit;
        const Options<kHas> options{call.cell, width};
        if (options.holds_h()) {
            const Mask where = options.masks_of_h(row, step.t, unit).held_h;
            h = options.held(h, load_some(step.h_before(row) + unit, count), where, call.cell.zoneout_h);
        }
        store_some(call.h + (step.t * call.rows + row) * width + unit, h, count);
        if (step.masks_h()) step.leave(row, unit, h, count);
    }
};

// Of a row that has ended, the units of a block: of h where it is not projected.
inline void clear_ended(const UnrolledForward& call, int64_t t, int64_t row, int64_t begin, int64_t end) {
    const int64_t hidden = call.hidden, at = t * call.rows + row, bytes = (end - begin) * 4;
    if (call.w_hr == nullptr) std::memset(call.h + at * hidden + begin, 0, bytes);
    std::memset(call.c + (call.keep_c ? at : row) * hidden + begin, 0, bytes);
    if (call.gates == nullptr) return;
    const int64_t all = planes(call);
    for (int64_t k = 0; k < all; ++k) std::memset(call.gates + (at * all + k) * hidden + begin, 0, bytes);
}

// The cells of whole rows, behind the step's sums.
template <unsigned kHas>
void normed_step(const ForwardTask& task, int64_t t, Range rows) {
    const UnrolledForward& call = task.call;
    const ForwardStep<kHas> step{call, task.packed, task.zeros, t, 0, 0, nullptr};
    int64_t live[kNormRows];
    int count = 0;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (!ended(call, t, row)) live[count++] = row;
        if (count == kNormRows || row + 1 == rows.end) {
            step.normed(live, count);
            count = 0;
        }
    }
}

// Behind all cells of these rows.
template <unsigned kHas>
void projection_step(const ForwardTask& task, int64_t t, Range rows, Range blocks) {
    const UnrolledForward& call = task.call;
    const Range columns = columns_of(blocks, call.projected);
    for (int64_t chunk = rows.begin; chunk < rows.end; chunk += kRowChunk) {
        int64_t live[kRowChunk], count = 0;
        const int64_t end = chunk + kRowChunk < rows.end ? chunk + kRowChunk : rows.end;
        for (int64_t row = chunk; row < end; ++row) {
            if (ended(call, t, row)) {
                float* h = call.h + (t * call.rows + row) * call.projected;
                std::memset(h + columns.begin, 0, (columns.end - columns.begin) * 4);
            } else {
                live[count++] = row;
            }
        }
        const ForwardStep<kHas> step{call, task.packed, task.zeros, t, 0, 0, live};
        for (int64_t block = blocks.begin; block < blocks.end; ++block) {
            for_each_tile(count, ProjectionStep<kHas>{step, task.packed_hr, block});
        }
    }
}

// The share of a group's rows that one of its slots has, where they take turns with units and with rows.
inline Range own_rows(Range rows, const Grid& grid, int64_t slot) {
    const Range share = part(rows.end - rows.begin, grid.unit_groups, slot % grid.unit_groups);
    return {rows.begin + share.begin, rows.begin + share.end};
}

template <unsigned kHas>
void forward_step(const ForwardTask& task, int64_t t, Range rows, Range blocks) {
    const UnrolledForward& call = task.call;
    const int64_t units = call.hidden < blocks.end * kLanes ? call.hidden : blocks.end * kLanes;
    for (int64_t chunk = rows.begin; chunk < rows.end; chunk += kRowChunk) {
        int64_t live[kRowChunk], count = 0;
        const int64_t end = chunk + kRowChunk < rows.end ? chunk + kRowChunk : rows.end;
        for (int64_t row = chunk; row < end; ++row) {
            if (ended(call, t, row)) {
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
            const ForwardStep<kHas> step{call, task.packed, task.zeros, t, block, left, live};
            for_each_tile(count, step);
        }
    }
}

// What a slot does of a product where slots share rows and columns: columns where there are enough, or else rows.
struct ProductShare {
    Range rows, blocks;

    ProductShare(Range of_rows, int64_t blocks_of_all, const Grid& grid, int64_t slot)
        : rows(of_rows), blocks{0, blocks_of_all} {
        if (blocks_of_all >= grid.unit_groups) {
            blocks = part(blocks_of_all, grid.unit_groups, slot % grid.unit_groups);
        } else {
            rows = own_rows(of_rows, grid, slot);
        }
    }
};

inline void pack_forward(const ForwardTask& task, int64_t block) {
    const int64_t hidden = task.call.hidden, depth = h_width(task.call), unit = block * kLanes;
    float* to = task.packed + block * depth * kBlockColumns;
    for (int64_t k = 0; k < depth; ++k) {
        for (int gate = 0; gate < kPanel; ++gate, to += kLanes) {
            store(to, load_some(task.call.w_h + (k * 4 + gate) * hidden + unit, hidden - unit));
        }
    }
}

// The phases of a step: sums and, without layer normalisation, cells; then with it the cells; then a projection.
template <unsigned kHas>
void phase_of_step(const ForwardTask& task, int64_t t, int64_t turn, Range rows, Range blocks, int64_t slot) {
    const UnrolledForward& call = task.call;
    if (turn == 0) return forward_step<kHas>(task, t, rows, blocks);
    if constexpr ((kHas & kNorm) != 0) {
        if (turn == 1 && call.cell.norm != nullptr) return normed_step<kHas>(task, t, own_rows(rows, task.grid, slot));
    }
    if constexpr ((kHas & kProjection) != 0) {
        const ProductShare share(rows, blocks_of(call.projected, kBlockColumns), task.grid, slot);
        projection_step<kHas>(task, t, share.rows, share.blocks);
    }
}

template <unsigned kHas>
void forward(const void* given, int64_t phase, int64_t slot) {
    const ForwardTask& task = *static_cast<const ForwardTask*>(given);
    const UnrolledForward& call = task.call;
    const Grid& grid = task.grid;
    const int64_t blocks = blocks_of(call.hidden, kLanes);
    const Range mine = part(blocks, grid.unit_groups, slot % grid.unit_groups);
    if (!call.packed && phase-- == 0) {
        const int64_t groups = grid.row_groups;
        const Range share = part(mine.end - mine.begin, groups, slot / grid.unit_groups);
        for (int64_t block = share.begin; block < share.end; ++block) pack_forward(task, mine.begin + block);
        if ((kHas & kProjection) == 0 || call.w_hr == nullptr) return;
        const int64_t width = call.projected;
        const ProductTask product = packing(call.w_hr, call.hidden, width, width, 1, task.packed_hr);
        const Range columns = part(blocks_of(width, kBlockColumns), grid.slots(), slot);
        for (int64_t block = columns.begin; block < columns.end; ++block) pack_product(product, block);
        return;
    }
    const Range rows = part(call.rows, grid.row_groups, slot / grid.unit_groups);
    if (grid.unit_groups > 1) {
        return phase_of_step<kHas>(task, phase / task.turns, phase % task.turns, rows, mine, slot);
    }
    for (int64_t t = 0; t < call.steps; ++t) {
        for (int64_t turn = 0; turn < task.turns; ++turn) phase_of_step<kHas>(task, t, turn, rows, mine, slot);
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
