// Several steps of a stack, layer by layer: the bits of single steps, with the share of x as one product for many steps.
//
// What a layer multiplies step after step is then its w_h alone, which the caches near the cores keep.
#pragma once

#include "step.h"

namespace unrolled {
namespace UNROLLED_ISA {

// The rows of one group of slots over some steps, and where they lie in the scratch.
struct Chunk {
    const StepsTask& task;
    Range rows;  // of the batch
    int64_t first_step, steps;
    float *pre, *h, *h_first;

    Chunk(const StepsTask& given, int64_t index, int64_t slot)
        : task(given),
          rows(part(given.call.rows, given.grid.row_groups, slot / given.grid.unit_groups)),
          first_step(index * given.chunk),
          steps(given.steps - first_step < given.chunk ? given.steps - first_step : given.chunk),
          pre(given.pre + rows.begin * given.chunk * pre_width()),
          h(given.h + rows.begin * given.chunk * given.call.hidden),
          h_first(given.h_first + rows.begin * given.call.hidden) {}

    int64_t batch() const { return rows.end - rows.begin; }
    int64_t pre_width() const { return waiting_width(task.call.hidden); }
    float* pre_at(int64_t row, int64_t block) const { return pre + row * pre_width() + block * kBlockColumns; }
    const float* h_before(int64_t step, int64_t row) const {
        const int64_t hidden = task.call.hidden;
        return step > 0 ? h + ((step - 1) * batch() + row) * hidden : h_first + row * hidden;
    }

    // The chunk's rows of a sequence [rows, steps, width] of the caller's.
    template <typename Float>
    Rows<Float> of_sequence(Float* sequence, int64_t width) const {
        Float* first = sequence + (rows.begin * task.steps + first_step) * width;
        return {first, task.steps * width, batch(), width};
    }

    StepShare share(int64_t slot, Range of_rows, int64_t blocks, bool backwards) const {
        const int64_t groups = task.grid.unit_groups;
        return {of_rows, part(blocks, groups, slot % groups), backwards, task.scratch + slot * task.slot_bytes};
    }
};

struct InputTarget {
    const Chunk& chunk;

    UNROLLED_INLINE Vector start(int64_t, int64_t, int v, const float* bias) const { return load(bias + v * kLanes); }

    UNROLLED_INLINE void finish(int64_t row, int64_t block, const Vector* sum) const {
        store_waiting(chunk.pre_at(row, 0), block, sum);
    }
};

struct RecurrentTarget {
    const Chunk& chunk;
    int64_t layer, step;

    UNROLLED_INLINE Vector start(int64_t row, int64_t block, int v, const float*) const {
        return load(chunk.pre_at(step * chunk.batch() + row, block) + v * kLanes);
    }

