// The C interface of the step: checks the arguments, picks kernel and grid.
#include <cstring>
#include <initializer_list>

#include "instruction_sets.h"
#include "step_tasks.h"

namespace unrolled {
namespace {

constexpr int64_t kMostLanes = 16, kMostColumns = 64, kLargestSize = int64_t{1} << 24, kMostThreads = 1 << 16;
constexpr int64_t kMostStates = int64_t{1} << 40;
// Sums of that many products of int8 stay within 32 bits.
constexpr int64_t kMostInt8Depth = int64_t{1} << 17;
// Rows from which on a thread has work enough with rows of its own: no waiting, and the weights pass by just as often.
constexpr int64_t kOwnRows = 64, kFewestRows = 4;
// Weights up to which each thread may read all of them, from a cache of its own.
constexpr int64_t kOwnWeightBytes = 1 << 20;
// Rows of a sequence whose share of x is made at a time: it stays in a second-level cache until it is used up.
constexpr int64_t kChunkRows = kStepRows;
// Bytes of weights times rows below which one thread is done before a second one has woken: about 4 us.
constexpr int64_t kFewestBytes = 3 << 17;
// The same of a layer's recurrent weights, where threads that already run wait for each other behind them.
constexpr int64_t kFewestBytesBetween = 1 << 16;

constexpr const char* kNoSuchWeights = "weights must be 0 (float32), 1 (bfloat16) or 2 (int8)";

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The kernel of an instruction set that this processor has.
const StepKernel& kernel_of(const char* name, int32_t weights) {
    const StepKernels* kernels = &kStepBaseline;
#if defined(UNROLLED_X86)
    const bool avx512 = std::strcmp(name, "avx512") == 0;
    if (weights == UNROLLED_INT8 && avx512 && has_vnni()) return kStepVnni;
    if (avx512 && weights != UNROLLED_INT8) {
        kernels = &kStepAvx512;
    } else if (avx512 || std::strcmp(name, "avx2") == 0) {
        kernels = &kStepAvx2;
    }
#else
    (void)name;
#endif
    if (weights == UNROLLED_INT8) return kernels->int8;
    return weights == UNROLLED_BFLOAT16 ? kernels->bfloat16 : kernels->float32;
}

const char* name_of(const UnrolledRun& run) {
    return run.instruction_set != nullptr ? run.instruction_set : best_instruction_set();
}

const char* check_run(const UnrolledRun* run) {
    if (run == nullptr) return "run is NULL";
    if (run->threads < 1) return "threads must be at least 1";
    if (run->threads > kMostThreads) return "threads is beyond 2^16";
    if (!has_instruction_set(name_of(*run))) return "this processor, or this library, has no such instruction set";
    return nullptr;
}

const char* check_sizes(int32_t weights, std::initializer_list<int64_t> sizes) {
    if (weights < UNROLLED_FLOAT32 || weights > UNROLLED_INT8) return kNoSuchWeights;
    for (int64_t size : sizes) {
        if (size < 0 || size > kLargestSize) return "a size is negative or beyond 2^24";
        if (weights == UNROLLED_INT8 && size > kMostInt8Depth) return "int8 takes sizes up to 2^17";
    }
    return nullptr;
}

// Bytes of a column for any instruction set; `front` floats come before the weights.
int64_t column_bytes(int32_t weights, int64_t input, int64_t hidden) {
    if (weights == UNROLLED_INT8) return 12 + round_up(input, 4) + round_up(hidden, 4);
    return 4 + (input + hidden) * (weights == UNROLLED_BFLOAT16 ? 2 : 4);
}

int64_t packed_bytes(int64_t columns, int64_t bytes) { return sizeof(Packed) + 64 + columns * bytes; }

const char* pack(const UnrolledRun& run, const Packed& header, PackTask task, void* memory) {
    const StepKernel& kernel = kernel_of(name_of(run), header.weights);
    task.packed = const_cast<Packed*>(packed_at(memory));
    *task.packed = header;
    task.packed->lanes = kernel.lanes;
    run_phases(kernel.pack, &task, 1, run.threads);
    return nullptr;
}

bool is_packed(const void* memory, const Packed& expected) {
    const Packed& found = *packed_at(memory);
    return found.mark == expected.mark && found.weights == expected.weights && found.gated == expected.gated &&
           found.lanes == expected.lanes && found.input == expected.input && found.hidden == expected.hidden &&
           found.columns == expected.columns;
}

const char* check_packed(const UnrolledStep& step, int64_t lanes) {
    constexpr const char* kOther = "packed weights are of other sizes, of another kind or for another instruction set";
    if (step.packed == nullptr) return "packed must not be NULL";
    for (int64_t layer = 0; layer < step.layers; ++layer) {
        if (step.packed[layer] == nullptr) return "packed must not be NULL";
        const int64_t input = layer == 0 ? step.input : step.hidden;
        if (!is_packed(step.packed[layer], {kPackedMark, step.weights, 1, lanes, input, step.hidden, step.hidden})) {
            return kOther;
        }
    }
    if (step.packed_projection == nullptr) return nullptr;
    if (!is_packed(step.packed_projection, {kPackedMark, step.weights, 0, lanes, 0, step.hidden, step.output})) {
        return kOther;
    }
    return nullptr;
}

const char* check_input(const UnrolledStep& step, int64_t steps) {
    if (step.ids == nullptr) {
        return step.input > 0 && step.x == nullptr ? "x must not be NULL where input is above 0" : nullptr;
    }
    if (step.input > 0) return "with ids, input must be 0";
    if (step.table == nullptr) return "table must not be NULL beside ids";
    for (int64_t row = 0; row < step.rows * steps; ++row) {
        if (step.ids[row] < 0 || step.ids[row] >= step.vocabulary) return "an id is outside the table";
    }
    return nullptr;
}

const char* check_step(const UnrolledStep& step, int64_t steps) {
    if (const char* wrong = check_sizes(step.weights, {step.input, step.hidden, step.output})) return wrong;
    if (step.layers < 0 || step.rows < 0 || step.vocabulary < 0) {
        return "layers, rows and vocabulary must not be negative";
    }
    if (step.layers == 0 || step.hidden == 0) return "layers and hidden must be at least 1";
    if (step.rows > 0 && step.layers > kMostStates / step.rows / step.hidden) {
        return "layers x rows x hidden is beyond 2^40";
    }
    for (int64_t layer = 0; layer < step.layers && step.cells != nullptr; ++layer) {
        if (const char* wrong = check_cell(step.cells[layer])) return wrong;
    }
    if (step.rows == 0 || steps == 0) return nullptr;
    if (steps > kMostStates / step.rows) return "rows x steps is beyond 2^40";
    if (step.packed_projection && step.output > 0 && !step.out) return "out must not be NULL beside a projection";
    if (!step.h_before || !step.h_after || !step.c) return "h_before, h_after and c must not be NULL";
    if (step.h_before == step.h_after) return "h_after must be apart from h_before";
    if (step.sums == nullptr && normalises(step)) return "with a norm, sums must not be NULL";
    return check_input(step, steps);
}

int64_t slot_bytes(int32_t weights, int64_t rows, int64_t input, int64_t hidden) {
    if (weights != UNROLLED_INT8) return 0;
    const int64_t depth = int8_row_bytes(input > hidden ? input : hidden) + int8_row_bytes(hidden);
    return round_up(smaller(rows, kStepRows) * (depth + static_cast<int64_t>(sizeof(Int8Row))), 64);
}

// Steps of a chunk.
int64_t chunk_of(int64_t rows) { return rows < kChunkRows ? kChunkRows / (rows > 0 ? rows : 1) : 1; }

// Floats of `pre`, `h` and `h_first`.
int64_t chunk_floats(int64_t rows, int64_t hidden) {
    return rows * chunk_of(rows) * (4 * round_up(hidden, kMostLanes) + hidden) + rows * hidden;
}

// How threads share rows and units where weights of `bytes` pass by and are worth several threads.
Grid shared_grid(const UnrolledStep& step, int64_t lanes, int64_t threads, int64_t bytes) {
    const int64_t rows = step.rows, blocks = (step.hidden + lanes - 1) / lanes;
    const bool own = bytes <= kOwnWeightBytes && rows >= kFewestRows * threads;
    if (own || rows >= kOwnRows * threads || blocks == 1) return {smaller(threads, rows), 1};
    const int64_t unit_groups = smaller(threads, blocks);
    return {smaller(threads / unit_groups, (rows + kFewestRows - 1) / kFewestRows), unit_groups};
}

int64_t all_bytes(const UnrolledStep& step) {
    const int64_t upper = 4 * step.hidden * column_bytes(step.weights, step.hidden, step.hidden);
    return 4 * step.hidden * column_bytes(step.weights, step.input, step.hidden) + (step.layers - 1) * upper +
           step.output * column_bytes(step.weights, 0, step.hidden);
}

Grid grid_for(const UnrolledStep& step, int64_t lanes, int64_t threads) {
    const int64_t bytes = all_bytes(step);
    if (bytes * step.rows < kFewestBytes) return {1, 1};
    return shared_grid(step, lanes, threads, bytes);
}

Grid grid_for_steps(const UnrolledStep& step, int64_t steps, int64_t lanes, int64_t threads) {
    if (all_bytes(step) * step.rows * steps < kFewestBytes) return {1, 1};
    const int64_t recurrent = 4 * step.hidden * column_bytes(step.weights, 0, step.hidden);
    const Grid grid = shared_grid(step, lanes, threads, recurrent);
    return grid.unit_groups > 1 && recurrent * step.rows < kFewestBytesBetween ? Grid{1, 1} : grid;
}

constexpr const char* kNoScratch = "scratch is NULL or too small";

char* aligned(void* scratch) {
    return reinterpret_cast<char*>(round_up(static_cast<int64_t>(reinterpret_cast<intptr_t>(scratch)), 64));
}

const char* check_call(const UnrolledRun* run, const UnrolledStep* step, int64_t steps) {
    if (const char* wrong = check_run(run)) return wrong;
    if (step == nullptr) return "step is NULL";
    if (steps < 0) return "steps must not be negative";
    if (const char* wrong = check_step(*step, steps)) return wrong;
    return check_packed(*step, kernel_of(name_of(*run), step->weights).lanes);
}

}  // namespace
}  // namespace unrolled

