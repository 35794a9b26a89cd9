// A stack one step at a time: numbers, packed weights, calls, and the loops that say what should come out.
#pragma once

#include <memory>

#include "buffers.h"
#include "near.h"
#include "unrolled_step.h"

namespace driver {

struct StackCase {
    int64_t layers, rows, input, hidden;
    int64_t output;      // -1 for no projection
    int64_t vocabulary;  // above 0: ids come in, and input is 0
    bool has_bias;
};

struct LayerWeights {
    Floats w_x, w_h, bias;
};

struct Stack {
    Stack(const StackCase& given, Random& random);

    UnrolledCell cell(int64_t layer) const;

    StackCase sizes;
    std::vector<LayerWeights> layers;
    Floats projection, projection_bias, table, x, h, c, peephole, norm;
    // Whether the layers have peepholes and bounds of c, and every other one hard gates and layer normalisation.
    bool cells = false;
    std::vector<int64_t> ids;
};

// What steps read; `h` and `c` [layers, rows, hidden], x [rows, steps, input] or ids [rows, steps].
struct StepsCase {
    Floats x;
    std::vector<int64_t> ids;
    Floats h, c;
    int64_t steps;
};

// What steps left behind; out is the top layer's h where there is no projection.
struct StepResult {
    Floats h, c, out;
};

// Weights packed for one instruction set, each in memory of its own.
class PackedStack {
   public:
    PackedStack(const UnrolledRun& run, int32_t weights, const Stack& stack, Place place);

    // A step from the stack's x or ids. `downwards`: h_after lies below h_before, which turns the order of panels.
    StepResult step(const UnrolledRun& run, const Floats& h, const Floats& c, Place place, bool downwards) const;
    StepResult steps(const UnrolledRun& run, const StepsCase& given, Place place) const;

   private:
    StepResult take(const UnrolledRun& run, const StepsCase& given, Place place, bool downwards, bool several) const;

    const Stack& stack_;
    int32_t weights_;
    std::vector<std::unique_ptr<Buffer<char>>> layers_;
    std::unique_ptr<Buffer<char>> projection_;
};

// Each layer against a loop that starts from what the kernel itself stored of the layer below.
void check_step(const Stack& stack, int32_t weights, const Floats& h, const Floats& c, const StepResult& result);

// The weights as bfloat16 keeps them, in float32.
Stack rounded_to_bfloat16(const Stack& stack);

// What unrolled_product and unrolled_forward make of the same step.
StepResult by_sequence_kernels(const UnrolledRun& run, const Stack& stack, const Floats& h, const Floats& c);

}  // namespace driver
