// Layer normalisation of a row: its moments, and the cell of a whole row, which has to see all sums before any gate.
#pragma once

#include "cell.h"
#include "tile.h"

namespace unrolled {
namespace UNROLLED_ISA {

constexpr float kEpsilon = 1e-5f;

// Sums over the units of a row, in 16 lanes whatever the vector, and then by halves: AVX2 and AVX-512 round alike.
constexpr int kRowLanes = 16;
constexpr int kRowVectors = kRowLanes / kLanes;

template <int kCount>
struct RowSums {
    Vector part[kCount][kRowVectors];

    UNROLLED_INLINE RowSums() {
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) {
#pragma GCC unroll 4
            for (int v = 0; v < kRowVectors; ++v) part[k][v] = zero();
        }
    }

    // `grad` and, in the second half, its product with `standard`.
    UNROLLED_INLINE void add(int which, int v, Vector grad, Vector standard) {
        part[which][v] = part[which][v] + grad;
        part[kCount / 2 + which][v] = fma(grad, standard, part[kCount / 2 + which][v]);
    }

    // All of them, side by side: one after the other they would wait for themselves.
    UNROLLED_INLINE void totals(float (&result)[kCount]) const {
        float four[kCount][4];
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) {
            Vector sum[kRowVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kRowVectors; ++v) sum[v] = part[k][v];
            for (int width = kRowVectors / 2; width > 0; width /= 2) {
                for (int v = 0; v < width; ++v) sum[v] = sum[v] + sum[v + width];
            }
            store_four(four[k], sum[0]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) result[k] = (four[k][0] + four[k][2]) + (four[k][1] + four[k][3]);
    }
};

// Calls run(unit, count, vector) for every vector of a row, `vector` being the one of `RowSums` that it belongs to.
template <typename Run>
UNROLLED_INLINE void for_each_vector(int64_t hidden, const Run& run) {
    for (int64_t unit = 0; unit < hidden; unit += kRowLanes) {
#pragma GCC unroll 4
        for (int v = 0; v < kRowVectors; ++v) {
            const int64_t at = unit + v * kLanes;
            if (at < hidden) run(at, hidden - at, v);
        }
    }
}

// What a row's numbers are normalised with: (x - mean) * factor.
template <int kCount>
struct Moments {
    float mean[kCount], factor[kCount];

    UNROLLED_INLINE Vector standard(int which, Vector x) const {
        return (x - broadcast(mean[which])) * broadcast(factor[which]);
    }
};

// Of `kCount` rows at once; `at(which, unit)` is where a vector of one lies.
template <int kCount, typename At>
UNROLLED_INLINE Moments<kCount> moments(int64_t hidden, const At& at) {
    Moments<kCount> result;
    const float size = static_cast<float>(hidden);
    RowSums<kCount> sum, square;
    for_each_vector(hidden, [&](int64_t unit, int64_t count, int v) UNROLLED_INLINE_LAMBDA {
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) sum.part[k][v] = sum.part[k][v] + load_some(at(k, unit), count);
    });
    float totals[kCount];
    sum.totals(totals);
    for (int k = 0; k < kCount; ++k) result.mean[k] = totals[k] / size;
    for_each_vector(hidden, [&](int64_t unit, int64_t count, int v) UNROLLED_INLINE_LAMBDA {
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) {
            const Vector centred = keep(load_some(at(k, unit), count) - broadcast(result.mean[k]), count);
            square.part[k][v] = fma(centred, centred, square.part[k][v]);
        }
    });
    square.totals(totals);
    for (int k = 0; k < kCount; ++k) result.factor[k] = 1.0f / std::sqrt(totals[k] / size + kEpsilon);
    return result;
}

// Where the four sums of a row lie: of a gate and of a unit, so many floats apart.
struct RowOfSums {
    float* first;
    int64_t gate_stride, unit_stride;

    UNROLLED_INLINE float* operator()(int64_t gate, int64_t unit) const {
        return first + gate * gate_stride + unit * unit_stride;
    }
};

// One row of one step, by which its masks are drawn, and its state before and after. c may be c_before; `gates`
// [4, hidden] may be NULL, and then the sums are there to work in.
struct RowOfStep {
    int64_t row, step;
    const float *c_before, *h_before;
    float *c, *h, *gates;
};

