// One time step of a stack, and its packed weights: what all kinds of weights have in common, float32 and bfloat16.
#pragma once

#include "cell.h"
#include "norm.h"
#include "step_tasks.h"
#include "tile.h"

namespace unrolled {
namespace UNROLLED_ISA {

// Rows of a matrix, or of [batch, time, width] counted in the order of time: then `group` of them lie `row_stride` floats
// apart, and the next ones `time_stride` further.
template <typename Float>
struct Rows {
    Float* first;
    int64_t row_stride, group, time_stride;

    Float* at(int64_t row) const {
        if (group == 0) return first + row * row_stride;
        return first + row % group * row_stride + row / group * time_stride;
    }
};

// The rows that a layer or a projection multiplies: x and h side by side, either of which may be empty.
struct StepInputs {
    Rows<const float> x, h;
    int64_t input, hidden;
    bool x_is_state;  // x is the h of the layer below
};

inline Rows<const float> matrix(const float* first, int64_t width) { return {first, width, 0, 0}; }

// Where the columns of one vector of a panel lie in the weights, and how many of its lanes are in use.
struct PanelColumns {
    int64_t first;
    int count;
};

UNROLLED_INLINE PanelColumns panel_columns(const Packed& packed, int64_t block, int v) {
    const int64_t at = packed.gated ? block * kLanes : (block * kPanel + v) * kLanes;
    const int64_t left = packed.columns - at;
    const int64_t count = left < 0 ? 0 : left < kLanes ? left : kLanes;
    return {packed.gated ? v * packed.columns + at : at, static_cast<int>(count)};
}

inline int64_t panel_blocks(const Packed& packed) {
    return blocks_of(packed.columns, packed.gated ? kLanes : kBlockColumns);
}

// The bias at the front of a panel; returns what comes behind it.
inline char* pack_bias(const PackTask& task, int64_t block, char* panel) {
    auto* to = reinterpret_cast<float*>(panel);
    for (int v = 0; v < kPanel; ++v, to += kLanes) {
        const PanelColumns columns = panel_columns(*task.packed, block, v);
        store(to, task.bias != nullptr ? load(task.bias + columns.first, columns.count) : zero());
    }
    return reinterpret_cast<char*>(to);
}

// One vector of columns at depth k.
inline Vector weights_at(const PackTask& task, const float* w, int64_t k, PanelColumns columns) {
    float lanes[kLanes] = {};
    const float* from = w + k * task.depth_stride + columns.first * task.column_stride;
    for (int lane = 0; lane < columns.count; ++lane) lanes[lane] = from[lane * task.column_stride];
    return load(lanes);
}

struct Float32 {
    static constexpr int64_t kFront = kBlockColumns * 4;
    static int64_t bytes(int64_t depth) { return depth * kBlockColumns * 4; }

    static char* pack(const PackTask& task, const float* w, int64_t depth, int64_t block, char* to) {
        for (int64_t k = 0; k < depth; ++k) {
            for (int v = 0; v < kPanel; ++v, to += kLanes * 4) {
                const PanelColumns columns = panel_columns(*task.packed, block, v);
                store(reinterpret_cast<float*>(to), weights_at(task, w, k, columns));
            }
        }
        return to;
    }

    static FloatPanels panels(const char* first, int64_t stride) {
        return {reinterpret_cast<const float*>(first), stride / 4};
    }
};

// The nearest bfloat16, ties to even; NaN stays NaN.
inline uint32_t bfloat16_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return (bits >> 16) | 0x40u;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// The low and the high halves of 32-bit lanes, each as the bfloat16 that it is.
UNROLLED_INLINE void widen(const char* from, Vector& low, Vector& high) {
#if defined(__AVX512F__)
    const __m512i pairs = _mm512_loadu_si512(from);
    low.value = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    high.value = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    low.value = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    high.value = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
#else
    uint32_t pairs[kLanes], lower[kLanes];
    std::memcpy(pairs, from, sizeof pairs);
    for (int lane = 0; lane < kLanes; ++lane) {
        lower[lane] = pairs[lane] << 16;
        pairs[lane] &= 0xffff0000u;
    }
    std::memcpy(&low.value, lower, sizeof lower);
    std::memcpy(&high.value, pairs, sizeof pairs);
#endif
}

struct PairPanels {
    const char* first;
    int64_t stride;

