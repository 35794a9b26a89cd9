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

Near mean_of(const std::vector<Near>& values) {
    double sum = 0.0, size = 0.0, error = 0.0;
    for (const Near& value : values) {
        sum += value.value;
        size += std::fabs(value.value) + value.error;
        error += value.error;
    }
    const auto count = static_cast<int64_t>(values.size());
    const Near total = summed(exact(0.0f), sum, size, count);
    return divided({total.value, total.error + error}, static_cast<double>(count));
}

// Numbers as they are normalised, and the factor that did it.
struct Standard {
    Standard(const float* x, int64_t count) {
        for (int64_t k = 0; k < count; ++k) values.push_back(exact(x[k]));
        const Near mean = mean_of(values);
        std::vector<Near> squares;
        for (Near& value : values) {
            value = value - mean;
            squares.push_back(value * value);
        }
        factor = inverse_root(mean_of(squares) + exact(1e-5f));
        for (Near& value : values) value = value * factor;
    }

    // From the gradient of the values to that of what they were made of.
    std::vector<Near> back(const std::vector<Near>& grad) const {
        std::vector<Near> along, result;
        for (std::size_t k = 0; k < grad.size(); ++k) along.push_back(grad[k] * values[k]);
        const Near mean = mean_of(grad), standard = mean_of(along);
        for (std::size_t k = 0; k < grad.size(); ++k) {
            result.push_back((grad[k] - mean - values[k] * standard) * factor);
        }
        return result;
    }

    std::vector<Near> values;
    Near factor;
};

