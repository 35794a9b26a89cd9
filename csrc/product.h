// x w + bias with every sum in one fixed order: the same bits for a row, whatever rows it comes with.
#pragma once

#include "tasks.h"
#include "tile.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Rows whose x stays in the second-level cache while all columns pass by.
constexpr int64_t kProductRows = 128;

struct ProductBlock {
    const UnrolledProduct& call;
    const float* packed;
    int64_t block, row;

    template <int kRows>
    void tile(int64_t first) const {
        const int64_t column = block * kBlockColumns;
        const float* x[kRows];
        for (int r = 0; r < kRows; ++r) x[r] = call.x + (row + first + r) * call.x_stride;
        Vector sum[kRows][kPanel];
#pragma GCC unroll 4
        for (int v = 0; v < kPanel; ++v) {
            const int64_t at = column + v * kLanes;
            const Vector start = call.bias != nullptr && at < call.columns
                                     ? load_some(call.bias + at, call.columns - at)
                                     : zero();
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) sum[r][v] = start;
        }
        accumulate<kRows, 1>(x, call.depth, FloatPanels{packed + block * call.depth * kBlockColumns, 0}, sum);
        for (int r = 0; r < kRows; ++r) {
            float* out = call.out + (row + first + r) * call.columns + column;
            for (int v = 0; v < kPanel && column + v * kLanes < call.columns; ++v) {
                store_some(out + v * kLanes, sum[r][v], call.columns - column - v * kLanes);
            }
        }
    }
};

inline void pack_product(const ProductTask& task, int64_t block) {
    const UnrolledProduct& call = task.call;
    const int64_t column = block * kBlockColumns;
    const int64_t columns = call.columns - column < kBlockColumns ? call.columns - column : kBlockColumns;
    float* to = task.packed + block * call.depth * kBlockColumns;
    if (columns < kBlockColumns) std::memset(to, 0, call.depth * kBlockColumns * 4);
    if (call.w_column_stride == 1) {
        for (int64_t k = 0; k < call.depth; ++k) {
            std::memcpy(to + k * kBlockColumns, call.w + k * call.w_depth_stride + column, columns * 4);
        }
        return;
    }
    constexpr int64_t kTile = 16;
    for (int64_t j = 0; j < call.depth; j += kTile) {
        const int64_t width = call.depth - j < kTile ? call.depth - j : kTile;
        for (int64_t n = 0; n < columns; ++n) {
            const float* from = call.w + (column + n) * call.w_column_stride + j * call.w_depth_stride;
            for (int64_t k = 0; k < width; ++k) to[(j + k) * kBlockColumns + n] = from[k * call.w_depth_stride];
        }
    }
}

// A task to pack w [depth, columns] alone.
inline ProductTask packing(const float* w, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride,
                           float* packed) {
    UnrolledProduct call{};
    call.depth = depth;
    call.columns = columns;
    call.w = w;
    call.w_depth_stride = depth_stride;
    call.w_column_stride = column_stride;
    return {call, 1, packed};
}

inline void product(const void* given, int64_t phase, int64_t slot) {
    const ProductTask& task = *static_cast<const ProductTask*>(given);
    const UnrolledProduct& call = task.call;
    const int64_t blocks = blocks_of(call.columns, kBlockColumns);
    if (!call.packed && phase == 0) {
        const Range share = part(blocks, task.slots, slot);
        for (int64_t block = share.begin; block < share.end; ++block) pack_product(task, block);
        return;
    }
    const int64_t strips = blocks_of(call.rows, kProductRows);
    // Few rows: the slots share the columns; many: the rows, and each reads all columns from the shared cache.
    const bool by_rows = strips >= task.slots;
    const Range rows = by_rows ? part(call.rows, task.slots, slot) : Range{0, call.rows};
    const Range columns = by_rows ? Range{0, blocks} : part(blocks, task.slots, slot);
    for (int64_t row = rows.begin; row < rows.end; row += kProductRows) {
        const int64_t count = rows.end - row < kProductRows ? rows.end - row : kProductRows;
        for (int64_t block = columns.begin; block < columns.end; ++block) {
            for_each_tile(count, ProductBlock{call, task.packed, block, row});
        }
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