    template <int kVectors>
    UNROLLED_INLINE void load_at(int64_t k, Vector (&weights)[kVectors]) const {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v += 2) {
            const char* pairs = first + (v / kPanel) * stride + (k * kPanel + v % kPanel) * kLanes * 2;
            widen(pairs, weights[v], weights[v + 1]);
        }
    }
};

struct BFloat16 {
    static constexpr int64_t kFront = kBlockColumns * 4;
    static int64_t bytes(int64_t depth) { return depth * kBlockColumns * 2; }

    static char* pack(const PackTask& task, const float* w, int64_t depth, int64_t block, char* to) {
        for (int64_t k = 0; k < depth; ++k) {
            for (int v = 0; v < kPanel; v += 2, to += kLanes * 4) {
                float low[kLanes], high[kLanes];
                store(low, weights_at(task, w, k, panel_columns(*task.packed, block, v)));
                store(high, weights_at(task, w, k, panel_columns(*task.packed, block, v + 1)));
                for (int lane = 0; lane < kLanes; ++lane) {
                    const uint32_t pair = bfloat16_bits(low[lane]) | bfloat16_bits(high[lane]) << 16;
                    std::memcpy(to + lane * 4, &pair, sizeof pair);
                }
            }
        }
        return to;
    }

    static PairPanels panels(const char* first, int64_t stride) { return {first, stride}; }
};

// Weights that floats are multiplied with: x first, then h, each in the order of depth.
template <typename Weights>
struct FloatFormat {
    static int64_t block_bytes(int64_t input, int64_t hidden) {
        return Weights::kFront + Weights::bytes(input) + Weights::bytes(hidden);
    }

    static void pack(const PackTask& task, int64_t block, char* panel) {
        panel = pack_bias(task, block, panel);
        panel = Weights::pack(task, task.w_x, task.packed->input, block, panel);
        Weights::pack(task, task.w_h, task.packed->hidden, block, panel);
    }

    const StepInputs& inputs;
    int64_t panel_input, first_row;

    FloatFormat(const StepInputs& given, const Packed& packed, Range rows, char*)
        : inputs(given), panel_input(packed.input), first_row(rows.begin) {}

    template <int kRows, int kPanels>
    UNROLLED_INLINE void add(int64_t first, const char* panel, int64_t stride,
                             Vector (&sum)[kRows][kPanels * kPanel]) const {
        const float *x[kRows], *h[kRows];
        for (int r = 0; r < kRows; ++r) {
            x[r] = inputs.x.at(first_row + first + r);
            h[r] = inputs.h.at(first_row + first + r);
        }
        panel += Weights::kFront;
        accumulate<kRows, kPanels>(x, inputs.input, Weights::panels(panel, stride), sum);
        panel += Weights::bytes(panel_input);
        accumulate<kRows, kPanels>(h, inputs.hidden, Weights::panels(panel, stride), sum);
    }
};

UNROLLED_INLINE Cell step_cell(const UnrolledStep& call, int64_t layer, const Vector* sum, Vector c_before,
                               const float* h_before, int64_t unit) {
    if (call.cells == nullptr) {
        return next_cell(sum, c_before, h_before, Options<0>{kPlainCell, call.hidden}, unit, no_masks());
    }
    return next_variant(sum, c_before, h_before, {call.cells[layer], call.hidden}, unit);
}

UNROLLED_INLINE bool normalises(const UnrolledStep& call, int64_t layer) {
    return call.cells != nullptr && call.cells[layer].norm != nullptr;
}

// Sums of a row that wait for each other, a panel's beside each other.
inline int64_t waiting_width(int64_t hidden) { return blocks_of(hidden, kLanes) * kBlockColumns; }
UNROLLED_INLINE void store_waiting(float* row, int64_t block, const Vector* sum) {
    for (int v = 0; v < kPanel; ++v) store(row + block * kBlockColumns + v * kLanes, sum[v]);
}
inline void waiting_cell(const UnrolledStep& call, int64_t layer, float* sums, float* c, const float* h_before,
                         float* h) {
    const RowOfSums row{sums, kLanes, kPanel};
    const RowOfStep at{0, 0, c, h_before, c, h, nullptr};
    normed_cells<kEverything>({call.cells[layer], call.hidden}, 1, &row, &at);
}

// A layer: sums start from the bias, or from the table's row, and end in the cell.
struct LayerTarget {
    const UnrolledStep& call;
    int64_t layer;

