// How weights are packed for a step, what a slot needs to know of it, and the table of its kernels.
#pragma once

#include <cstdint>

#include "tasks.h"
#include "unrolled_step.h"

namespace unrolled {

// In front of packed weights, so that a step can refuse those of another size, kind or instruction set.
//
// Behind it lie the panels, one after another. A panel is what 4 vectors of columns need: the gates of a block of
// units, or 4 blocks of a projection's columns. It starts with the bias (int8: then the scales of w_x, then of w_h),
// and then come the weights of x and of h in the order of depth:
//   float32   [k][vector][lane]
//   bfloat16  [k][vectors 0 and 1, 2 and 3][lane][low, high half]
//   int8      [k / 4][vector][lane][k % 4]; with VNNI plus 128
struct alignas(64) Packed {
    uint64_t mark;
    int32_t weights, gated;  // gated: a layer, whose vectors are gates
    int64_t lanes, input, hidden, columns;

    const char* panels() const { return reinterpret_cast<const char*>(this + 1); }
    char* panels() { return reinterpret_cast<char*>(this + 1); }
};
constexpr uint64_t kPackedMark = 0x756e726f6c6c6564;

inline const Packed* packed_at(const void* memory) {
    return reinterpret_cast<const Packed*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
}

struct PackTask {
    Packed* packed;
    const float *w_x, *w_h, *bias;
    int64_t depth_stride, column_stride;  // floats, in w_x and w_h
    int64_t slots;
};

// Rows that share a pass over the panels.
constexpr int64_t kStepRows = 128;

struct StepTask {
    UnrolledStep call;
    Grid grid;
    bool backwards;  // whether the panels of a layer are taken from the last
    char* scratch;   // slot_bytes for each slot
    int64_t slot_bytes;
    int64_t turns;  // phases of a layer: its product, and with layer normalisation the cells of whole rows
};

// Whether a layer has layer normalisation: all of a call's have as many phases.
inline bool normalises(const UnrolledStep& call) {
    for (int64_t layer = 0; layer < call.layers && call.cells != nullptr; ++layer) {
        if (call.cells[layer].norm != nullptr) return true;
    }
    return false;
}

// Several steps. Rows of a chunk are counted in the order of time: `chunk` steps of as many rows as a group has.
struct StepsTask {
    UnrolledStep call;  // x, ids and out with an axis of time behind that of rows
    int64_t steps, chunk;
    Grid grid;
    char* scratch;  // slot_bytes for each slot
    int64_t slot_bytes;
    float* pre;      // [rows, chunk, blocks, 4, lanes]: what the recurrent sums start from
    float* h;        // [rows, chunk, hidden]: of the layer that is at work, or of the one below
    float* h_first;  // [rows, hidden]: what the first step of a chunk goes on from
    int64_t turns;   // phases of a step

    // Phases of a chunk: for each layer the share of x and then its steps, and at last what comes out.
    int64_t phases(int64_t of_steps) const { return call.layers * (1 + of_steps * turns) + 1; }
};

// Bytes of a row of int8 inputs: whole vectors.
inline int64_t int8_row_bytes(int64_t depth) { return (depth + 15) / 16 * 16; }

// What int8 keeps of a row beside its bytes.
struct Int8Row {
    float x_scale, h_scale;
    int32_t x_sum, h_sum;
};

struct StepKernel {
    int64_t lanes;
    Share pack, step, steps;
};

struct StepKernels {
    StepKernel float32, bfloat16, int8;
};

extern const StepKernels kStepBaseline;
#if defined(UNROLLED_X86)
extern const StepKernels kStepAvx2;
extern const StepKernels kStepAvx512;  // without int8, which takes VNNI, or AVX2
extern const StepKernel kStepVnni;     // int8
#endif

}  // namespace unrolled