using namespace unrolled;

int64_t unrolled_step_layer_bytes(int32_t weights, int64_t input, int64_t hidden) {
    if (check_sizes(weights, {input, hidden}) != nullptr) return -1;
    return packed_bytes(4 * round_up(hidden, kMostLanes), column_bytes(weights, input, hidden));
}

int64_t unrolled_step_projection_bytes(int32_t weights, int64_t hidden, int64_t output) {
    if (check_sizes(weights, {hidden, output}) != nullptr) return -1;
    return packed_bytes(round_up(output, kMostColumns), column_bytes(weights, 0, hidden));
}

int64_t unrolled_step_scratch_bytes(int32_t weights, int64_t rows, int64_t input, int64_t hidden, int64_t threads) {
    if (check_sizes(weights, {input, hidden}) != nullptr || rows < 0) return -1;
    if (threads < 1 || threads > kMostThreads) return -1;
    return 64 + threads * slot_bytes(weights, rows, input, hidden);
}

const char* unrolled_step_pack_layer(const UnrolledRun* run, int32_t weights, int64_t input, int64_t hidden,
                                     const float* w_x, const float* w_h, const float* bias, void* packed) {
    if (const char* wrong = check_run(run)) return wrong;
    if (const char* wrong = check_sizes(weights, {input, hidden})) return wrong;
    if (hidden == 0) return "hidden must be at least 1";
    if (!w_h || !packed || (input > 0 && !w_x)) return "w_x, w_h and packed must not be NULL";
    const Packed header{kPackedMark, weights, 1, 0, input, hidden, hidden};
    return pack(*run, header, {nullptr, w_x, w_h, bias, 4 * hidden, 1, run->threads}, packed);
}