    UNROLLED_INLINE void finish(int64_t row, int64_t block, const Vector* sum) const {
        const UnrolledStep& call = chunk.task.call;
        const int64_t unit = block * kLanes, count = call.hidden - unit;
        if (normalises(call, layer)) return store_waiting(chunk.pre_at(step * chunk.batch() + row, 0), block, sum);
        const int64_t at = (layer * call.rows + chunk.rows.begin + row) * call.hidden + unit;
        const float* h_before = chunk.h_before(step, row) + unit;
        const Cell cell = step_cell(call, layer, sum, load_some(call.c + at, count), h_before, unit);
        store_some(call.c + at, cell.c, count);
        store_some(chunk.h + (step * chunk.batch() + row) * call.hidden + unit, cell.h, count);
        if (step + 1 == chunk.steps) store_some(call.h_after + at, cell.h, count);
    }
};

// A slot's units of what the recurrence of a layer starts from: the share of x at all steps, and h before the first one.
template <typename Format>
void before_recurrence(const Chunk& chunk, int64_t layer, int64_t slot) {
    const UnrolledStep& call = chunk.task.call;
    const Packed& packed = *packed_at(call.packed[layer]);
    const int64_t hidden = call.hidden, batch = chunk.batch();
    const StepShare share = chunk.share(slot, {0, chunk.steps * batch}, panel_blocks(packed), false);
    const Range blocks = share.blocks;
    if (blocks.begin == blocks.end) return;
    const int64_t first = blocks.begin * kLanes, end = hidden < blocks.end * kLanes ? hidden : blocks.end * kLanes;
    const float* h = (chunk.first_step == 0 ? call.h_before : call.h_after) +
                     (layer * call.rows + chunk.rows.begin) * hidden + first;
    for (int64_t row = 0; row < batch; ++row) {
        std::memcpy(chunk.h_first + row * hidden + first, h + row * hidden, (end - first) * sizeof(float));
    }
    if (layer > 0 || call.ids == nullptr) {
        const Rows<const float> x = layer > 0 ? matrix(chunk.h, hidden) : chunk.of_sequence(call.x, call.input);
        const StepInputs inputs{x, {}, layer > 0 ? hidden : call.input, 0, layer > 0};
        step_product<Format>(share, inputs, packed, InputTarget{chunk});
        return;
    }
    for (int64_t row = share.rows.begin; row < share.rows.end; ++row) {
        const int64_t of_batch = chunk.rows.begin + row % batch, step = chunk.first_step + row / batch;
        const float* from = call.table + call.ids[of_batch * chunk.task.steps + step] * 4 * hidden;
        for (int64_t block = blocks.begin; block < blocks.end; ++block) {
            for (int v = 0; v < kPanel; ++v) {
                const int64_t unit = block * kLanes;
                store(chunk.pre_at(row, block) + v * kLanes, load_some(from + v * hidden + unit, hidden - unit));
            }
        }
    }
}

template <typename Format>
void recurrence(const Chunk& chunk, int64_t layer, int64_t step, int64_t slot) {
    const UnrolledStep& call = chunk.task.call;
    const Packed& packed = *packed_at(call.packed[layer]);
    const float* h = step > 0 ? chunk.h + (step - 1) * chunk.batch() * call.hidden : chunk.h_first;
    // Up and down in turn: the panels that the last step ended with are still in the cache.
    const StepShare share = chunk.share(slot, {0, chunk.batch()}, panel_blocks(packed), step % 2 == 1);
    const StepInputs inputs{{}, matrix(h, call.hidden), 0, call.hidden, false};
    step_product<Format>(share, inputs, packed, RecurrentTarget{chunk, layer, step});
}

// As in a single step.
inline void waiting_cells(const Chunk& chunk, int64_t layer, int64_t step, int64_t slot) {
    const UnrolledStep& call = chunk.task.call;
    if (!normalises(call, layer)) return;
    const int64_t groups = chunk.task.grid.unit_groups, hidden = call.hidden;
    const Range mine = part(chunk.batch(), groups, slot % groups);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
        const int64_t at = (layer * call.rows + chunk.rows.begin + row) * hidden, of_chunk = step * chunk.batch() + row;
        float* h = chunk.h + of_chunk * hidden;
        waiting_cell(call, layer, chunk.pre_at(of_chunk, 0), call.c + at, chunk.h_before(step, row), h);
        if (step + 1 == chunk.steps) std::memcpy(call.h_after + at, h, hidden * sizeof(float));
    }
}

template <typename Format>
void write_out(const Chunk& chunk, int64_t slot) {
    const UnrolledStep& call = chunk.task.call;
    const int64_t hidden = call.hidden;
    const Range rows{0, chunk.steps * chunk.batch()};
    if (call.packed_projection != nullptr) {
        const Packed& packed = *packed_at(call.packed_projection);
        const StepInputs inputs{{}, matrix(chunk.h, hidden), 0, hidden, false};
        const ProjectionTarget target{chunk.of_sequence(call.out, call.output), call.output};
        step_product<Format>(chunk.share(slot, rows, panel_blocks(packed), false), inputs, packed, target);
        return;
    }
    const Rows<float> out = chunk.of_sequence(call.out, hidden);
    const Range mine = chunk.share(slot, rows, rows.end, false).blocks;
    for (int64_t row = mine.begin; row < mine.end; ++row) {
        std::memcpy(out.at(row), chunk.h + row * hidden, hidden * sizeof(float));
    }
}

template <typename Format>
void steps_phase(const Chunk& chunk, int64_t phase, int64_t slot) {
    const int64_t turns = chunk.task.turns, of_layer = 1 + chunk.steps * turns;
    const int64_t layer = phase / of_layer, turn = phase % of_layer - 1;
    if (layer == chunk.task.call.layers) return write_out<Format>(chunk, slot);
    if (turn < 0) return before_recurrence<Format>(chunk, layer, slot);
    if (turn % turns != 0) return waiting_cells(chunk, layer, turn / turns, slot);
    recurrence<Format>(chunk, layer, turn / turns, slot);
}

template <typename Format>
void steps(const void* given, int64_t phase, int64_t slot) {
    const StepsTask& task = *static_cast<const StepsTask*>(given);
    if (task.grid.unit_groups > 1) {
        const int64_t each = task.phases(task.chunk);
        return steps_phase<Format>(Chunk(task, phase / each, slot), phase % each, slot);
    }
    for (int64_t index = 0; index * task.chunk < task.steps; ++index) {
        const Chunk chunk(task, index, slot);
        for (int64_t each = 0; each < task.phases(chunk.steps); ++each) steps_phase<Format>(chunk, each, slot);
    }
}

template <typename Format>
constexpr StepKernel step_kernel() {
    return {kLanes, step_pack<Format>, step<Format>, steps<Format>};
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