    UNROLLED_INLINE Vector start(int64_t row, int64_t block, int v, const float* bias) const {
        if (layer > 0 || call.ids == nullptr) return load(bias + v * kLanes);
        const int64_t unit = block * kLanes;
        return load_some(call.table + (call.ids[row] * 4 + v) * call.hidden + unit, call.hidden - unit);
    }

    UNROLLED_INLINE void finish(int64_t row, int64_t block, const Vector* sum) const {
        const int64_t unit = block * kLanes, count = call.hidden - unit;
        const int64_t at = (layer * call.rows + row) * call.hidden + unit;
        if (normalises(call, layer)) return store_waiting(call.sums + row * waiting_width(call.hidden), block, sum);
        const Cell cell = step_cell(call, layer, sum, load_some(call.c + at, count), call.h_before + at, unit);
        store_some(call.c + at, cell.c, count);
        store_some(call.h_after + at, cell.h, count);
    }
};

struct ProjectionTarget {
    Rows<float> out;
    int64_t output;

    UNROLLED_INLINE Vector start(int64_t, int64_t, int v, const float* bias) const { return load(bias + v * kLanes); }

    UNROLLED_INLINE void finish(int64_t row, int64_t block, const Vector* sum) const {
        const int64_t column = block * kBlockColumns;
        float* to = out.at(row) + column;
        for (int v = 0; v < kPanel && column + v * kLanes < output; ++v) {
            store_some(to + v * kLanes, sum[v], output - column - v * kLanes);
        }
    }
};

template <typename Format, typename Target>
struct StepTile {
    const Format& format;
    const Target& target;
    const char* panels;
    int64_t block_bytes, block, blocks_left, row;

    template <int kRows>
    void tile(int64_t first) const {
        if constexpr (kRows <= kMaxPairedRows) {
            if (blocks_left >= 2) return run<kRows, 2>(first);
        }
        run<kRows, 1>(first);
    }

    template <int kRows, int kPanels>
    void run(int64_t first) const {
        const char* panel = panels + block * block_bytes;
        Vector sum[kRows][kPanels * kPanel];
#pragma GCC unroll 8
        for (int v = 0; v < kPanels * kPanel; ++v) {
            const auto* bias = reinterpret_cast<const float*>(panel + (v / kPanel) * block_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                sum[r][v] = target.start(row + first + r, block + v / kPanel, v % kPanel, bias);
            }
        }
        format.template add<kRows, kPanels>(first, panel, block_bytes, sum);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int p = 0; p < kPanels; ++p) target.finish(row + first + r, block + p, &sum[r][p * kPanel]);
        }
    }
};

// The share of a slot: rows `share`.rows, panels `share`.blocks.
struct StepShare {
    Range rows, blocks;
    bool backwards;  // whether the last panel comes first
    char* scratch;
};