const char* unrolled_step_pack_projection(const UnrolledRun* run, int32_t weights, int64_t hidden, int64_t output,
                                          const float* weight, const float* bias, void* packed) {
    if (const char* wrong = check_run(run)) return wrong;
    if (const char* wrong = check_sizes(weights, {hidden, output})) return wrong;
    if (hidden == 0) return "hidden must be at least 1";
    if ((output > 0 && !weight) || !packed) return "weight and packed must not be NULL";
    const Packed header{kPackedMark, weights, 0, 0, 0, hidden, output};
    return pack(*run, header, {nullptr, nullptr, weight, bias, 1, hidden, run->threads}, packed);
}

int64_t unrolled_steps_scratch_bytes(int32_t weights, int64_t rows, int64_t input, int64_t hidden, int64_t threads) {
    if (rows < 0 || rows > kMostStates) return -1;
    const int64_t bytes = unrolled_step_scratch_bytes(weights, rows * chunk_of(rows), input, hidden, threads);
    return bytes < 0 || (hidden > 0 && rows > kMostStates / hidden) ? -1 : bytes + chunk_floats(rows, hidden) * 4;
}

const char* unrolled_step(const UnrolledRun* run, const UnrolledStep* step) {
    if (const char* wrong = check_call(run, step, 1)) return wrong;
    if (step->rows == 0) return nullptr;
    const int64_t needed =
        unrolled_step_scratch_bytes(step->weights, step->rows, step->input, step->hidden, run->threads);
    if (step->scratch == nullptr || step->scratch_bytes < needed) return kNoScratch;
    const StepKernel& kernel = kernel_of(name_of(*run), step->weights);
    // From step to step the caller's two states change places, and the direction with them: the panels that a layer
    // ended with are still in the cache.
    StepTask task{*step, grid_for(*step, kernel.lanes, run->threads), step->h_after < step->h_before,
                  aligned(step->scratch), slot_bytes(step->weights, step->rows, step->input, step->hidden),
                  normalises(*step) ? 2 : 1};
    const int64_t phases = step->layers * task.turns + (step->packed_projection != nullptr ? 1 : 0);
    run_phases(kernel.step, &task, task.grid.unit_groups > 1 ? phases : 1, task.grid.slots());
    if (step->packed_projection == nullptr && step->out != nullptr) {
        const int64_t states = step->rows * step->hidden;
        std::memcpy(step->out, step->h_after + (step->layers - 1) * states, states * sizeof(float));
    }
    return nullptr;
}

