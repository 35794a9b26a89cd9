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

// The number of the first step, by which masks are drawn.
constexpr int64_t kFirst = 3;

uint32_t threshold(float likely) { return static_cast<uint32_t>(std::lround(likely * 65536.0f)); }

}  // namespace

Sequence::Sequence(Sizes given, Masks masks, Random& random, Options chosen)
    : options(chosen),
      sizes(given),
      pre(random.floats(4 * given.states(), 2.5f)),
      w_h(random.floats(4 * given.hidden * width(), 2.0f / std::sqrt(1.0f + static_cast<float>(width())))),
      h0(random.floats(given.rows * width(), 1.0f)),
      c0(random.floats(given.rows * given.hidden, 2.0f)),
      peephole(random.floats(chosen.peephole ? 3 * given.hidden : 0, 1.0f)),
      norm(random.floats(chosen.norm ? 10 * given.hidden : 0, 1.5f)),
      w_hr(random.floats(given.hidden * projected(), 2.0f / std::sqrt(1.0f + static_cast<float>(given.hidden)))),
      bias(random.floats(random.below(2) == 0 ? 4 * given.hidden : 0, 1.0f)) {
    for (int64_t k = 0; k < given.rows * width() && chosen.h_mask; ++k) {
        h_mask.push_back(random.below(4) == 0 ? 0.0f : 1.0f / 0.75f);
    }
    for (int64_t row = 0; row < given.rows && chosen.draws; ++row) {
        keys.push_back(static_cast<uint64_t>(random.below(int64_t{1} << 62)) * 4 + 1);
    }
    const int64_t units = std::max(given.hidden, width());
    words_.resize(static_cast<std::size_t>(chosen.draws ? 2 * given.steps * given.rows * units : 0));
    const UnrolledRandomWords words{kFirst, given.steps, given.rows, units, keys.data(), words_.data()};
    const UnrolledRun run{nullptr, 1};
    if (chosen.draws) accepted(unrolled_random_words(&run, &words));
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

UnrolledCell Sequence::cell(const Buffer<float>& of_peephole, const Buffer<float>& of_norm,
                            const Buffer<uint64_t>& of_keys) const {
    UnrolledCell cell{};
    cell.peephole = pointer_unless_empty(of_peephole);
    cell.clip = options.clip;
    cell.hard_gates = options.hard_gates ? 1 : 0;
    cell.relu = options.relu ? 1 : 0;
    cell.norm = pointer_unless_empty(of_norm);
    cell.keys = pointer_unless_empty(of_keys);
    // Without rows there are no keys, and nothing to drop.
    const bool any = !options.draws || cell.keys != nullptr;
    cell.zoneout_h = any ? options.zoneout_h : 0.0f;
    cell.zoneout_c = any ? options.zoneout_c : 0.0f;
    cell.dropout = any ? options.dropout : 0.0f;
    cell.scale = 1.0f / (1.0f - options.dropout);
    cell.held_h = threshold(options.zoneout_h);
    cell.held_c = threshold(options.zoneout_c);
    cell.dropped_g = threshold(options.dropout);
    cell.first = kFirst;
    return cell;
}

bool Sequence::ended(int64_t step, int64_t row) const {
    return !lengths.empty() && lengths[static_cast<std::size_t>(row)] <= step;
}

bool Sequence::starts(int64_t step, int64_t row) const {
    if (resets.empty() || step >= sizes.steps) return false;
    return resets[static_cast<std::size_t>(step * sizes.rows + row)] != 0;
}

float Sequence::likely(Of what) const {
    return what == Of::h ? options.zoneout_h : what == Of::c ? options.zoneout_c : options.dropout;
}

bool Sequence::drawn(Of what, Where at, int64_t unit) const {
    const int64_t units = std::max(sizes.hidden, width()), plane = sizes.steps * sizes.rows * units;
    const int64_t place = (at.step * sizes.rows + at.row) * units + unit;
    const uint32_t word = words_[static_cast<std::size_t>(what == Of::g ? plane + place : place)];
    return (what == Of::c ? word >> 16 : word & 0xffffu) < threshold(likely(what));
}

Near Sequence::held(Of what, Where at, int64_t unit, Near now, Near before) const {
    const float share = likely(what);
    if (share == 0.0f) return now;
    if (options.draws) return drawn(what, at, unit) ? before : now;
    return before * exact(share) + now * exact(1.0f - share);
}

Near Sequence::to_new(Of what, Where at, int64_t unit, Near grad) const {
    const float share = likely(what);
    if (share == 0.0f) return grad;
    if (options.draws) return drawn(what, at, unit) ? exact(0.0f) : grad;
    return grad * exact(1.0f - share);
}

Near Sequence::to_before(Of what, Where at, int64_t unit, Near grad) const {
    const float share = likely(what);
    if (share == 0.0f) return exact(0.0f);
    if (options.draws) return drawn(what, at, unit) ? grad : exact(0.0f);
    return grad * exact(share);
}

Near Sequence::written(Where at, int64_t unit, Near g) const {
    if (options.dropout == 0.0f) return g;
    return drawn(Of::g, at, unit) ? exact(0.0f) : g * exact(1.0f / (1.0f - options.dropout));
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
      h(sequence.sizes.steps * sequence.sizes.rows * sequence.width(), place),
      c(stored.every_c ? sequence.sizes.states() : sequence.sizes.rows * sequence.sizes.hidden, place),
      gates(stored.gates ? sequence.planes() * sequence.sizes.states() : 0, place),
      pre_(sequence.pre, place),
      w_h_(sequence.w_h, place),
      h0_(sequence.h0, place),
      c0_(sequence.c0, place),
      peephole_(sequence.peephole, place),
      norm_(sequence.norm, place),
      sums_(sequence.options.norm && !stored.gates ? 4 * sequence.sizes.states() : 0, place),
      h_mask_(sequence.h_mask, place),
      h_in_(2 * static_cast<int64_t>(sequence.h_mask.size()), place),
      w_hr_(sequence.w_hr, place),
      unprojected_(sequence.options.projects ? sequence.sizes.rows * sequence.sizes.hidden : 0, place),
      bias_(sequence.bias, place),
      keys_(sequence.keys, place),
      resets_(sequence.resets, place),
      lengths_(sequence.lengths, place),
      scratch_(unrolled_forward_scratch(sequence.sizes.hidden, sequence.projected()), place) {
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
    call.cell = sequence.cell(peephole_, norm_, keys_);
    call.h_mask = pointer_unless_empty(h_mask_);
    call.h_in = h_in_.data();
    take_in_h0();
    call.projected = sequence.projected();
    call.w_hr = sequence.options.projects ? w_hr_.data() : nullptr;
    call.unprojected = unprojected_.data();
    call.sums = sequence.options.norm && !stored.gates ? sums_.data() : nullptr;
    call.bias = pointer_unless_empty(bias_);
}

void Forward::take_in_h0() {
    for (int64_t k = 0; k < h_mask_.count(); ++k) h_in_.data()[k] = h0_.data()[k] * h_mask_.data()[k];
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
      grad_h0(sequence.sizes.rows * sequence.width(), place),
      grad_c0(sequence.sizes.rows * sequence.sizes.hidden, place),
      grad_cell(sequence.sizes.rows * sequence.gradient_planes() * sequence.sizes.hidden, place),
      grad_projected(sequence.sizes.steps * sequence.sizes.rows * sequence.projected(), place),
      grad_bias(sequence.options.norm ? 0 : 4 * sequence.sizes.hidden, place),
      grad_h_(given.h.values, place),
      grad_c_(given.c.values, place),
      grad_gates_(given.gates.values, place),
      w_h_(sequence.w_h, place),
      c_(c, place),
      gates_(gates, place),
      c0_(sequence.c0, place),
      peephole_(sequence.peephole, place),
      norm_(sequence.norm, place),
      h_mask_(sequence.h_mask, place),
      w_hr_(sequence.w_hr, place),
      unprojected_(sequence.options.projects ? sequence.sizes.rows * sequence.sizes.hidden : 0, place),
      bias_sums_(2 * sequence.sizes.rows * grad_bias.count(), place),
      keys_(sequence.keys, place),
      resets_(sequence.resets, place),
      lengths_(sequence.lengths, place),
      scratch_(unrolled_backward_scratch(sequence.sizes.hidden, sequence.projected()), place) {
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
    call.cell = sequence.cell(peephole_, norm_, keys_);
    call.h_mask = pointer_unless_empty(h_mask_);
    call.projected = sequence.projected();
    call.w_hr = sequence.options.projects ? w_hr_.data() : nullptr;
    call.unprojected = unprojected_.data();
    call.grad_projected = grad_projected.data();
    call.grad_cell = sequence.gradient_planes() > 0 ? grad_cell.data() : nullptr;
    call.grad_bias = sequence.options.norm ? nullptr : grad_bias.data();
    call.bias_sums = bias_sums_.data();
    call.scratch = scratch_.data();
    call.scratch_floats = scratch_.count();
}

}  // namespace driver