// One row and one step. h_before and c_before are NULL for zeros. What is normalised, the kernel has stored.
void check_cells(const Sequence& sequence, const Forward& run, int64_t at, const float* h_before,
                 const float* c_before) {
    const int64_t hidden = sequence.sizes.hidden, width = 4 * hidden, first = at * sequence.planes() * hidden;
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
    const float *gates = run.gates.data() + first, *c_after = run.c.data() + at * hidden;
    const bool norm = sequence.options.norm;
    std::vector<Standard> standard;
    for (int64_t gate = 0; gate < 4 && norm; ++gate) standard.emplace_back(gates + (4 + gate) * hidden, hidden);
    const Standard of_c(c_after, norm ? hidden : 0);
    for (int64_t unit = 0; unit < hidden; ++unit) {
        const auto sum_of = [&](int64_t gate) {
            const int64_t j = gate * hidden + unit;
            const Near own = summed(exact(pre[j]), sum.data()[j], size.data()[j], hidden);
            if (!norm) return own;
            check_near("sum", first + (4 + gate) * hidden + unit, gates[(4 + gate) * hidden + unit], own);
            return sequence.normed(gate, unit, standard.data()[gate].values.data()[unit]);
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
        check_near("i", first + unit, gates[unit], i);
        check_near("f", first + unit, gates[hidden + unit], f);
        check_near("g", first + unit, gates[2 * hidden + unit], g);
        check_near("o", first + unit, gates[3 * hidden + unit], o);
        check_near("c", at * hidden + unit, c_after[unit], c);
        const Near seen = norm ? sequence.normed(4, unit, of_c.values.data()[unit]) : c;
        check_near("h", at * hidden + unit, run.h.data()[at * hidden + unit], o * sequence.squashed(seen));
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

struct Where {
    int64_t step, row;
};

// One row of one step. `dh` is what comes from the step behind through h; `dc`, what comes through c, goes on to the step
// before. `of_cell` [gradient_planes, hidden] grows by what this step adds.
void check_row_gradients(const Sequence& sequence, const Cotangents& given, const Backward& run, Where where,
                         const std::vector<Near>& dh_later, std::vector<Near>& carried, std::vector<Near>& of_cell) {
    const int64_t rows = sequence.sizes.rows, hidden = sequence.sizes.hidden, step = where.step, row = where.row;
    const int64_t at = step * rows + row;
    const bool fresh = starts(sequence, step, row), peephole = sequence.options.peephole, norm = sequence.options.norm;
    const float *gates = run.call.gates + at * sequence.planes() * hidden, *c = run.call.c + at * hidden;
    const float* before = step > 0 ? c - rows * hidden : run.call.c0 + row * hidden;
    const Near none = exact(0.0f);
    const auto units = static_cast<std::size_t>(hidden);
    const Standard of_c(c, norm ? hidden : 0);
    std::vector<Near> squashed_c(units, none), into_c(units, none), behind[4];
    for (std::vector<Near>& of_gate : behind) of_gate.assign(units, none);

    for (std::size_t k = 0; k < units; ++k) {
        const auto unit = static_cast<int64_t>(k);
        squashed_c[k] = sequence.squashed(norm ? sequence.normed(4, unit, of_c.values[k]) : exact(c[k]));
        const Near slope = norm ? sequence.squashed_slope(squashed_c[k])
                           : sequence.options.relu ? sequence.squashed_slope(c[k])
                                                   : exact(1.0f) - squashed_c[k] * squashed_c[k];
        const Near dh = dh_later[k] + exact(given.h(step, row, unit));
        into_c[k] = dh * exact(gates[3 * hidden + unit]) * slope;
        behind[3][k] = (dh * squashed_c[k] + exact(given.gates(step, row, 3 * hidden + unit))) *
                       sequence.gate_slope(gates[3 * hidden + unit]);
        if (!norm) continue;
        Near &gain = of_cell[4 * units + k], &shift = of_cell[9 * units + k];
        gain = gain + into_c[k] * of_c.values[k];
        shift = shift + into_c[k];
        into_c[k] = into_c[k] * sequence.gain_at(4, unit);
    }
    if (norm) into_c = of_c.back(into_c);

    for (std::size_t k = 0; k < units; ++k) {
        const auto unit = static_cast<int64_t>(k);
        const auto gate = [&](int64_t which) { return gates[which * hidden + unit]; };
        const auto of_gate = [&](int64_t which) { return exact(given.gates(step, row, which * hidden + unit)); };
        const auto looks = [&](int64_t which) { return exact(sequence.peephole_at(which, unit)); };
        const Near c_before = fresh ? none : exact(before[unit]);
        Near dc = into_c[k] + (exact(given.c(step, row, unit)) + carried[k]);
        if (peephole) dc = dc + behind[3][k] * looks(2);
        if (sequence.options.clip > 0.0f && std::fabs(c[k]) >= sequence.options.clip) dc = none;
        behind[0][k] = (dc * exact(gate(2)) + of_gate(0)) * sequence.gate_slope(gate(0));
        behind[1][k] = (dc * c_before + of_gate(1)) * sequence.gate_slope(gate(1));
        behind[2][k] = (dc * exact(gate(0)) + of_gate(2)) * sequence.squashed_slope(gate(2));
        dc = dc * exact(gate(1));
        if (peephole) dc = dc + behind[0][k] * looks(0) + behind[1][k] * looks(1);
        carried[k] = fresh ? none : dc;
        if (!peephole) continue;
        const Near seen[] = {behind[0][k] * c_before, behind[1][k] * c_before, behind[3][k] * exact(c[k])};
        for (std::size_t which = 0; which < 3; ++which) {
            Near& to = of_cell[of_cell.size() - (3 - which) * units + k];
            to = to + seen[which];
        }
    }

    constexpr const char* kNames[] = {"grad_pre of i", "grad_pre of f", "grad_pre of g", "grad_pre of o"};
    for (std::size_t which = 0; which < 4; ++which) {
        const auto number = static_cast<int64_t>(which);
        if (norm) {
            const Standard own(gates + (4 + number) * hidden, hidden);
            std::vector<Near> gained;
            for (std::size_t k = 0; k < units; ++k) {
                Near &gain = of_cell[which * units + k], &shift = of_cell[(5 + which) * units + k];
                gain = gain + behind[which][k] * own.values[k];
                shift = shift + behind[which][k];
                gained.push_back(behind[which][k] * sequence.gain_at(number, static_cast<int64_t>(k)));
            }
            behind[which] = own.back(gained);
        }
        for (int64_t unit = 0; unit < hidden; ++unit) {
            const int64_t k = (4 * at + number) * hidden + unit;
            const Near own = behind[which].data()[unit];
            const Near of_sum = exact(norm ? given.gates(step, row, (4 + number) * hidden + unit) : 0.0f);
            check_near(kNames[which], k, run.grad_pre.data()[k], norm ? own + of_sum : own);
        }
    }
}

}  // namespace

Sequence::Sequence(Sizes given, Masks masks, Random& random, Options chosen)
    : options(chosen),
      sizes(given),
      pre(random.floats(4 * given.states(), 2.5f)),
      w_h(random.floats(4 * given.hidden * given.hidden, 2.0f / std::sqrt(1.0f + static_cast<float>(given.hidden)))),
      h0(random.floats(given.rows * given.hidden, 1.0f)),
      c0(random.floats(given.rows * given.hidden, 2.0f)),
      peephole(random.floats(chosen.peephole ? 3 * given.hidden : 0, 1.0f)),
      norm(random.floats(chosen.norm ? 10 * given.hidden : 0, 1.5f)) {
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

UnrolledCell Sequence::cell(const Buffer<float>& of_peephole, const Buffer<float>& of_norm) const {
    UnrolledCell cell{};
    cell.peephole = pointer_unless_empty(of_peephole);
    cell.clip = options.clip;
    cell.hard_gates = options.hard_gates ? 1 : 0;
    cell.relu = options.relu ? 1 : 0;
    cell.norm = pointer_unless_empty(of_norm);
    return cell;
}

Near Sequence::gate_slope(float y) const {
    if (!options.hard_gates) return exact(y) * (exact(1.0f) - exact(y));
    return y > 0.0f && y < 1.0f ? Near{1.0 / 6.0, kRounding / 6.0} : exact(0.0f);
}

Near Sequence::squashed_slope(float y) const {
    if (options.relu) return exact(y > 0.0f ? 1.0f : 0.0f);
    return exact(1.0f) - exact(y) * exact(y);
}

Near Sequence::squashed_slope(Near y) const {
    if (options.relu) return exact(y.value > 0.0 ? 1.0f : 0.0f);
    return exact(1.0f) - y * y;
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
      gates(stored.gates ? sequence.planes() * sequence.sizes.states() : 0, place),
      pre_(sequence.pre, place),
      w_h_(sequence.w_h, place),
      h0_(sequence.h0, place),
      c0_(sequence.c0, place),
      peephole_(sequence.peephole, place),
      norm_(sequence.norm, place),
      sums_(sequence.options.norm && !stored.gates ? 4 * sequence.sizes.states() : 0, place),
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
    call.cell = sequence.cell(peephole_, norm_);
    call.sums = sequence.options.norm && !stored.gates ? sums_.data() : nullptr;
}

void check_forward(const Sequence& sequence, const Forward& run) {
    const Sizes& sizes = sequence.sizes;
    for (int64_t at = 0; at < sizes.steps * sizes.rows; ++at) {
        const int64_t step = at / sizes.rows, row = at % sizes.rows, before = (at - sizes.rows) * sizes.hidden;
        if (ended(sequence, step, row)) {
            check_zero("h", run.h.data(), at * sizes.hidden, sizes.hidden);
            check_zero("c", run.c.data(), at * sizes.hidden, sizes.hidden);
            const int64_t stored = sequence.planes() * sizes.hidden;
            check_zero("gates", run.gates.data(), at * stored, stored);
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
      grad_cell(sequence.sizes.rows * sequence.gradient_planes() * sequence.sizes.hidden, place),
      grad_h_(given.h.values, place),
      grad_c_(given.c.values, place),
      grad_gates_(given.gates.values, place),
      w_h_(sequence.w_h, place),
      c_(c, place),
      gates_(gates, place),
      c0_(sequence.c0, place),
      peephole_(sequence.peephole, place),
      norm_(sequence.norm, place),
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
    call.cell = sequence.cell(peephole_, norm_);
    call.grad_cell = sequence.gradient_planes() > 0 ? grad_cell.data() : nullptr;
    call.scratch = scratch_.data();
    call.scratch_floats = scratch_.count();
}

void check_backward(const Sequence& sequence, const Cotangents& given, const Backward& run) {
    const int64_t steps = sequence.sizes.steps, rows = sequence.sizes.rows, hidden = sequence.sizes.hidden;
    const auto units = static_cast<std::size_t>(hidden);
    const Near none = exact(0.0f);
    const float* grad_pre = run.grad_pre.data();
    for (int64_t row = 0; row < rows; ++row) {
        std::vector<Near> carried_c(units, none);
        std::vector<Near> of_cell(static_cast<std::size_t>(sequence.gradient_planes()) * units, none);
        for (int64_t step = steps - 1; step >= -1; --step) {
            const int64_t at = step * rows + row;
            if (step >= 0 && ended(sequence, step, row)) {
                check_zero("grad_pre", grad_pre, 4 * at * hidden, 4 * hidden);
                std::fill(carried_c.begin(), carried_c.end(), none);
                continue;
            }
            const bool cut = step + 1 == steps || starts(sequence, step + 1, row);
            std::vector<Near> dh;
            for (int64_t unit = 0; unit < hidden; ++unit) {
                dh.push_back(cut ? none : carried(sequence, grad_pre + 4 * (at + rows) * hidden, unit));
            }
            if (step >= 0) {
                check_row_gradients(sequence, given, run, {step, row}, dh, carried_c, of_cell);
                continue;
            }
            for (int64_t unit = 0; unit < hidden; ++unit) {
                const int64_t k = row * hidden + unit;
                check_near("grad_h0", k, run.grad_h0.data()[k], dh.data()[unit]);
                check_near("grad_c0", k, run.grad_c0.data()[k], carried_c.data()[unit]);
            }
        }
        for (std::size_t k = 0; k < of_cell.size(); ++k) {
            const auto number = row * static_cast<int64_t>(of_cell.size()) + static_cast<int64_t>(k);
            check_near("grad_cell", number, run.grad_cell.data()[number], of_cell[k]);
        }
    }
}

}  // namespace driver
