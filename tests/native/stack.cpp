#include "stack.h"

#include <cmath>

#include "check.h"

namespace driver {
namespace {

// One operand of a sum: numbers `stride` apart.
struct Strided {
    const float* first;
    int64_t stride;

    float operator[](int64_t k) const { return first[k * stride]; }
};

Near float_sum(Near start, Strided a, Strided w, int64_t depth) {
    double sum = 0.0, size = 0.0;
    for (int64_t k = 0; k < depth; ++k) {
        const double product = static_cast<double>(a[k]) * static_cast<double>(w[k]);
        sum += product;
        size += std::fabs(product);
    }
    return summed(start, sum, size, depth);
}

float largest_magnitude(Strided values, int64_t count) {
    float largest = 0.0f;
    for (int64_t k = 0; k < count; ++k) {
        const float size = std::fabs(values[k]);
        if (!(size <= largest)) largest = size;
        if (std::isnan(size)) break;
    }
    return largest;
}

// Whole numbers from -127 to 127 and what one of them is worth, as the header describes them. Products of whole numbers
// are exact, and so are their sums; then the sum, the scale and their product are rounded, and what it is added to.
struct Whole {
    std::vector<int32_t> numbers;
    float scale;
};

constexpr float kSmallestScaled = 1e-35f;

Whole whole_weights(Strided w, int64_t depth) {
    const float largest = largest_magnitude(w, depth);
    Whole result{{}, largest < kSmallestScaled ? 0.0f : largest / 127.0f};
    for (int64_t k = 0; k < depth; ++k) {
        const float whole = result.scale > 0.0f ? std::nearbyint(w[k] / result.scale) : 0.0f;
        result.numbers.push_back(static_cast<int32_t>(whole));
    }
    return result;
}

Whole whole_inputs(Strided x, int64_t depth, bool state) {
    const float own = largest_magnitude(x, depth), largest = state ? 1.0f : own;
    if (!std::isfinite(own)) return {std::vector<int32_t>(static_cast<std::size_t>(depth), 0), std::nanf("")};
    const bool counts = largest >= kSmallestScaled;
    const float inverse = counts ? 127.0f / largest : 0.0f;
    Whole result{{}, counts ? largest / 127.0f : 0.0f};
    for (int64_t k = 0; k < depth; ++k) {
        const float inside = std::fmin(127.0f, std::fmax(-127.0f, x[k] * inverse));
        result.numbers.push_back(static_cast<int32_t>(std::nearbyint(inside)));
    }
    return result;
}

Near whole_sum(Near start, const Whole& a, const Whole& w) {
    int64_t sum = 0;
    for (std::size_t k = 0; k < a.numbers.size(); ++k) sum += int64_t{a.numbers[k]} * w.numbers[k];
    const double term = static_cast<double>(sum) * static_cast<double>(a.scale) * static_cast<double>(w.scale);
    return start + rounded(term, 0.0, 3.0);
}

// Columns of a matrix, and what int8 makes of each.
class Columns {
   public:
    Columns(int32_t weights, const Floats& w, int64_t depth, int64_t count, int64_t depth_stride, int64_t column_stride)
        : w_(w.data()), depth_stride_(depth_stride), column_stride_(column_stride) {
        for (int64_t k = 0; k < count && weights == UNROLLED_INT8; ++k)
            whole_.push_back(whole_weights((*this)[k], depth));
    }
    Strided operator[](int64_t k) const { return {w_ + k * column_stride_, depth_stride_}; }
    const Whole& whole(int64_t k) const { return whole_[static_cast<std::size_t>(k)]; }

   private:
    const float* w_;
    int64_t depth_stride_, column_stride_;
    std::vector<Whole> whole_;
};

// One row of inputs, and its sums over columns.
class RowSums {
   public:
    RowSums(int32_t weights, Strided row, int64_t depth, bool state) : weights_(weights), row_(row), depth_(depth) {
        if (weights == UNROLLED_INT8) whole_ = whole_inputs(row, depth, state);
    }
    Near add(Near start, const Columns& columns, int64_t column) const {
        if (depth_ == 0) return start;
        if (weights_ == UNROLLED_INT8) return whole_sum(start, whole_, columns.whole(column));
        return float_sum(start, row_, columns[column], depth_);
    }