const char* unrolled_steps(const UnrolledRun* run, const UnrolledStep* step, int64_t steps) {
    if (const char* wrong = check_call(run, step, steps)) return wrong;
    if (step->rows == 0 || steps == 0) return nullptr;
    const int64_t rows = step->rows, hidden = step->hidden, chunk = smaller(chunk_of(rows), steps);
    if (!step->packed_projection && !step->out) return "out must not be NULL for several steps";
    if (step->scratch == nullptr ||
        step->scratch_bytes < unrolled_steps_scratch_bytes(step->weights, rows, step->input, hidden, run->threads)) {
        return kNoScratch;
    }
    const StepKernel& kernel = kernel_of(name_of(*run), step->weights);
    const Grid grid = grid_for_steps(*step, steps, kernel.lanes, run->threads);
    const int64_t of_slot = slot_bytes(step->weights, rows * chunk, step->input, hidden);
    char* slots = aligned(step->scratch);
    auto* pre = reinterpret_cast<float*>(slots + run->threads * of_slot);
    float* h = pre + rows * chunk * 4 * round_up(hidden, kMostLanes);
    const int64_t turns = normalises(*step) ? 2 : 1;
    StepsTask task{*step, steps, chunk, grid, slots, of_slot, pre, h, h + rows * chunk * hidden, turns};
    const int64_t last = steps % chunk, whole = steps / chunk * task.phases(chunk);
    const int64_t phases = whole + (last > 0 ? task.phases(last) : 0);
    run_phases(kernel.steps, &task, grid.unit_groups > 1 ? phases : 1, grid.slots());
    return nullptr;
}
