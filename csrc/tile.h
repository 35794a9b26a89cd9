// The product at the heart of every kernel: some rows times packed panels, all sums in registers.
#pragma once

#include "threads.h"
#include "vector.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Vectors side by side in a panel: the four gates of a block of units, or four blocks of columns.
constexpr int kPanel = 4;
constexpr int kBlockColumns = kPanel * kLanes;
// Rows of the largest tile: with 32 registers 7 x 4 sums and 4 weights (the row's value comes from memory), with 16
// registers 3 x 4 and the weights from memory.
#if defined(__AVX512F__)
constexpr int kMaxRows = 7;
#else
constexpr int kMaxRows = 3;
#endif
// Rows up to which a tile takes two panels at once: one panel of a single row would leave the multipliers waiting for
// their own results.
constexpr int kMaxPairedRows = kMaxRows == 7 ? 3 : 1;

// Products that are added up in registers before they join the sum: one long chain would round 2,048 times where a
// blocked product rounds 128 + 16 times.
constexpr int64_t kPart = 128;

// Panels of floats: each `stride` floats behind the one before.
struct FloatPanels {
    const float* first;
    int64_t stride;

    template <int kVectors>
    UNROLLED_INLINE void load_at(int64_t k, Vector (&weights)[kVectors]) const {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            weights[v] = load(first + (v / kPanel) * stride + k * kBlockColumns + (v % kPanel) * kLanes);
        }
    }
};

// sum[r][v] += a[r][k] * panels[k][v] for k in begin..end
template <int kRows, int kPanels, typename Panels>
UNROLLED_INLINE void accumulate_part(const float* const (&a)[kRows], int64_t begin, int64_t end, const Panels& panels,
                                     Vector (&sum)[kRows][kPanels * kPanel]) {
    for (int64_t k = begin; k < end; ++k) {
        Vector weights[kPanels * kPanel];
        panels.load_at(k, weights);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Vector value = broadcast(a[r][k]);
#pragma GCC unroll 8
            for (int v = 0; v < kPanels * kPanel; ++v) sum[r][v] = fma(value, weights[v], sum[r][v]);
        }
    }
}

// The same for k in 0..depth, in parts, the first of which goes on from what `sum` holds.
template <int kRows, int kPanels, typename Panels>
UNROLLED_INLINE void accumulate(const float* const (&a)[kRows], int64_t depth, const Panels& panels,
                                Vector (&sum)[kRows][kPanels * kPanel]) {
    accumulate_part<kRows, kPanels>(a, 0, depth < kPart ? depth : kPart, panels, sum);
    for (int64_t k = kPart; k < depth; k += kPart) {
        Vector later[kRows][kPanels * kPanel];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < kPanels * kPanel; ++v) later[r][v] = zero();
        }
        accumulate_part<kRows, kPanels>(a, k, depth - k < kPart ? depth : k + kPart, panels, later);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < kPanels * kPanel; ++v) sum[r][v] = sum[r][v] + later[r][v];
        }
    }
}

template <int kRows, int kVectors>
UNROLLED_INLINE void clear(Vector (&sum)[kRows][kVectors]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][v] = zero();
    }
}

// Calls run.tile<rows>(first) for tiles of nearly equal height that cover 0..count.
template <typename Tile>
UNROLLED_INLINE void for_each_tile(int64_t count, const Tile& run) {
    const int64_t tiles = (count + kMaxRows - 1) / kMaxRows;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const Range rows = part(count, tiles, tile);
        switch (rows.end - rows.begin) {
            case 1: run.template tile<1>(rows.begin); break;
            case 2: run.template tile<2>(rows.begin); break;
            case 3: run.template tile<3>(rows.begin); break;
#if defined(__AVX512F__)
            case 4: run.template tile<4>(rows.begin); break;
            case 5: run.template tile<5>(rows.begin); break;
            case 6: run.template tile<6>(rows.begin); break;
            case 7: run.template tile<7>(rows.begin); break;
#endif
            default: break;
        }
    }
}

UNROLLED_INLINE Vector load_some(const float* from, int64_t count) {
    return count >= kLanes ? load(from) : load(from, static_cast<int>(count));
}
UNROLLED_INLINE void store_some(float* to, Vector x, int64_t count) {
    if (count >= kLanes) {
        store(to, x);
    } else {
        store(to, x, static_cast<int>(count));
    }
}
UNROLLED_INLINE Vector keep(Vector x, int64_t count) {
    return count >= kLanes ? x : first_lanes(x, static_cast<int>(count));
}
UNROLLED_INLINE int64_t blocks_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

}  // namespace UNROLLED_ISA
}  // namespace unrolled