   private:
    int32_t weights_;
    Strided row_;
    int64_t depth_;
    Whole whole_;
};

void check_layer(const Stack& stack, int32_t weights, int64_t layer, const Floats& h, const Floats& c,
                 const StepResult& result) {
    const StackCase& sizes = stack.sizes;
    const int64_t hidden = sizes.hidden, width = 4 * hidden, input = layer == 0 ? sizes.input : hidden;
    const LayerWeights& own = stack.layers[static_cast<std::size_t>(layer)];
    const Columns of_x(weights, own.w_x, input, input > 0 ? width : 0, width, 1),
        of_h(weights, own.w_h, hidden, width, width, 1);
    const int64_t states = layer * sizes.rows * hidden;
    for (int64_t row = 0; row < sizes.rows; ++row) {
        const int64_t at = states + row * hidden;
        const float* below = layer == 0 ? stack.x.data() + row * input : result.h.data() + at - sizes.rows * hidden;
        const RowSums x_sums(weights, {below, 1}, input, layer > 0), h_sums(weights, {h.data() + at, 1}, hidden, true);
        const bool by_id = layer == 0 && !stack.ids.empty();
        const float* start = by_id ? stack.table.data() + stack.ids.data()[row] * width : own.bias.data();
        for (int64_t unit = 0; unit < hidden; ++unit) {
            const auto sum = [&](int64_t gate) {
                const int64_t j = gate * hidden + unit;
                const Near from = exact(by_id || sizes.has_bias ? start[j] : 0.0f);
                return h_sums.add(x_sums.add(from, of_x, j), of_h, j);
            };
            const Near i = sigmoid(sum(0)), f = sigmoid(sum(1)), g = tanh(sum(2)), o = sigmoid(sum(3));
            const Near next = f * exact(c.data()[at + unit]) + i * g;
            check_near("c", at + unit, result.c.data()[at + unit], next);
            check_near("h", at + unit, result.h.data()[at + unit], o * tanh(next));
        }
    }
}

Floats to_bfloat16(Floats values) {
    for (float& value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
        std::memcpy(&value, &bits, sizeof bits);
    }
    return values;
}

const float* data_or_null(const Buffer<float>& buffer) { return buffer.count() > 0 ? buffer.data() : nullptr; }

}  // namespace

Stack::Stack(const StackCase& given, Random& random) : sizes(given) {
    const int64_t width = 4 * given.hidden;
    const float weight = 2.0f / std::sqrt(1.0f + static_cast<float>(given.hidden));
    for (int64_t layer = 0; layer < given.layers; ++layer) {
        const int64_t depth = layer == 0 ? given.input : given.hidden;
        layers.push_back({random.floats(depth * width, weight), random.floats(given.hidden * width, weight),
                          random.floats(given.has_bias ? width : 0, 1.0f)});
    }
    const int64_t output = given.output > 0 ? given.output : 0;
    projection = random.floats(output * given.hidden, weight);
    projection_bias = random.floats(given.has_bias ? output : 0, 1.0f);
    table = random.floats(given.vocabulary * width, 1.5f);
    x = random.floats(given.rows * given.input, 2.0f);
    h = random.floats(given.layers * given.rows * given.hidden, 1.25f);
    c = random.floats(given.layers * given.rows * given.hidden, 2.0f);
    peephole = random.floats(given.layers * 3 * given.hidden, 1.0f);
    norm = random.floats(given.layers * 10 * given.hidden, 1.0f);
    for (int64_t row = 0; row < given.rows && given.vocabulary > 0; ++row)
        ids.push_back(random.below(given.vocabulary));
}

UnrolledCell Stack::cell(int64_t layer) const {
    if (!cells) return {};
    const bool other = layer % 2 == 0;
    UnrolledCell cell{};
    cell.peephole = peephole.data() + layer * 3 * sizes.hidden;
    cell.clip = 0.75f;
    cell.hard_gates = other ? 1 : 0;
    cell.norm = other ? norm.data() + layer * 10 * sizes.hidden : nullptr;
    return cell;
}

PackedStack::PackedStack(const UnrolledRun& run, int32_t weights, const Stack& stack, Place place)
    : stack_(stack), weights_(weights) {
    const StackCase& sizes = stack.sizes;
    int64_t input = sizes.input;
    for (const LayerWeights& layer : stack.layers) {
        const Buffer<float> w_x(layer.w_x, place), w_h(layer.w_h, place), bias(layer.bias, place);
        layers_.push_back(
            std::make_unique<Buffer<char>>(unrolled_step_layer_bytes(weights, input, sizes.hidden), place));
        accepted(unrolled_step_pack_layer(&run, weights, input, sizes.hidden, data_or_null(w_x), w_h.data(),
                                          data_or_null(bias), layers_.back()->data()));
        input = sizes.hidden;
    }
    if (sizes.output < 0) return;
    const Buffer<float> weight(stack.projection, place), bias(stack.projection_bias, place);
    const int64_t bytes = unrolled_step_projection_bytes(weights, sizes.hidden, sizes.output);
    projection_ = std::make_unique<Buffer<char>>(bytes, place);
    accepted(unrolled_step_pack_projection(&run, weights, sizes.hidden, sizes.output, data_or_null(weight),
                                           data_or_null(bias), projection_->data()));
}

StepResult PackedStack::step(const UnrolledRun& run, const Floats& h, const Floats& c, Place place,
                             bool downwards) const {
    return take(run, {stack_.x, stack_.ids, h, c, 1}, place, downwards, false);
}

StepResult PackedStack::steps(const UnrolledRun& run, const StepsCase& given, Place place) const {
    return take(run, given, place, false, true);
}

StepResult PackedStack::take(const UnrolledRun& run, const StepsCase& given, Place place, bool downwards,
                             bool several) const {
    const StackCase& sizes = stack_.sizes;
    const int64_t states = sizes.layers * sizes.rows * sizes.hidden;
    const int64_t output = sizes.output > 0 ? sizes.output : 0;
    const Buffer<float> x(given.x, place), table(stack_.table, place);
    const Buffer<int64_t> ids(given.ids, place);
    Buffer<float> c(given.c, place), out(sizes.rows * given.steps * (projection_ ? output : sizes.hidden), place);
    const auto scratch_bytes = several ? unrolled_steps_scratch_bytes : unrolled_step_scratch_bytes;
    const int64_t bytes = scratch_bytes(weights_, sizes.rows, sizes.input, sizes.hidden, run.threads);
    Buffer<char> scratch(bytes, place);
    Buffer<float> sums(stack_.cells ? sizes.rows * 4 * ((sizes.hidden + 15) / 16 * 16) : 0, place);
    // Both states in one allocation, so that it is known which lies first; the other's end is the end of the memory.
    Buffer<float> both(2 * states, place);
    float* before = both.data() + (downwards ? states : 0);
    float* after = both.data() + (downwards ? 0 : states);
    if (states > 0) std::memcpy(before, given.h.data(), given.h.size() * sizeof(float));
    std::vector<const void*> packed;
    for (const auto& layer : layers_) packed.push_back(layer->data());
    std::vector<UnrolledCell> own;
    for (int64_t layer = 0; layer < sizes.layers; ++layer) own.push_back(stack_.cell(layer));
    const UnrolledStep step{sizes.layers,
                            sizes.rows,
                            sizes.input,
                            sizes.hidden,
                            output,
                            weights_,
                            packed.data(),
                            projection_ ? projection_->data() : nullptr,
                            data_or_null(x),
                            sizes.vocabulary > 0 ? ids.data() : nullptr,
                            data_or_null(table),
                            sizes.vocabulary,
                            before,
                            after,
                            c.data(),
                            data_or_null(out) ? out.data() : nullptr,
                            scratch.data(),
                            bytes,
                            stack_.cells ? own.data() : nullptr,
                            stack_.cells ? sums.data() : nullptr};
    accepted(several ? unrolled_steps(&run, &step, given.steps) : unrolled_step(&run, &step));
    if (states > 0) check_same("h_before", before, given.h);
    return {Floats(after, after + states), c.values(), out.values()};
}

void check_step(const Stack& stack, int32_t weights, const Floats& h, const Floats& c, const StepResult& result) {
    const StackCase& sizes = stack.sizes;
    for (int64_t layer = 0; layer < sizes.layers; ++layer) check_layer(stack, weights, layer, h, c, result);
    const float* top = result.h.data() + (sizes.layers - 1) * sizes.rows * sizes.hidden;
    if (sizes.output < 0) check_same("out", top, result.out);
    if (sizes.output <= 0) return;
    const Columns columns(weights, stack.projection, sizes.hidden, sizes.output, 1, sizes.hidden);
    for (int64_t row = 0; row < sizes.rows; ++row) {
        const RowSums sums(weights, {top + row * sizes.hidden, 1}, sizes.hidden, true);
        for (int64_t k = 0; k < sizes.output; ++k) {
            const Near bias = exact(sizes.has_bias ? stack.projection_bias.data()[k] : 0.0f);
            const int64_t at = row * sizes.output + k;
            check_near("out", at, result.out.data()[at], sums.add(bias, columns, k));
        }
    }
}

Stack rounded_to_bfloat16(const Stack& stack) {
    Stack result = stack;
    for (LayerWeights& layer : result.layers) {
        layer.w_x = to_bfloat16(layer.w_x);
        layer.w_h = to_bfloat16(layer.w_h);
    }
    result.projection = to_bfloat16(result.projection);
    return result;
}

StepResult by_sequence_kernels(const UnrolledRun& run, const Stack& stack, const Floats& h, const Floats& c) {
    const int64_t rows = stack.sizes.rows, hidden = stack.sizes.hidden, output = stack.sizes.output;
    const int64_t width = 4 * hidden, state = rows * hidden;
    StepResult result{Floats(h.size()), Floats(c.size()), {}};
    const auto product = [&](const float* x, int64_t depth, int64_t columns, const Floats& w, bool columns_first,
                             const Floats& bias, float* out) {
        Buffer<float> scratch(unrolled_product_scratch(depth, columns), Place::heap);
        const UnrolledProduct call{rows,
                                   depth,
                                   columns,
                                   x,
                                   depth,
                                   w.data(),
                                   columns_first ? 1 : columns,
                                   columns_first ? depth : 1,
                                   bias.empty() ? nullptr : bias.data(),
                                   out,
                                   scratch.data(),
                                   scratch.count(),
                                   0};
        accepted(unrolled_product(&run, &call));
    };
    for (int64_t layer = 0; layer < stack.sizes.layers; ++layer) {
        const LayerWeights& own = stack.layers[static_cast<std::size_t>(layer)];
        Floats pre(static_cast<std::size_t>(rows * width));
        if (layer == 0 && !stack.ids.empty()) {
            for (int64_t row = 0; row < rows; ++row) {
                const float* from = stack.table.data() + stack.ids.data()[row] * width;
                std::copy(from, from + width, pre.data() + row * width);
            }
        } else {
            const float* x = layer == 0 ? stack.x.data() : result.h.data() + (layer - 1) * state;
            product(x, layer == 0 ? stack.sizes.input : hidden, width, own.w_x, false, own.bias, pre.data());
        }
        Buffer<float> scratch(unrolled_forward_scratch(hidden, 0), Place::heap);
        // The sums may take the place of what they are made of.
        float* sums = pre.data();
        const UnrolledForward call{1,
                                   rows,
                                   hidden,
                                   pre.data(),
                                   own.w_h.data(),
                                   h.data() + layer * state,
                                   c.data() + layer * state,
                                   nullptr,
                                   nullptr,
                                   result.h.data() + layer * state,
                                   result.c.data() + layer * state,
                                   nullptr,
                                   scratch.data(),
                                   scratch.count(),
                                   1,
                                   0,
                                   stack.cell(layer),
                                   sums,
                                   nullptr,
                                   nullptr,
                                   0,
                                   nullptr,
                                   nullptr,
                                   nullptr};
        accepted(unrolled_forward(&run, &call));
    }
    const float* top = result.h.data() + (stack.sizes.layers - 1) * state;
    if (output < 0) result.out.assign(top, top + state);
    if (output <= 0) return result;
    result.out.resize(static_cast<std::size_t>(rows * output));
    product(top, hidden, output, stack.projection, true,
            stack.projection_bias, result.out.data());
    return result;
}

}  // namespace driver