template <typename Format, typename Target>
void step_product(const StepShare& share, const StepInputs& inputs, const Packed& packed, const Target& target) {
    const Range rows = share.rows, blocks = share.blocks;
    const int64_t block_bytes = Format::block_bytes(packed.input, packed.hidden);
    if (blocks.begin == blocks.end) return;
    for (int64_t row = rows.begin; row < rows.end; row += kStepRows) {
        const int64_t count = rows.end - row < kStepRows ? rows.end - row : kStepRows;
        const Format format(inputs, packed, {row, row + count}, share.scratch);
        const bool paired = count <= kMaxPairedRows;
        const int64_t width = paired ? 2 : 1, turns = blocks_of(blocks.end - blocks.begin, width);
        for (int64_t turn = 0; turn < turns; ++turn) {
            const int64_t block = blocks.begin + width * (share.backwards ? turns - 1 - turn : turn);
            const int64_t left = paired ? blocks.end - block : 1;
            for_each_tile(count,
                          StepTile<Format, Target>{format, target, packed.panels(), block_bytes, block, left, row});
        }
    }
}

inline StepShare share_of(const StepTask& task, int64_t slot, const Packed& packed) {
    const int64_t groups = task.grid.unit_groups;
    return {part(task.call.rows, task.grid.row_groups, slot / groups),
            part(panel_blocks(packed), groups, slot % groups), task.backwards, task.scratch + slot * task.slot_bytes};
}

// The cells of whole rows, of which the slots of a group have some each.
inline void waiting_cells(const StepTask& task, int64_t layer, int64_t slot) {
    const UnrolledStep& call = task.call;
    if (!normalises(call, layer)) return;
    const int64_t groups = task.grid.unit_groups;
    const Range rows = part(call.rows, task.grid.row_groups, slot / groups);
    const Range mine = part(rows.end - rows.begin, groups, slot % groups);
    for (int64_t row = rows.begin + mine.begin; row < rows.begin + mine.end; ++row) {
        const int64_t at = (layer * call.rows + row) * call.hidden;
        float* sums = call.sums + row * waiting_width(call.hidden);
        waiting_cell(call, layer, sums, call.c + at, call.h_before + at, call.h_after + at);
    }
}

template <typename Format>
void step_phase(const StepTask& task, int64_t at, int64_t slot) {
    const UnrolledStep& call = task.call;
    const int64_t phase = at / task.turns;
    if (at % task.turns != 0) return waiting_cells(task, phase, slot);
    const int64_t hidden = call.hidden, state = call.rows * hidden;
    const float* below = phase > 0 ? call.h_after + (phase - 1) * state : nullptr;
    if (phase == call.layers) {
        const Packed& packed = *packed_at(call.packed_projection);
        const StepInputs inputs{{}, matrix(below, hidden), 0, hidden, false};
        const ProjectionTarget target{{call.out, call.output, 0, 0}, call.output};
        step_product<Format>(share_of(task, slot, packed), inputs, packed, target);
    } else {
        const Packed& packed = *packed_at(call.packed[phase]);
        const float* x = phase == 0 ? call.x : below;
        const int64_t input = phase == 0 ? call.input : hidden;
        const StepInputs inputs{matrix(x, input), matrix(call.h_before + phase * state, hidden), input, hidden,
                                phase > 0};
        step_product<Format>(share_of(task, slot, packed), inputs, packed, LayerTarget{call, phase});
    }
}

template <typename Format>
void step(const void* given, int64_t phase, int64_t slot) {
    const StepTask& task = *static_cast<const StepTask*>(given);
    if (task.grid.unit_groups > 1) return step_phase<Format>(task, phase, slot);
    const int64_t phases = task.call.layers * task.turns + (task.call.packed_projection != nullptr ? 1 : 0);
    for (int64_t each = 0; each < phases; ++each) step_phase<Format>(task, each, slot);
}

template <typename Format>
void step_pack(const void* given, int64_t, int64_t slot) {
    const PackTask& task = *static_cast<const PackTask*>(given);
    const Packed& packed = *task.packed;
    const int64_t bytes = Format::block_bytes(packed.input, packed.hidden);
    const Range share = part(panel_blocks(packed), task.slots, slot);
    for (int64_t block = share.begin; block < share.end; ++block) {
        Format::pack(task, block, task.packed->panels() + block * bytes);
    }
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
