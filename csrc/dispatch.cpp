// The C interface: checks the arguments, picks kernels and grid, lays out scratch.
#include <cstring>
#include <initializer_list>

#include "instruction_sets.h"
#include "tasks.h"
#include "unrolled.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace unrolled {
namespace {

// Enough for every instruction set: lanes of 16 floats, panels of 4 vectors, an alignment of one cache line.
constexpr int64_t kMostLanes = 16, kMostColumns = 64, kAlignment = 16;
// Weights up to which each thread may read all of them at every step, so that threads share the batch and never wait.
constexpr int64_t kOwnWeightFloats = 1 << 18;
constexpr int64_t kFewestRows = 4;
// Sizes and their products stay so far below 2^63 that nothing made of them overflows.
constexpr int64_t kMostThreads = 1 << 16, kLimit = int64_t{1} << 40;
// 2^64 / phi
constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

float* aligned(float* scratch) {
    const auto address = reinterpret_cast<uintptr_t>(scratch);
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

const Kernels* kernels(const UnrolledRun* run) {
    const char* name = run->instruction_set != nullptr ? run->instruction_set : best_instruction_set();
    if (!has_instruction_set(name)) return nullptr;
#if defined(UNROLLED_X86)
    if (std::strcmp(name, "avx512") == 0) return &kAvx512;
    if (std::strcmp(name, "avx2") == 0) return &kAvx2;
#endif
    return &kBaseline;
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t blocks_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

// `weights`: how many each step multiplies by.
Grid grid_for(int64_t rows, int64_t weights, int64_t blocks, int64_t threads) {
    if (rows == 0 || blocks == 0) return {1, 1};
    const bool own = weights <= kOwnWeightFloats && rows >= kFewestRows * threads;
    if (own || blocks == 1) return {smaller(threads, rows), 1};
    const int64_t unit_groups = smaller(threads, blocks);
    return {smaller(threads / unit_groups, (rows + kFewestRows - 1) / kFewestRows), unit_groups};
}

const char* check_run(const UnrolledRun* run) {
    if (run == nullptr) return "run is NULL";
    if (run->threads < 1) return "threads must be at least 1";
    if (run->threads > kMostThreads) return "threads is beyond 2^16";
    if (kernels(run) == nullptr) return "this processor, or this library, has no such instruction set";
    return nullptr;
}

const char* check_sizes(int64_t steps, int64_t rows, int64_t hidden) {
    if (steps < 0 || rows < 0 || hidden < 0) return "steps, rows and hidden must not be negative";
    if (hidden > (1 << 24)) return "hidden is beyond 2^24";
    const int64_t width = 4 * (hidden + 1);
    if (steps > kLimit / width || rows > kLimit / width || (rows > 0 && steps > kLimit / width / rows)) {
        return "steps x rows x hidden is beyond 2^38";
    }
    return nullptr;
}

const char* check_product_sizes(int64_t rows, int64_t depth, int64_t columns) {
    if (rows < 0 || depth < 0 || columns < 0) return "rows, depth and columns must not be negative";
    if (rows > kLimit || depth > kLimit / (rows + 1) || columns > kLimit / (rows + 1) ||
        columns > kLimit / (depth + 1) - kMostColumns) {
        return "a product of two of rows, depth and columns is beyond 2^40";
    }
    return nullptr;
}

template <typename Call>
const char* check_places(const Call* call) {
    if (call == nullptr) return "call is NULL";
    if (call->steps < 0 || call->rows < 0 || call->units < 0) return "steps, rows and units must not be negative";
    if (call->units > kLimit || call->rows > kLimit / (call->units + 1) ||
        call->steps > kLimit / (call->units + 1) / (call->rows + 1)) {
        return "steps x rows x units is beyond 2^40";
    }
    return nullptr;
}

const char* check_strides(const UnrolledGradient& gradient) {
    if (gradient.data != nullptr && (gradient.time_stride < 0 || gradient.row_stride < 0)) {
        return "a cotangent's strides must not be negative";
    }
    return nullptr;
}

// What both passes of a sequence say of its sizes.
template <typename Call>
const char* check_sequence(const Call& call) {
    if (const char* wrong = check_sizes(call.steps, call.rows, call.hidden)) return wrong;
    if (call.projected != 0 || call.w_hr) {
        if (call.projected < 1 || !call.w_hr || call.hidden == 0) {
            return "where h is projected, there must be a w_hr, and hidden and projected be at least 1";
        }
        if (check_sizes(call.steps, call.rows, call.projected)) return "projected is beyond what hidden may be";
    }
    return check_cell(call.cell);
}

// Phases of a step.
template <typename Call>
int64_t turns_of(const Call& call) {
    return 1 + (call.cell.norm != nullptr ? 1 : 0) + (call.w_hr != nullptr ? 1 : 0);
}

template <typename Call>
int64_t weights_of(const Call& call) {
    return 4 * call.hidden * h_width(call) + (call.w_hr != nullptr ? call.hidden * call.projected : 0);
}

// Which kernel has code for all of a call's options.
template <typename Call>
int kernel_for(const Call& call) {
    const UnrolledCell& cell = call.cell;
    const bool draws = cell.zoneout_h > 0.0f || cell.zoneout_c > 0.0f || cell.dropout > 0.0f;
    const unsigned asked = (cell.peephole ? kPeephole : 0u) | (cell.clip > 0.0f ? kClip : 0u) |
                           (cell.hard_gates || cell.relu ? kActivations : 0u) | (draws ? kDraws : 0u) |
                           (cell.norm ? kNorm : 0u) | (call.h_mask ? kMaskOfH : 0u) |
                           (call.w_hr ? kProjection : 0u);
    int k = 0;
    while (asked & ~kKernelsFor[k]) ++k;
    return k;
}

// Of every row's sums, those of all steps.
void sum_biases(const UnrolledBackward& call) {
    const int64_t gates = 4 * call.hidden;
    for (int64_t row = 0; row < call.rows; ++row) {
        const float* of_row = call.bias_sums + row * 2 * gates;
        for (int64_t k = 0; k < gates; ++k) call.grad_bias[k] = row > 0 ? call.grad_bias[k] + of_row[k] : of_row[k];
    }
}

const char* check_elements(const UnrolledRun& run, const float* x, const float* y, int64_t count) {
    if (const char* wrong = check_run(&run)) return wrong;
    if (count < 0) return "count must not be negative";
    if (count > 0 && (!x || !y)) return "x and y must not be NULL";
    return nullptr;
}

}  // namespace
}  // namespace unrolled

using namespace unrolled;

void unrolled_use_parallel_for(void* function) { use_parallel_for(reinterpret_cast<ParallelFor>(function)); }

int64_t unrolled_forward_scratch(int64_t hidden, int64_t projected) {
    const int64_t width = projected > 0 ? projected : hidden;
    return 4 * width * round_up(hidden, kMostLanes) + hidden * round_up(projected, kMostColumns) +
           (width > hidden ? width : hidden) + 2 * kAlignment;
}

int64_t unrolled_backward_scratch(int64_t hidden, int64_t projected) {
    return 4 * hidden * round_up(projected > 0 ? projected : hidden, kMostColumns) +
           projected * round_up(hidden, kMostColumns) + hidden + 2 * kAlignment;
}

int64_t unrolled_product_scratch(int64_t depth, int64_t columns) {
    return depth * round_up(columns, kMostColumns) + kAlignment;
}

int64_t unrolled_weight_gradient_scratch(int64_t threads) { return threads * kGradientScratch + kAlignment; }

const char* unrolled_forward(const UnrolledRun* run, const UnrolledForward* call) {
    if (const char* wrong = check_run(run)) return wrong;
    if (call == nullptr) return "call is NULL";
    if (const char* wrong = check_sequence(*call)) return wrong;
    if (call->steps == 0 || call->rows == 0 || call->hidden == 0) return nullptr;
    if (!call->pre || !call->w_h || !call->h0 || !call->c0 || !call->h || !call->c || !call->scratch) {
        return "pre, w_h, h0, c0, h, c and scratch must not be NULL";
    }
    if (call->cell.norm && !call->gates && !call->sums) return "with a norm, gates or sums must not be NULL";
    if (call->h_mask && !call->h_in) return "with an h_mask, h_in must not be NULL";
    if (call->w_hr && !call->unprojected) return "with a w_hr, unprojected must not be NULL";
    const int64_t hidden = call->hidden, width = h_width(*call);
    if (call->scratch_floats < unrolled_forward_scratch(hidden, call->projected)) return "scratch is too small";
    const Kernels& kernel = *kernels(run);
    const Grid grid = grid_for(call->rows, weights_of(*call), blocks_of(hidden, kernel.lanes), run->threads);
    float* packed = aligned(call->scratch);
    float* packed_hr = packed + 4 * width * round_up(hidden, kernel.lanes);
    float* zeros = packed_hr + (call->w_hr ? hidden * round_up(width, 4 * kernel.lanes) : 0);
    std::memset(zeros, 0, (width > hidden ? width : hidden) * sizeof *zeros);
    const ForwardTask task{*call, grid, packed, packed_hr, zeros, turns_of(*call)};
    const int64_t walk = grid.unit_groups > 1 ? call->steps * task.turns : 1;
    const Share share = kernel.forward[kernel_for(*call)];
    run_phases(share, &task, walk + (call->packed ? 0 : 1), grid.slots());
    return nullptr;
}

const char* unrolled_backward(const UnrolledRun* run, const UnrolledBackward* call) {
    if (const char* wrong = check_run(run)) return wrong;
    if (call == nullptr) return "call is NULL";
    if (const char* wrong = check_sequence(*call)) return wrong;
    for (const UnrolledGradient* gradient : {&call->grad_h, &call->grad_c, &call->grad_gates}) {
        if (const char* wrong = check_strides(*gradient)) return wrong;
    }
    if (call->grad_bias && call->cell.norm) return "with a norm there is no grad_bias";
    if (call->rows == 0 || call->hidden == 0) {
        if (call->grad_bias) std::memset(call->grad_bias, 0, 4 * call->hidden * sizeof *call->grad_bias);
        return nullptr;
    }
    if (!call->w_h || !call->c0 || !call->grad_h0 || !call->grad_c0 || !call->scratch) {
        return "w_h, c0, grad_h0, grad_c0 and scratch must not be NULL";
    }
    if (call->steps > 0 && (!call->c || !call->gates || !call->grad_pre)) {
        return "c, gates and grad_pre must not be NULL";
    }
    const int64_t planes = gradient_planes(call->cell);
    if (planes > 0 && !call->grad_cell) return "with a norm or a peephole, grad_cell must not be NULL";
    if (call->w_hr && call->steps > 0 && (!call->unprojected || !call->grad_projected)) {
        return "with a w_hr, unprojected and grad_projected must not be NULL";
    }
    if (call->grad_bias && !call->bias_sums) return "with a grad_bias, bias_sums must not be NULL";
    const int64_t hidden = call->hidden, width = h_width(*call);
    if (call->scratch_floats < unrolled_backward_scratch(hidden, call->projected)) return "scratch is too small";
    const Kernels& kernel = *kernels(run);
    const int64_t columns = 4 * kernel.lanes;
    const Grid grid = grid_for(call->rows, weights_of(*call), blocks_of(hidden, columns), run->threads);
    float* packed = aligned(call->scratch);
    float* packed_hr = packed + 4 * hidden * round_up(width, columns);
    float* zeros = packed_hr + (call->w_hr ? width * round_up(hidden, columns) : 0);
    std::memset(zeros, 0, hidden * sizeof *zeros);
    const BackwardTask task{*call, grid, packed, packed_hr, zeros, turns_of(*call)};
    if (call->steps == 0) std::memset(call->grad_c0, 0, call->rows * hidden * sizeof *call->grad_c0);
    if (planes > 0) std::memset(call->grad_cell, 0, call->rows * planes * hidden * sizeof *call->grad_cell);
    if (call->grad_bias) std::memset(call->bias_sums, 0, call->rows * 8 * hidden * sizeof *call->bias_sums);
    const int64_t walk = grid.unit_groups > 1 ? call->steps * task.turns + 1 : 1;
    const Share share = kernel.backward[kernel_for(*call)];
    run_phases(share, &task, walk + 1, grid.slots());
    if (call->grad_bias) sum_biases(*call);
    return nullptr;
}

const char* unrolled_product(const UnrolledRun* run, const UnrolledProduct* call) {
    if (const char* wrong = check_run(run)) return wrong;
    if (call == nullptr) return "call is NULL";
    if (const char* wrong = check_product_sizes(call->rows, call->depth, call->columns)) return wrong;
    if (call->w_depth_stride != 1 && call->w_column_stride != 1) return "one of the strides of w must be 1";
    if (call->w_depth_stride < 0 || call->w_column_stride < 0 || call->x_stride < 0) {
        return "strides must not be negative";
    }
    if (call->rows == 0 || call->columns == 0) return nullptr;
    if (!call->out || (call->depth > 0 && (!call->x || !call->w)) || !call->scratch) {
        return "x, w, out and scratch must not be NULL";
    }
    if (call->scratch_floats < unrolled_product_scratch(call->depth, call->columns)) return "scratch is too small";
    ProductTask task{*call, run->threads, aligned(call->scratch)};
    if (call->depth == 0) task.call.x_stride = 0;  // x may be NULL, from which no step is legal
    run_phases(kernels(run)->product, &task, call->packed ? 1 : 2, run->threads);
    return nullptr;
}

const char* unrolled_weight_gradient(const UnrolledRun* run, const UnrolledWeightGradient* call) {
    if (const char* wrong = check_run(run)) return wrong;
    if (call == nullptr) return "call is NULL";
    if (const char* wrong = check_product_sizes(call->rows, call->depth, call->columns)) return wrong;
    if (call->x_stride < 0 || call->grad_stride < 0) return "strides must not be negative";
    if (call->columns == 0) return nullptr;
    if ((call->rows > 0 && (!call->grad || (call->depth > 0 && !call->x))) || (call->depth > 0 && !call->grad_w) ||
        !call->scratch) {
        return "x, grad, grad_w and scratch must not be NULL";
    }
    if (call->scratch_floats < unrolled_weight_gradient_scratch(run->threads)) return "scratch is too small";
    if (call->rows == 0 && call->depth > 0) {
        std::memset(call->grad_w, 0, call->depth * call->columns * sizeof *call->grad_w);
    }
    WeightGradientTask task{*call, run->threads, aligned(call->scratch)};
    if (call->depth == 0) task.call.x_stride = 0;  // x may be NULL, from which no step is legal
    run_phases(kernels(run)->weight_gradient, &task, 1, run->threads);
    return nullptr;
}

const char* unrolled_random_words(const UnrolledRun* run, const UnrolledRandomWords* call) {
    if (const char* wrong = check_run(run)) return wrong;
    if (const char* wrong = check_places(call)) return wrong;
    if (call->steps == 0 || call->rows == 0 || call->units == 0) return nullptr;
    if (!call->keys || !call->words) return "keys and words must not be NULL";
    const RandomWordsTask task{*call, run->threads};
    run_phases(kernels(run)->random_words, &task, 1, run->threads);
    return nullptr;
}

const char* unrolled_multiplier(const UnrolledRun* run, const UnrolledMultiplier* call) {
    if (const char* wrong = check_run(run)) return wrong;
    if (const char* wrong = check_places(call)) return wrong;
    if (call->threshold > 65536) return "the threshold is beyond 2^16";
    if (call->steps == 0 || call->rows == 0 || call->units == 0) return nullptr;
    if (!call->keys || !call->multiplier) return "keys and multiplier must not be NULL";
    const MultiplierTask task{*call, run->threads};
    run_phases(kernels(run)->multiplier, &task, 1, run->threads);
    return nullptr;
}

const char* unrolled_row_keys(uint64_t seed, int64_t first, int64_t rows, uint64_t* keys) {
    if (first < 0 || rows < 0 || rows > kLimit) return "first and rows must not be negative, rows not beyond 2^40";
    if (rows > 0 && !keys) return "keys must not be NULL";
    // SplitMix64; recurrence/threefry.py has the source.
    uint64_t state = seed + static_cast<uint64_t>(first) * kGamma;
    for (int64_t row = 0; row < rows; ++row) {
        uint64_t z = state += kGamma;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        keys[row] = z ^ (z >> 31);
    }
    return nullptr;
}

const char* unrolled_sigmoid(const char* instruction_set, const float* x, float* y, int64_t count) {
    const UnrolledRun run{instruction_set, 1};
    if (const char* wrong = check_elements(run, x, y, count)) return wrong;
    kernels(&run)->sigmoid(x, y, count);
    return nullptr;
}

const char* unrolled_tanh(const char* instruction_set, const float* x, float* y, int64_t count) {
    const UnrolledRun run{instruction_set, 1};
    if (const char* wrong = check_elements(run, x, y, count)) return wrong;
    kernels(&run)->tanh(x, y, count);
    return nullptr;
}

void unrolled_advise_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kPage = uintptr_t{1} << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kPage - 1);
    // Advice only: where it is refused, pages stay small.
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}