// Rows that go through a step forward together: what one waits for, a sum across its lanes or a root, the others fill.
// Backward that takes longer than one row after the other (docs/experiments.md).
constexpr int kNormRows = 8;

// Some rows, `kNormRows` at most, from their sums on.
template <unsigned kHas>
UNROLLED_NOINLINE void normed_cells(const Options<kHas>& options, int count, const RowOfSums* sums,
                                    const RowOfStep* rows) {
    const int64_t hidden = options.hidden;
    // h waits for all of c, as nothing has held it yet: meanwhile that is in its place, and o where its sum was.
    const auto o_at = [&](int r, int64_t unit) UNROLLED_INLINE_LAMBDA {
        return rows[r].gates != nullptr ? rows[r].gates + 3 * hidden + unit : sums[r](3, unit);
    };
    Moments<4> of_gates[kNormRows];
    for (int r = 0; r < count; ++r) of_gates[r] = moments<4>(hidden, sums[r]);
    for (int r = 0; r < count; ++r) {
        const RowOfStep& at = rows[r];
        for_each_vector(hidden, [&](int64_t unit, int64_t left, int) UNROLLED_INLINE_LAMBDA {
            Vector pre[4];
#pragma GCC unroll 4
            for (int gate = 0; gate < 4; ++gate) {
                const Vector standard = of_gates[r].standard(gate, load_some(sums[r](gate, unit), left));
                pre[gate] = options.normed(gate, unit, standard);
            }
            const Masks masks = options.masks(at.row, at.step, unit);
            const Vector c_before = load_some(at.c_before + unit, left);
            const Gates next = next_gates(pre, c_before, options, unit, masks);
            if (at.gates != nullptr) {
                store_some(at.gates + unit, next.i, left);
                store_some(at.gates + hidden + unit, next.f, left);
                store_some(at.gates + 2 * hidden + unit, next.g, left);
            }
            store_some(o_at(r, unit), next.o, left);
            store_some(at.h + unit, next.c, left);
            const Vector c = options.holds_c()
                                 ? options.held(next.c, c_before, masks.held_c, options.cell.zoneout_c)
                                 : next.c;
            store_some(at.c + unit, c, left);
        });
    }
    Moments<1> of_c[kNormRows];
    for (int r = 0; r < count; ++r) {
        of_c[r] = moments<1>(hidden, [&](int, int64_t unit) UNROLLED_INLINE_LAMBDA { return rows[r].h + unit; });
    }
    for (int r = 0; r < count; ++r) {
        const RowOfStep& at = rows[r];
        for_each_vector(hidden, [&](int64_t unit, int64_t left, int) UNROLLED_INLINE_LAMBDA {
            const Vector seen = options.normed(4, unit, of_c[r].standard(0, load_some(at.h + unit, left)));
            Vector h = load_some(o_at(r, unit), left) * options.squashed(seen);
            if (options.holds_h()) {
                const Mask where = options.masks_of_h(at.row, at.step, unit).held_h;
                h = options.held(h, load_some(at.h_before + unit, left), where, options.cell.zoneout_h);
            }
            store_some(at.h + unit, h, left);
        });
    }
}

// Back from the gradient of standardized numbers to that of the numbers: what it has along the mean and along the
// numbers themselves goes.
template <int kCount>
struct Along {
    float mean[kCount], standard[kCount];

    Along(const RowSums<2 * kCount>& sums, float size) {
        float totals[2 * kCount];
        sums.totals(totals);
        for (int k = 0; k < kCount; ++k) {
            mean[k] = totals[k] / size;
            standard[k] = totals[kCount + k] / size;
        }
    }

    UNROLLED_INLINE Vector through(int which, Vector grad, Vector x, float factor) const {
        const Vector rest = subtract_product(grad - broadcast(mean[which]), x, broadcast(standard[which]));
        return rest * broadcast(factor);
    }
};

// Where a row's gradient of gains and shifts is summed up from step to step.
struct NormGradient {
    float* first;
    int64_t hidden;

    UNROLLED_INLINE void add(int64_t which, int64_t unit, int64_t count, Vector grad, Vector standard) const {
        float *gain = first + which * hidden + unit, *shift = first + (5 + which) * hidden + unit;
        store_some(gain, fma(grad, standard, load_some(gain, count)), count);
        store_some(shift, load_some(shift, count) + grad, count);
    }
};

}  // namespace UNROLLED_ISA
}  // namespace unrolled
