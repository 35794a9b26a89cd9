// What a slot needs to know of a call, and the table of one instruction set's kernels.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "threads.h"
#include "unrolled.h"

namespace unrolled {

// Slots form a grid: `row_groups` divide the batch, `unit_groups` the hidden units. Only units of a row wait for each
// other at every step; with one unit group a slot runs through all steps on its own.
struct Grid {
    int64_t row_groups, unit_groups;
    int64_t slots() const { return row_groups * unit_groups; }
};

// NULL, or what is wrong with a cell's options; written so that NaN is no bound.
inline const char* check_cell(const UnrolledCell& cell) {
    if (!(cell.clip >= 0.0f)) return "the bound of c must be positive, or 0 for none";
    for (const float likely : {cell.zoneout_h, cell.zoneout_c, cell.dropout}) {
        if (!(likely >= 0.0f && likely <= 1.0f)) return "what is held or dropped must be so with a likelihood of 0 to 1";
    }
    if (cell.keys == nullptr && cell.dropout > 0.0f) return "nothing is dropped without keys";
    return nullptr;
}

// How many numbers of a unit the gradient of a row's cell is.
inline int64_t gradient_planes(const UnrolledCell& cell) {
    return (cell.norm != nullptr ? 10 : 0) + (cell.peephole != nullptr ? 3 : 0);
}

// How many numbers h is, for which everything below says H where it is not projected.
template <typename Call>
inline int64_t h_width(const Call& call) {
    return call.w_hr != nullptr ? call.projected : call.hidden;
}

struct ForwardTask {
    UnrolledForward call;
    Grid grid;
    float* packed;       // [unit block][H][4][lanes]
    float* packed_hr;    // [block of 4 vectors][H][4 lanes]: W_hr
    const float* zeros;  // [H], the state of a row that starts afresh
    int64_t turns;       // phases of a step
};

struct BackwardTask {
    UnrolledBackward call;
    Grid grid;
    float* packed;       // [block of 4 vectors][4 H][4 lanes]: W_h transposed
    float* packed_hr;    // [block of 4 vectors][P][4 lanes]: W_hr transposed
    const float* zeros;  // [H]
    int64_t turns;       // phases of a step
};

struct ProductTask {
    UnrolledProduct call;
    int64_t slots;
    float* packed;  // [block of 4 vectors][depth][4 lanes]
};

struct RandomWordsTask {
    UnrolledRandomWords call;
    int64_t slots;
};

struct MultiplierTask {
    UnrolledMultiplier call;
    int64_t slots;
};

// Floats of gradient that each slot packs at a time.
constexpr int64_t kGradientScratch = 128 * 64;

struct WeightGradientTask {
    UnrolledWeightGradient call;
    int64_t slots;
    float* packed;  // [slots][rows at a time][4 lanes]
};

// A cell's options, for which a kernel has code or has none. kDraws: zoneout and recurrent dropout, with keys or without.
constexpr unsigned kPeephole = 1, kClip = 2, kActivations = 4, kDraws = 8, kMaskOfH = 16, kNorm = 32, kProjection = 64;
constexpr unsigned kEverything = 127;

// The kernels of a sequence: a call runs by the first that has code for all of its options. The one with code for
// everything does not fit into an instruction cache.
constexpr int kSequenceKernels = 5;
constexpr unsigned kKernelsFor[kSequenceKernels] = {0, kPeephole | kClip, kDraws | kMaskOfH, kNorm, kEverything};

struct Kernels {
    int64_t lanes;
    Share forward[kSequenceKernels], backward[kSequenceKernels], product, weight_gradient, random_words, multiplier;
    void (*sigmoid)(const float* x, float* y, int64_t count);
    void (*tanh)(const float* x, float* y, int64_t count);
};

extern const Kernels kBaseline;
#if defined(UNROLLED_X86)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace unrolled
