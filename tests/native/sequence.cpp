#include "sequence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace driver {
namespace {

template <typename T>
const T* pointer_unless_empty(const Buffer<T>& buffer) {
    return buffer.count() > 0 ? buffer.data() : nullptr;
}

bool ended(const Sequence& sequence, int64_t step, int64_t row) {
    return !sequence.lengths.empty() && sequence.lengths[static_cast<std::size_t>(row)] <= step;
}

bool starts(const Sequence& sequence, int64_t step, int64_t row) {
    if (sequence.resets.empty() || step >= sequence.sizes.steps) return false;
    return sequence.resets[static_cast<std::size_t>(step * sequence.sizes.rows + row)] != 0;
}

void check_zero(const char* name, const float* got, int64_t begin, int64_t count) {
    for (int64_t k = begin; k < begin + count; ++k) check_near(name, k, got[k], {0.0, 0.0});
}

// One row and one step. h_before and c_before are NULL for zeros.
void check_cells(const Sequence& sequence, const Forward& run, int64_t at, const float* h_before,
                 const float* c_before) {
    const int64_t hidden = sequence.sizes.hidden, width = 4 * hidden;
    std::vector<double> sum(static_cast<std::size_t>(width), 0.0), size(sum);
    for (int64_t k = 0; k < hidden && h_before != nullptr; ++k) {
        const float* w = sequence.w_h.data() + k * width;
        const double h = h_before[k];
        for (int64_t j = 0; j < width; ++j) {
            const double product = h * static_cast<double>(w[j]);
            sum.data()[j] += product;
            size.data()[j] += std::fabs(product);
        }
    }
    const float* pre = sequence.pre.data() + at * width;
    const float* gates = run.gates.data() + at * width;
    for (int64_t unit = 0; unit < hidden; ++unit) {
        const auto sum_of = [&](int64_t gate) {
            const int64_t j = gate * hidden + unit;
            return summed(exact(pre[j]), sum.data()[j], size.data()[j], hidden);
        };
        const bool peephole = sequence.options.peephole;
        const Near before = exact(c_before != nullptr ? c_before[unit] : 0.0f);
        const auto looks = [&](int64_t which, Near at_c) { return exact(sequence.peephole_at(which, unit)) * at_c; };
        const Near i = sequence.gate(peephole ? sum_of(0) + looks(0, before) : sum_of(0));
        const Near f = sequence.gate(peephole ? sum_of(1) + looks(1, before) : sum_of(1));
        const Near g = sequence.squashed(sum_of(2));
        Near c = f * before + i * g;
        if (sequence.options.clip > 0.0f) c = kept_within(-sequence.options.clip, sequence.options.clip, c);
        const Near o = sequence.gate(peephole ? sum_of(3) + looks(2, c) : sum_of(3));
        check_near("i", at * width + unit, gates[unit], i);
        check_near("f", at * width + unit, gates[hidden + unit], f);
        check_near("g", at * width + unit, gates[2 * hidden + unit], g);
        check_near("o", at * width + unit, gates[3 * hidden + unit], o);
        check_near("c", at * hidden + unit, run.c.data()[at * hidden + unit], c);
        check_near("h", at * hidden + unit, run.h.data()[at * hidden + unit], o * sequence.squashed(c));
    }
}

// What reaches a row's h from the pre-activations of the step behind it.
Near carried(const Sequence& sequence, const float* later, int64_t unit) {
    const int64_t width = 4 * sequence.sizes.hidden;
    const float* w = sequence.w_h.data() + unit * width;
    double sum = 0.0, size = 0.0;
    for (int64_t j = 0; j < width; ++j) {
        const double product = static_cast<double>(later[j]) * static_cast<double>(w[j]);
        sum += product;
        size += std::fabs(product);
    }
    return summed(exact(0.0f), sum, size, width);
}

struct Unit {
    int64_t step, row, unit;
};

// `dh_later` and `dc` are what comes from the steps behind; `dc` goes on to the step before.
void check_cell_gradients(const Sequence& sequence, const Cotangents& given, const Backward& run, Unit which,
                          Near dh_later, Near& dc) {
    const int64_t rows = sequence.sizes.rows, hidden = sequence.sizes.hidden, step = which.step, row = which.row;
    const int64_t at = step * rows + row, state = at * hidden + which.unit, pre = 4 * at * hidden + which.unit;
    const bool fresh = starts(sequence, step, row);
    const auto of_gate = [&](int64_t gate) { return exact(given.gates(step, row, gate * hidden + which.unit)); };
    const auto gate = [&](int64_t k) { return exact(run.call.gates[pre + k * hidden]); };
    const auto slope = [&](int64_t k) { return sequence.gate_slope(run.call.gates[pre + k * hidden]); };
    const Near none = exact(0.0f), i = gate(0), f = gate(1), g = gate(2), o = gate(3);
    const float c_now = run.call.c[state];
    const Near squashed_c = sequence.squashed(exact(c_now));
    const Near slope_c = sequence.options.relu ? sequence.squashed_slope(c_now)
                                               : exact(1.0f) - squashed_c * squashed_c;
    const float* before = step > 0 ? run.call.c + state - rows * hidden : run.call.c0 + row * hidden + which.unit;
    const Near c_before = fresh ? none : exact(*before);

    const Near dh = dh_later + exact(given.h(step, row, which.unit));
    const bool peephole = sequence.options.peephole;
    const auto looks = [&](int64_t k) { return exact(sequence.peephole_at(k, which.unit)); };
    dc = dh * o * slope_c + (exact(given.c(step, row, which.unit)) + dc);
    const Near dpre_o = (dh * squashed_c + of_gate(3)) * slope(3);
    if (peephole) dc = dc + dpre_o * looks(2);
    if (sequence.options.clip > 0.0f && std::fabs(c_now) >= sequence.options.clip) dc = none;
    const Near dpre_i = (dc * g + of_gate(0)) * slope(0), dpre_f = (dc * c_before + of_gate(1)) * slope(1);
    const Near dpre_g = (dc * i + of_gate(2)) * sequence.squashed_slope(run.call.gates[pre + 2 * hidden]);
    const float* grad_pre = run.grad_pre.data();
    check_near("grad_pre of i", pre, grad_pre[pre], dpre_i);
    check_near("grad_pre of f", pre, grad_pre[pre + hidden], dpre_f);
    check_near("grad_pre of g", pre, grad_pre[pre + 2 * hidden], dpre_g);
    check_near("grad_pre of o", pre, grad_pre[pre + 3 * hidden], dpre_o);
    dc = dc * f;
    if (peephole) dc = dc + dpre_i * looks(0) + dpre_f * looks(1);
    if (fresh) dc = none;
}

}  // namespace

