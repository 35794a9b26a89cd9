// The gradient of a product's weights, x^T grad, summed over all rows in order; the bias's falls out on the way.
#pragma once

#include "tasks.h"
#include "tile.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Rows that are packed, and summed in registers from zero, at a time: a first-level cache keeps most of the panel, and
// the rounding error grows with their number and that of the sums, not with the number of all rows.
constexpr int64_t kGradientRows = kGradientScratch / 64;

struct WeightGradientBlock {
    const UnrolledWeightGradient& call;
    const float* packed;
    const float* const* x_rows;  // the rows of x that `packed` holds the gradients of
    int64_t block, count, x_begin;
    bool begins;  // whether grad_w holds nothing yet

    template <int kRows>
    void tile(int64_t first) const {
        const int64_t column = block * kBlockColumns, left = call.columns - column;
        float* out = call.grad_w + (x_begin + first) * call.columns + column;
        Vector sum[kRows][kPanel];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kPanel; ++v) sum[r][v] = zero();
        }
        for (int64_t k = 0; k < count; ++k) {
            const float* x = x_rows[k] + x_begin + first;
            Vector gradients[kPanel];
#pragma GCC unroll 4
            for (int v = 0; v < kPanel; ++v) gradients[v] = load(packed + k * kBlockColumns + v * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const Vector value = broadcast(x[r]);
#pragma GCC unroll 4
                for (int v = 0; v < kPanel; ++v) sum[r][v] = fma(value, gradients[v], sum[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kPanel; ++v) {
                const int64_t at = v * kLanes;
                if (at >= left) continue;
                float* to = out + r * call.columns + at;
                store_some(to, begins ? sum[r][v] : load_some(to, left - at) + sum[r][v], left - at);
            }
        }
    }
};

// Copies one panel of the rows that are not skipped, 0 behind the last column, lists their rows of x, and adds the sum of
// all rows to `bias`; returns how many it copied.
inline int64_t pack_gradient(const UnrolledWeightGradient& call, int64_t block, Range rows, float* to,
                             const float** x_rows, Vector (&bias)[kPanel]) {
    const int64_t column = block * kBlockColumns;
    Vector sum[kPanel] = {zero(), zero(), zero(), zero()};
    int64_t count = 0;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* from = call.grad + row * call.grad_stride + column;
#pragma GCC unroll 4
        for (int v = 0; v < kPanel; ++v) {
            const int64_t left = call.columns - column - v * kLanes;
            const Vector values = left > 0 ? load_some(from + v * kLanes, left) : zero();
            store(to + count * kBlockColumns + v * kLanes, values);
            sum[v] = sum[v] + values;
        }
        x_rows[count] = call.x + row * call.x_stride;
        if (call.skip == nullptr || call.skip[row] == 0) ++count;
    }
    for (int v = 0; v < kPanel; ++v) bias[v] = bias[v] + sum[v];
    return count;
}

inline void weight_gradient(const void* given, int64_t, int64_t slot) {
    const WeightGradientTask& task = *static_cast<const WeightGradientTask*>(given);
    const UnrolledWeightGradient& call = task.call;
    const int64_t blocks = blocks_of(call.columns, kBlockColumns);
    const bool by_columns = blocks >= task.slots;
    const Range columns = by_columns ? part(blocks, task.slots, slot) : Range{0, blocks};
    const Range depth = by_columns ? Range{0, call.depth} : part(call.depth, task.slots, slot);
    float* packed = task.packed + slot * kGradientScratch;
    for (int64_t block = columns.begin; block < columns.end; ++block) {
        Vector bias[kPanel] = {zero(), zero(), zero(), zero()};
        for (int64_t row = 0; row < call.rows; row += kGradientRows) {
            const Range rows{row, call.rows - row < kGradientRows ? call.rows : row + kGradientRows};
            const float* x_rows[kGradientRows];
            const int64_t count = pack_gradient(call, block, rows, packed, x_rows, bias);
            for_each_tile(depth.end - depth.begin,
                          WeightGradientBlock{call, packed, x_rows, block, count, depth.begin, row == 0});
        }
        if (call.grad_bias == nullptr || (!by_columns && slot > 0)) continue;
        for (int v = 0; v < kPanel; ++v) {
            const int64_t at = block * kBlockColumns + v * kLanes;
            if (at < call.columns) store_some(call.grad_bias + at, bias[v], call.columns - at);
        }
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
