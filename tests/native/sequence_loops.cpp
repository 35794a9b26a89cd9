// One layer over time as loops in double precision, step by step from what the kernel itself has stored.
#include <algorithm>
#include <cmath>
#include <utility>

#include "check.h"
#include "sequence.h"

namespace driver {
namespace {

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

std::vector<Near> nears(const float* x, int64_t count) {
    std::vector<Near> result;
    for (int64_t k = 0; k < count; ++k) result.push_back(exact(x[k]));
    return result;
}

// Of c as nothing has held it: that is not stored where it can be held, but made again of what is.
std::vector<Near> not_held(const Sequence& sequence, Where at, const float* gates, const float* c_before,
                           const float* c_after) {
    const int64_t hidden = sequence.sizes.hidden;
    if (sequence.options.zoneout_c == 0.0f) return nears(c_after, hidden);
    std::vector<Near> result;
    for (int64_t unit = 0; unit < hidden; ++unit) {
        const Near before = exact(c_before != nullptr ? c_before[unit] : 0.0f);
        const Near g = sequence.written(at, unit, exact(gates[2 * hidden + unit]));
        const Near c = exact(gates[hidden + unit]) * before + exact(gates[unit]) * g;
        const float clip = sequence.options.clip;
        result.push_back(clip > 0.0f ? kept_within(-clip, clip, c) : c);
    }
    return result;
}

// A sum of products of what is near with weights that lie `stride` apart.
Near near_sum(const std::vector<Near>& x, const float* w, int64_t stride) {
    double sum = 0.0, size = 0.0, error = 0.0;
    for (std::size_t k = 0; k < x.size(); ++k) {
        const double weight = w[static_cast<int64_t>(k) * stride];
        sum += x[k].value * weight;
        size += (std::fabs(x[k].value) + x[k].error) * std::fabs(weight);
        error += x[k].error * std::fabs(weight);
    }
    const Near total = summed(exact(0.0f), sum, size, static_cast<int64_t>(x.size()));
    return {total.value, total.error + error};
}

// Numbers as they are normalised, and the factor that did it.
struct Standard {
    Standard(const float* x, int64_t count) : Standard(nears(x, count)) {}
    explicit Standard(std::vector<Near> x) : values(std::move(x)), factor{0.0, 0.0} {
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

// The sums of a row and a step [4 hidden], from h before the step, or NULL for zeros.
std::vector<Near> sums_of(const Sequence& sequence, Where at, const float* h_before) {
    const int64_t width = 4 * sequence.sizes.hidden, depth = sequence.width();
    std::vector<double> sum(static_cast<std::size_t>(width), 0.0), size(sum);
    for (int64_t k = 0; k < depth && h_before != nullptr; ++k) {
        const float* w = sequence.w_h.data() + k * width;
        // Rounded once, as the kernel does.
        const float taken_in = h_before[k] * sequence.h_mask_at(at.row, k);
        for (int64_t j = 0; j < width; ++j) {
            const double product = static_cast<double>(taken_in) * static_cast<double>(w[j]);
            sum.data()[j] += product;
            size.data()[j] += std::fabs(product);
        }
    }
    const float* pre = sequence.pre.data() + (at.step * sequence.sizes.rows + at.row) * width;
    std::vector<Near> result;
    for (int64_t j = 0; j < width; ++j) {
        const Near begins = sequence.bias.empty() ? exact(pre[j]) : exact(pre[j]) + exact(sequence.bias.data()[j]);
        result.push_back(summed(begins, sum.data()[j], size.data()[j], depth));
    }
    return result;
}

// One row and one step. h_before and c_before are NULL for zeros. What is normalised, the kernel has stored.
void check_cells(const Sequence& sequence, const Forward& run, Where where, const float* h_before,
                 const float* c_before) {
    const int64_t hidden = sequence.sizes.hidden, width = sequence.width();
    const int64_t at = where.step * sequence.sizes.rows + where.row, first = at * sequence.planes() * hidden;
    std::vector<Near> sums = sums_of(sequence, where, h_before);
    const float *gates = run.gates.data() + first, *c_after = run.c.data() + at * hidden;
    const bool norm = sequence.options.norm, peephole = sequence.options.peephole;
    for (int64_t gate = 0; gate < 4 && norm; ++gate) {
        const Standard standard(gates + (4 + gate) * hidden, hidden);
        for (int64_t unit = 0; unit < hidden; ++unit) {
            const int64_t k = gate * hidden + unit;
            check_near("sum", first + 4 * hidden + k, gates[4 * hidden + k], sums.data()[k]);
            sums.data()[k] = sequence.normed(gate, unit, standard.values.data()[unit]);
        }
    }
    const std::vector<Near> seen_c = not_held(sequence, where, gates, c_before, c_after);
    const Standard of_c(norm ? seen_c : std::vector<Near>());
    std::vector<Near> hs;
    for (int64_t unit = 0; unit < hidden; ++unit) {
        const auto sum = [&](int64_t gate) { return sums.data()[gate * hidden + unit]; };
        const Near before = exact(c_before != nullptr ? c_before[unit] : 0.0f);
        const auto looks = [&](int64_t which, Near at_c) { return exact(sequence.peephole_at(which, unit)) * at_c; };
        const Near i = sequence.gate(peephole ? sum(0) + looks(0, before) : sum(0));
        const Near f = sequence.gate(peephole ? sum(1) + looks(1, before) : sum(1));
        const Near g = sequence.squashed(sum(2));
        Near c = f * before + i * sequence.written(where, unit, g);
        if (sequence.options.clip > 0.0f) c = kept_within(-sequence.options.clip, sequence.options.clip, c);
        const Near o = sequence.gate(peephole ? sum(3) + looks(2, c) : sum(3));
        check_near("i", first + unit, gates[unit], i);
        check_near("f", first + unit, gates[hidden + unit], f);
        check_near("g", first + unit, gates[2 * hidden + unit], g);
        check_near("o", first + unit, gates[3 * hidden + unit], o);
        check_near("c", at * hidden + unit, c_after[unit], sequence.held(Of::c, where, unit, c, before));
        const Near seen = norm ? sequence.normed(4, unit, of_c.values.data()[unit]) : c;
        hs.push_back(o * sequence.squashed(seen));
    }
    for (int64_t unit = 0; unit < width; ++unit) {
        const Near now = sequence.options.projects ? near_sum(hs, sequence.w_hr.data() + unit, width) : hs.data()[unit];
        const Near before = exact(h_before != nullptr ? h_before[unit] : 0.0f);
        check_near("h", at * width + unit, run.h.data()[at * width + unit],
                   sequence.held(Of::h, where, unit, now, before));
    }
}

// What reaches a row's h from the pre-activations of the step behind it.
Near carried(const Sequence& sequence, const float* later, Where at, int64_t unit) {
    const int64_t width = 4 * sequence.sizes.hidden;
    const Near sum = near_sum(nears(later, width), sequence.w_h.data() + unit * width, 1);
    return sequence.options.h_mask ? sum * exact(sequence.h_mask_at(at.row, unit)) : sum;
}

// What goes on from step to step, of a row.
struct Carried {
    std::vector<Near> c, h, of_cell;  // `h` is what passes by the cell; `of_cell` [gradient_planes, hidden] grows
};

// From dL/dh of a row and a step, as it comes from later, to that of o * squashed(c).
std::vector<Near> into_cell(const Sequence& sequence, const Cotangents& given, const Backward& run, Where where,
                            const std::vector<Near>& dh_later, Carried& row) {
    const int64_t width = sequence.width(), at = where.step * sequence.sizes.rows + where.row;
    const bool fresh = sequence.starts(where.step, where.row);
    std::vector<Near> result;
    for (int64_t unit = 0; unit < width; ++unit) {
        const Near dh = dh_later.data()[unit] + exact(given.h(where.step, where.row, unit));
        row.h.data()[unit] = fresh ? exact(0.0f) : sequence.to_before(Of::h, where, unit, dh);
        result.push_back(sequence.to_new(Of::h, where, unit, dh));
    }
    if (!sequence.options.projects) return result;
    const float* stored = run.grad_projected.data() + at * width;
    for (int64_t unit = 0; unit < width; ++unit) {
        check_near("grad_projected", at * width + unit, stored[unit], result.data()[unit]);
    }
    const std::vector<Near> own = nears(stored, width);
    result.clear();
    for (int64_t unit = 0; unit < sequence.sizes.hidden; ++unit) {
        result.push_back(near_sum(own, sequence.w_hr.data() + unit * width, 1));
    }
    return result;
}

// One row of one step, from what comes from the step behind through h.
void check_row_gradients(const Sequence& sequence, const Cotangents& given, const Backward& run, Where where,
                         const std::vector<Near>& dh_later, Carried& row_of) {
    const int64_t rows = sequence.sizes.rows, hidden = sequence.sizes.hidden, step = where.step, row = where.row;
    const int64_t at = step * rows + row;
    const bool fresh = sequence.starts(step, row), peephole = sequence.options.peephole;
    const bool norm = sequence.options.norm;
    const float* gates = run.call.gates + at * sequence.planes() * hidden;
    const float* before = step > 0 ? run.call.c + (at - rows) * hidden : run.call.c0 + row * hidden;
    const Near none = exact(0.0f);
    const auto units = static_cast<std::size_t>(hidden);
    const std::vector<Near> c = not_held(sequence, where, gates, fresh ? nullptr : before, run.call.c + at * hidden);
    const std::vector<Near> dh = into_cell(sequence, given, run, where, dh_later, row_of);
    const Standard of_c(norm ? c : std::vector<Near>());
    std::vector<Near> &carried = row_of.c, &of_cell = row_of.of_cell;
    std::vector<Near> squashed_c(units, none), into_c(units, none), behind[4];
    for (std::vector<Near>& of_gate : behind) of_gate.assign(units, none);

    for (std::size_t k = 0; k < units; ++k) {
        const auto unit = static_cast<int64_t>(k);
        squashed_c[k] = sequence.squashed(norm ? sequence.normed(4, unit, of_c.values[k]) : c[k]);
        const Near slope = sequence.squashed_slope(norm || !sequence.options.relu ? squashed_c[k] : c[k]);
        into_c[k] = dh[k] * exact(gates[3 * hidden + unit]) * slope;
        behind[3][k] = (dh[k] * squashed_c[k] + exact(given.gates(step, row, 3 * hidden + unit))) *
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
        const auto gate = [&](int64_t which) { return exact(gates[which * hidden + unit]); };
        const auto of_gate = [&](int64_t which) { return exact(given.gates(step, row, which * hidden + unit)); };
        const auto looks = [&](int64_t which) { return exact(sequence.peephole_at(which, unit)); };
        const Near c_before = fresh ? none : exact(before[unit]), later = exact(given.c(step, row, unit)) + carried[k];
        Near dc = into_c[k] + sequence.to_new(Of::c, where, unit, later);
        if (peephole) dc = dc + behind[3][k] * looks(2);
        if (sequence.options.clip > 0.0f && std::fabs(c[k].value) >= static_cast<double>(sequence.options.clip)) dc = none;
        behind[0][k] = (dc * sequence.written(where, unit, gate(2)) + of_gate(0)) * sequence.gate_slope(gates[unit]);
        behind[1][k] = (dc * c_before + of_gate(1)) * sequence.gate_slope(gates[hidden + unit]);
        behind[2][k] = (sequence.written(where, unit, dc * gate(0)) + of_gate(2)) *
                       sequence.squashed_slope(gates[2 * hidden + unit]);
        dc = dc * gate(1) + sequence.to_before(Of::c, where, unit, later);
        if (peephole) dc = dc + behind[0][k] * looks(0) + behind[1][k] * looks(1);
        carried[k] = fresh ? none : dc;
        if (!peephole) continue;
        const Near seen[] = {behind[0][k] * c_before, behind[1][k] * c_before, behind[3][k] * c[k]};
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

// The gradient of the bias, against the sum of the gradients of pre-activations that the kernel stored.
void check_bias(const Sequence& sequence, const Backward& run) {
    const int64_t places = sequence.sizes.steps * sequence.sizes.rows, width = run.grad_bias.count();
    for (int64_t k = 0; k < width; ++k) {
        double sum = 0.0, size = 0.0;
        for (int64_t at = 0; at < places; ++at) {
            const double grad = run.grad_pre.data()[at * width + k];
            sum += grad;
            size += std::fabs(grad);
        }
        check_near("grad_bias", k, run.grad_bias.data()[k], summed(exact(0.0f), sum, size, places));
    }
}

}  // namespace

void check_forward(const Sequence& sequence, const Forward& run) {
    const Sizes& sizes = sequence.sizes;
    for (int64_t at = 0; at < sizes.steps * sizes.rows; ++at) {
        const int64_t step = at / sizes.rows, row = at % sizes.rows, before = at - sizes.rows;
        const int64_t width = sequence.width();
        if (sequence.ended(step, row)) {
            check_zero("h", run.h.data(), at * width, width);
            check_zero("c", run.c.data(), at * sizes.hidden, sizes.hidden);
            const int64_t stored = sequence.planes() * sizes.hidden;
            check_zero("gates", run.gates.data(), at * stored, stored);
        } else if (sequence.starts(step, row)) {
            check_cells(sequence, run, {step, row}, nullptr, nullptr);
        } else if (step == 0) {
            check_cells(sequence, run, {step, row}, sequence.h0.data() + row * width,
                        sequence.c0.data() + row * sizes.hidden);
        } else {
            check_cells(sequence, run, {step, row}, run.h.data() + before * width,
                        run.c.data() + before * sizes.hidden);
        }
    }
}

void check_backward(const Sequence& sequence, const Cotangents& given, const Backward& run) {
    const int64_t steps = sequence.sizes.steps, rows = sequence.sizes.rows, hidden = sequence.sizes.hidden;
    const int64_t width = sequence.width();
    const auto units = static_cast<std::size_t>(hidden);
    const Near none = exact(0.0f);
    const float* grad_pre = run.grad_pre.data();
    for (int64_t row = 0; row < rows; ++row) {
        Carried row_of{std::vector<Near>(units, none), std::vector<Near>(static_cast<std::size_t>(width), none),
                       std::vector<Near>(static_cast<std::size_t>(sequence.gradient_planes()) * units, none)};
        for (int64_t step = steps - 1; step >= -1; --step) {
            const int64_t at = step * rows + row;
            if (step >= 0 && sequence.ended(step, row)) {
                check_zero("grad_pre", grad_pre, 4 * at * hidden, 4 * hidden);
                check_zero("grad_projected", run.grad_projected.data(), at * width, sequence.projected());
                row_of.c.assign(units, none);
                row_of.h.assign(static_cast<std::size_t>(width), none);
                continue;
            }
            const bool cut = step + 1 == steps || sequence.starts(step + 1, row);
            std::vector<Near> dh;
            for (int64_t unit = 0; unit < width; ++unit) {
                const Near passing = row_of.h.data()[unit];
                const float* later = grad_pre + 4 * (at + rows) * hidden;
                dh.push_back(cut ? passing : carried(sequence, later, {step, row}, unit) + passing);
            }
            if (step >= 0) {
                check_row_gradients(sequence, given, run, {step, row}, dh, row_of);
                continue;
            }
            for (int64_t unit = 0; unit < width; ++unit) {
                const int64_t k = row * width + unit;
                check_near("grad_h0", k, run.grad_h0.data()[k], dh.data()[unit]);
            }
            for (int64_t unit = 0; unit < hidden; ++unit) {
                const int64_t k = row * hidden + unit;
                check_near("grad_c0", k, run.grad_c0.data()[k], row_of.c.data()[unit]);
            }
        }
        const std::vector<Near>& of_cell = row_of.of_cell;
        for (std::size_t k = 0; k < of_cell.size(); ++k) {
            const auto number = row * static_cast<int64_t>(of_cell.size()) + static_cast<int64_t>(k);
            check_near("grad_cell", number, run.grad_cell.data()[number], of_cell[k]);
        }
    }
    check_bias(sequence, run);
}

}  // namespace driver