Sequence::Sequence(Sizes given, Masks masks, Random& random, Options chosen)
    : options(chosen),
      sizes(given),
      pre(random.floats(4 * given.states(), 2.5f)),
      w_h(random.floats(4 * given.hidden * given.hidden, 2.0f / std::sqrt(1.0f + static_cast<float>(given.hidden)))),
      h0(random.floats(given.rows * given.hidden, 1.0f)),
      c0(random.floats(given.rows * given.hidden, 2.0f)),
      peephole(random.floats(chosen.peephole ? 3 * given.hidden : 0, 1.0f)) {
    const bool some_reset = masks == Masks::resets || masks == Masks::both;
    const bool some_ended = masks == Masks::lengths || masks == Masks::both;
    for (int64_t k = 0; k < sizes.steps * sizes.rows && (some_reset || masks == Masks::all_reset); ++k) {
        resets.push_back(masks == Masks::all_reset || random.below(3) == 0 ? 1 : 0);
    }
    // Whoever runs a sequence in pieces has lengths below zero and beyond the last step.
    for (int64_t row = 0; row < sizes.rows && (some_ended || masks == Masks::all_ended); ++row) {
        lengths.push_back(masks == Masks::all_ended ? -random.below(2) : random.below(sizes.steps + 4) - 1);
    }
}

