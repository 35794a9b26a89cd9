// The step over its grid of sizes, kinds of weights, inputs and outputs.
#include <limits>

#include "check.h"
#include "stack.h"
#include "stages.h"

namespace driver {
namespace {

constexpr int32_t kWeights[] = {UNROLLED_FLOAT32, UNROLLED_BFLOAT16, UNROLLED_INT8};
constexpr int64_t kThreads[] = {2, 3, 5, 16};

void check_same_results(const StepResult& got, const StepResult& expected) {
    check_same("h", got.h.data(), expected.h);
    check_same("c", got.c.data(), expected.c);
    check_same("out", got.out.data(), expected.out);
}

// Against the loop, then for the same bits elsewhere, with more threads and in the other order, then for those of the
// sequence kernels.
void run_step(const char* set, const Stack& stack, int32_t weights, int64_t turn) {
    const UnrolledRun one{set, 1}, several{set, kThreads[turn % 4]};
    const bool downwards = turn % 2 == 1;
    const PackedStack packed(one, weights, stack, kPlaces[turn % 3]);
    const StepResult result = packed.step(one, stack.h, stack.c, kPlaces[(turn + 1) % 3], downwards);
    const Stack rounded = weights == UNROLLED_BFLOAT16 ? rounded_to_bfloat16(stack) : stack;
    // With options, the sequence kernels say what should come out: they have loops of their own to be held against.
    if (!stack.cells) check_step(rounded, weights, stack.h, stack.c, result);
    const PackedStack other(several, weights, stack, kPlaces[(turn + 1) % 3]);
    check_same_results(other.step(several, stack.h, stack.c, kPlaces[(turn + 2) % 3], !downwards), result);
    if (weights != UNROLLED_INT8) check_same_results(by_sequence_kernels(one, rounded, stack.h, stack.c), result);
}

// Several steps at once have the bits of one after the other, also in a chunk that is not full and behind one that is.
void run_several(const char* set, Stack stack, int32_t weights, int64_t turn, int64_t steps) {
    Random random(static_cast<uint64_t>(turn));
    const StackCase& sizes = stack.sizes;
    const int64_t rows = sizes.rows, width = sizes.output < 0 ? sizes.hidden : sizes.output;
    StepsCase given{random.floats(rows * steps * sizes.input, 2.0f), {}, stack.h, stack.c, steps};
    for (int64_t k = 0; k < rows * steps && sizes.vocabulary > 0; ++k) given.ids.push_back(random.below(sizes.vocabulary));
    const UnrolledRun one{set, 1}, several{set, kThreads[turn % 4]};
    const PackedStack packed(one, weights, stack, kPlaces[turn % 3]);
    StepResult expected{stack.h, stack.c, Floats(static_cast<std::size_t>(rows * steps * width))};
    for (int64_t t = 0; t < steps; ++t) {
        for (int64_t row = 0; row < rows; ++row) {
            const float* from = given.x.data() + (row * steps + t) * sizes.input;
            std::copy(from, from + sizes.input, stack.x.data() + row * sizes.input);
            if (sizes.vocabulary > 0) stack.ids.data()[row] = given.ids.data()[row * steps + t];
        }
        const StepResult result = packed.step(one, expected.h, expected.c, Place::heap, t % 2 == 1);
        expected.h = result.h;
        expected.c = result.c;
        for (int64_t row = 0; row < rows; ++row) {
            const float* from = result.out.data() + row * width;
            std::copy(from, from + width, expected.out.data() + (row * steps + t) * width);
        }
    }
    check_same_results(packed.steps(one, given, kPlaces[(turn + 1) % 3]), expected);
    check_same_results(packed.steps(several, given, kPlaces[(turn + 2) % 3]), expected);
}

void run_stack(const StackCase& sizes, int64_t& turn, bool cells = false) {
    Random random(static_cast<uint64_t>(turn));
    Stack stack(sizes, random);
    stack.cells = cells;
    for (const std::string& set : instruction_sets()) {
        for (const int32_t weights : kWeights) {
            about(words(set.c_str(), {{"weights", weights},
                                      {"layers", sizes.layers},
                                      {"rows", sizes.rows},
                                      {"input", sizes.input},
                                      {"hidden", sizes.hidden},
                                      {"output", sizes.output},
                                      {"vocabulary", sizes.vocabulary},
                                      {"turn", turn}}));
            run_step(set.c_str(), stack, weights, turn);
            run_several(set.c_str(), stack, weights, turn, 1 + turn % 11);
            ++turn;
        }
    }
}

// Rows that have no scale, a tiny or a huge one, NaN or an infinity, among rows that are as ever.
void run_extremes(int64_t& turn) {
    Random random(1);
    Stack stack({2, 9, 5, 17, 6, 0, true}, random);
    const auto set_row = [](Floats& values, int64_t row, int64_t width, float value) {
        for (int64_t k = 0; k < width; ++k) values.data()[row * width + k] = value;
    };
    set_row(stack.x, 1, 5, 0.0f);
    set_row(stack.x, 2, 5, 3e-36f);
    set_row(stack.x, 3, 5, 1e30f);
    stack.x.data()[4 * 5 + 2] = std::numeric_limits<float>::quiet_NaN();
    set_row(stack.h, 7, 17, 40.0f);
    stack.h.data()[(9 + 8) * 17 + 16] = std::numeric_limits<float>::quiet_NaN();
    // A column of weights without a scale.
    for (int64_t k = 0; k < 5; ++k) stack.layers[0].w_x.data()[k * 4 * 17 + 3] = 0.0f;
    for (const std::string& set : instruction_sets()) {
        for (const int32_t weights : kWeights) {
            about(words(set.c_str(), {{"extremes, weights", weights}}));
            run_step(set.c_str(), stack, weights, turn);
            run_several(set.c_str(), stack, weights, turn++, 3);
        }
    }
}

// More steps of a row alone than a chunk holds, shared by units and not.
void run_long(int64_t& turn) {
    for (const int64_t hidden : {5, 70}) {
        Random random(1);
        const Stack stack({2, 1, 3, hidden, 4, 0, true}, random);
        for (const std::string& set : instruction_sets()) {
            for (const int32_t weights : kWeights) {
                about(words(set.c_str(), {{"long, weights", weights}, {"hidden", hidden}}));
                run_several(set.c_str(), stack, weights, turn++, 259);
            }
        }
    }
}

}  // namespace

void run_steps() {
    const Stage stage("steps");
    int64_t turn = 0, choice = 0;
    constexpr int64_t kOutputs[] = {-1, 1, 5, 0, 16, 65, 130};
    for (const int64_t hidden : {1, 3, 4, 5, 8, 15, 16, 17, 33, 64, 65}) {
        for (const int64_t rows : {0, 1, 2, 3, 4, 7, 8, 13}) {
            for (const int64_t input : {0, 1, 4, 17, 65}) {
                const int64_t vocabulary = input == 0 && choice % 3 > 0 ? 1 + choice % 5 : 0;
                run_stack({1 + choice % 3, rows, input, hidden, kOutputs[choice % 7], vocabulary, choice % 4 > 0},
                          turn);
                ++choice;
            }
        }
    }
    // Rows are taken in chunks of 128; a larger stack is shared by units.
    run_stack({1, 127, 3, 5, 3, 0, true}, turn);
    run_stack({2, 129, 5, 17, 9, 0, true}, turn);
    run_stack({1, 260, 0, 16, 65, 7, true}, turn);
    for (const int64_t rows : {1, 2, 3, 6, 20, 130}) run_stack({2, rows, 17, 130, 65, 0, true}, turn);
    for (const int64_t hidden : {5, 33, 130}) run_stack({3, 4, 6, hidden, 7, 0, true}, turn, true);
    run_stack({2, 3, 0, 17, 5, 4, true}, turn, true);
    run_extremes(turn);
    run_long(turn);
}

}  // namespace driver