UnrolledCell Sequence::cell(const Buffer<float>& copy) const {
    return {pointer_unless_empty(copy), options.clip, options.hard_gates ? 1 : 0, options.relu ? 1 : 0};
}

Near Sequence::gate_slope(float y) const {
    if (!options.hard_gates) return exact(y) * (exact(1.0f) - exact(y));
    return y > 0.0f && y < 1.0f ? Near{1.0 / 6.0, kRounding / 6.0} : exact(0.0f);
}

Near Sequence::squashed_slope(float y) const {
    if (options.relu) return exact(y > 0.0f ? 1.0f : 0.0f);
    return exact(1.0f) - exact(y) * exact(y);
}

void add_extremes(Sequence& sequence, Random& random) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kValues[] = {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                                 1e30f,     -1e30f,     89.0f,
                                 -89.0f,    -104.0f,    9.5f,
                                 1e-30f,    1e-42f,     0.0f};
    const auto row_floats = static_cast<std::size_t>(4 * sequence.sizes.hidden);
    std::size_t next = 0;
    for (std::size_t k = 0; k < sequence.pre.size(); ++k) {
        // NaN stays in its row for good: every other row has none.
        const bool odd = k / row_floats % 2 == 1;
        if (random.below(5) > 0) continue;
        const float value = kValues[next++ % (sizeof kValues / sizeof *kValues)];
        if (odd || value == value) sequence.pre[k] = value;
    }
}

Forward::Forward(const Sequence& sequence, Stored stored, Place place)
    : call{},
      h(sequence.sizes.states(), place),
      c(stored.every_c ? sequence.sizes.states() : sequence.sizes.rows * sequence.sizes.hidden, place),
      gates(stored.gates ? 4 * sequence.sizes.states() : 0, place),
      pre_(sequence.pre, place),
      w_h_(sequence.w_h, place),
      h0_(sequence.h0, place),
      c0_(sequence.c0, place),
      peephole_(sequence.peephole, place),
      resets_(sequence.resets, place),
      lengths_(sequence.lengths, place),
      scratch_(unrolled_forward_scratch(sequence.sizes.hidden), place) {
    call.steps = sequence.sizes.steps;
    call.rows = sequence.sizes.rows;
    call.hidden = sequence.sizes.hidden;
    call.pre = pre_.data();
    call.w_h = w_h_.data();
    call.h0 = h0_.data();
    call.c0 = c0_.data();
    call.resets = pointer_unless_empty(resets_);
    call.lengths = pointer_unless_empty(lengths_);
    call.h = h.data();
    call.c = c.data();
    call.gates = stored.gates ? gates.data() : nullptr;
    call.scratch = scratch_.data();
    call.scratch_floats = scratch_.count();
    call.keep_c = stored.every_c ? 1 : 0;
    call.cell = sequence.cell(peephole_);
}

void check_forward(const Sequence& sequence, const Forward& run) {
    const Sizes& sizes = sequence.sizes;
    for (int64_t at = 0; at < sizes.steps * sizes.rows; ++at) {
        const int64_t step = at / sizes.rows, row = at % sizes.rows, before = (at - sizes.rows) * sizes.hidden;
        if (ended(sequence, step, row)) {
            check_zero("h", run.h.data(), at * sizes.hidden, sizes.hidden);
            check_zero("c", run.c.data(), at * sizes.hidden, sizes.hidden);
            check_zero("gates", run.gates.data(), 4 * at * sizes.hidden, 4 * sizes.hidden);
        } else if (starts(sequence, step, row)) {
            check_cells(sequence, run, at, nullptr, nullptr);
        } else if (step == 0) {
            check_cells(sequence, run, at, sequence.h0.data() + row * sizes.hidden,
                        sequence.c0.data() + row * sizes.hidden);
        } else {
            check_cells(sequence, run, at, run.h.data() + before, run.c.data() + before);
        }
    }
}

Cotangent::Cotangent(Sizes sizes, int64_t width, Layout layout, Random& random)
    : layout_(layout), time_stride_(0), row_stride_(0) {
    if (layout == Layout::absent) return;
    if (layout == Layout::contiguous) {
        row_stride_ = width;
        time_stride_ = sizes.rows * width;
    } else if (layout == Layout::batch_first) {
        time_stride_ = width;
        row_stride_ = sizes.steps * width + 3;
    }
    const bool any = sizes.steps > 0 && sizes.rows > 0;
    const int64_t last = (sizes.steps - 1) * time_stride_ + (sizes.rows - 1) * row_stride_;
    values = random.floats(any ? last + width : 0, 1.5f);
}

UnrolledGradient Cotangent::at(const Buffer<float>& memory) const {
    if (layout_ == Layout::absent) return {nullptr, 0, 0};
    return {memory.data(), time_stride_, row_stride_};
}

float Cotangent::operator()(int64_t step, int64_t row, int64_t column) const {
    return layout_ == Layout::absent ? 0.0f : values.data()[step * time_stride_ + row * row_stride_ + column];
}

Backward::Backward(const Sequence& sequence, const Floats& c, const Floats& gates, const Cotangents& given, Place place)
    : call{},
      grad_pre(4 * sequence.sizes.states(), place),
      grad_h0(sequence.sizes.rows * sequence.sizes.hidden, place),
      grad_c0(sequence.sizes.rows * sequence.sizes.hidden, place),
      grad_h_(given.h.values, place),
      grad_c_(given.c.values, place),
      grad_gates_(given.gates.values, place),
      w_h_(sequence.w_h, place),
      c_(c, place),
      gates_(gates, place),
      c0_(sequence.c0, place),
      peephole_(sequence.peephole, place),
      resets_(sequence.resets, place),
      lengths_(sequence.lengths, place),
      scratch_(unrolled_backward_scratch(sequence.sizes.hidden), place) {
    call.steps = sequence.sizes.steps;
    call.rows = sequence.sizes.rows;
    call.hidden = sequence.sizes.hidden;
    call.grad_h = given.h.at(grad_h_);
    call.grad_c = given.c.at(grad_c_);
    call.grad_gates = given.gates.at(grad_gates_);
    call.w_h = w_h_.data();
    call.c = c_.data();
    call.gates = gates_.data();
    call.c0 = c0_.data();
    call.resets = pointer_unless_empty(resets_);
    call.lengths = pointer_unless_empty(lengths_);
    call.grad_pre = grad_pre.data();
    call.grad_h0 = grad_h0.data();
    call.grad_c0 = grad_c0.data();
    call.cell = sequence.cell(peephole_);
    call.scratch = scratch_.data();
    call.scratch_floats = scratch_.count();
}

void check_backward(const Sequence& sequence, const Cotangents& given, const Backward& run) {
    const int64_t steps = sequence.sizes.steps, rows = sequence.sizes.rows, hidden = sequence.sizes.hidden;
    const Near none = exact(0.0f);
    const float* grad_pre = run.grad_pre.data();
    for (int64_t row = 0; row < rows; ++row) {
        std::vector<Near> carried_c(static_cast<std::size_t>(hidden), none);
        for (int64_t step = steps - 1; step >= -1; --step) {
            const int64_t at = step * rows + row;
            if (step >= 0 && ended(sequence, step, row)) {
                check_zero("grad_pre", grad_pre, 4 * at * hidden, 4 * hidden);
                std::fill(carried_c.begin(), carried_c.end(), none);
                continue;
            }
            const bool cut = step + 1 == steps || starts(sequence, step + 1, row);
            for (int64_t unit = 0; unit < hidden; ++unit) {
                const Near dh = cut ? none : carried(sequence, grad_pre + 4 * (at + rows) * hidden, unit);
                Near& dc = carried_c.data()[unit];
                if (step >= 0) {
                    check_cell_gradients(sequence, given, run, {step, row, unit}, dh, dc);
                } else {
                    check_near("grad_h0", row * hidden + unit, run.grad_h0.data()[row * hidden + unit], dh);
                    check_near("grad_c0", row * hidden + unit, run.grad_c0.data()[row * hidden + unit], dc);
                }
            }
        }
    }
}

}  // namespace driver
