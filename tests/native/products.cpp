#include "products.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "stages.h"

namespace driver {
namespace {

// Floats of `count` rows of `width`, `stride` apart, the last of which has no gap behind it.
int64_t floats_of(int64_t count, int64_t width, int64_t stride) {
    return count == 0 || width == 0 ? 0 : (count - 1) * stride + width;
}

// A sum of products in double precision.
class Sum {
   public:
    void add(float a, float b) {
        const double product = static_cast<double>(a) * static_cast<double>(b);
        sum_ += product;
        size_ += std::fabs(product);
        ++terms_;
    }
    Near near(float start) const { return summed(exact(start), sum_, size_, terms_); }

   private:
    double sum_ = 0.0, size_ = 0.0;
    int64_t terms_ = 0;
};

}  // namespace

Product::Product(const ProductCase& given, Random& random)
    : case_(given),
      x_stride_(given.depth + given.x_gap),
      depth_stride_(given.columns_first ? 1 : given.columns + given.w_gap),
      column_stride_(given.columns_first ? given.depth + given.w_gap : 1),
      x_(random.floats(floats_of(given.rows, given.depth, x_stride_), 1.5f)),
      w_(random.floats(given.columns_first ? floats_of(given.columns, given.depth, column_stride_)
                                           : floats_of(given.depth, given.columns, depth_stride_),
                       1.5f)),
      bias_(random.floats(given.has_bias ? given.columns : 0, 1.5f)) {}

Floats Product::run(const UnrolledRun& run, Place place) const {
    const Buffer<float> x(x_, place), w(w_, place), bias(bias_, place);
    Buffer<float> out(case_.rows * case_.columns, place);
    Buffer<float> scratch(unrolled_product_scratch(case_.depth, case_.columns), place);
    UnrolledProduct call{case_.rows,
                         case_.depth,
                         case_.columns,
                         case_.depth > 0 ? x.data() : nullptr,
                         x_stride_,
                         case_.depth > 0 ? w.data() : nullptr,
                         depth_stride_,
                         column_stride_,
                         case_.has_bias ? bias.data() : nullptr,
                         out.data(),
                         scratch.data(),
                         scratch.count(),
                         0};
    accepted(unrolled_product(&run, &call));
    Buffer<float> again(out.count(), place);
    call.out = again.data();
    call.packed = 1;
    accepted(unrolled_product(&run, &call));
    check_same("out with packed weights", again.data(), out.values());
    return out.values();
}

void Product::check(const Floats& out) const {
    for (int64_t at = 0; at < case_.rows * case_.columns; ++at) {
        const int64_t row = at / case_.columns, column = at % case_.columns;
        Sum sum;
        for (int64_t k = 0; k < case_.depth; ++k) {
            sum.add(x_.data()[row * x_stride_ + k], w_.data()[k * depth_stride_ + column * column_stride_]);
        }
        check_near("out", at, out.data()[at], sum.near(case_.has_bias ? bias_.data()[column] : 0.0f));
    }
}

WeightGradient::WeightGradient(const WeightGradientCase& given, Random& random)
    : case_(given),
      x_stride_(given.depth + given.x_gap),
      grad_stride_(given.columns + given.grad_gap),
      x_(random.floats(floats_of(given.rows, given.depth, x_stride_), 1.5f)),
      grad_(random.floats(floats_of(given.rows, given.columns, grad_stride_), 1.5f)) {
    if (given.skipped == 0) return;
    for (int64_t row = 0; row < given.rows; ++row) {
        skip_.push_back(random.below(4) < given.skipped ? 1 : 0);
        float* values = x_.data() + row * x_stride_;
        if (skip_.back() != 0) std::fill(values, values + given.depth, std::numeric_limits<float>::quiet_NaN());
    }
}

Floats WeightGradient::run(const UnrolledRun& run, Place place) const {
    const Buffer<float> x(x_, place), grad(grad_, place);
    const Buffer<uint8_t> skip(skip_, place);
    Buffer<float> grad_w(case_.depth * case_.columns, place), grad_bias(case_.has_bias ? case_.columns : 0, place);
    Buffer<float> scratch(unrolled_weight_gradient_scratch(run.threads), place);
    const UnrolledWeightGradient call{case_.rows,
                                      case_.depth,
                                      case_.columns,
                                      case_.rows > 0 && case_.depth > 0 ? x.data() : nullptr,
                                      case_.rows > 0 ? grad.data() : nullptr,
                                      x_stride_,
                                      grad_stride_,
                                      case_.depth > 0 ? grad_w.data() : nullptr,
                                      case_.has_bias ? grad_bias.data() : nullptr,
                                      scratch.data(),
                                      scratch.count(),
                                      skip_.empty() ? nullptr : skip.data()};
    accepted(unrolled_weight_gradient(&run, &call));
    Floats out = grad_w.values();
    const Floats bias = grad_bias.values();
    out.insert(out.end(), bias.begin(), bias.end());
    return out;
}

void WeightGradient::check(const Floats& out) const {
    const int64_t weights = case_.depth * case_.columns;
    for (int64_t at = 0; at < static_cast<int64_t>(out.size()); ++at) {
        const int64_t column = at % case_.columns, k = at / case_.columns;
        Sum sum;
        for (int64_t row = 0; row < case_.rows; ++row) {
            if (at < weights && !skip_.empty() && skip_[static_cast<std::size_t>(row)] != 0) continue;
            sum.add(at < weights ? x_.data()[row * x_stride_ + k] : 1.0f, grad_.data()[row * grad_stride_ + column]);
        }
        check_near(at < weights ? "grad_w" : "grad_bias", at, out.data()[at], sum.near(0.0f));
    }
}

namespace {

constexpr int64_t kColumns[] = {0, 1, 3, 4, 5, 15, 16, 17, 31, 33, 48, 63, 64, 65, 130};
constexpr int64_t kThreads[] = {2, 3, 5, 16};

// With one thread against the loop, and elsewhere in memory with several for the same bits.
template <typename Operation>
void run_everywhere(const Operation& operation, int64_t turn) {
    const std::string& set = instruction_sets()[static_cast<std::size_t>(turn) % instruction_sets().size()];
    const UnrolledRun one{set.c_str(), 1}, several{set.c_str(), kThreads[turn % 4]};
    const Floats out = operation.run(one, kPlaces[turn % 3]);
    operation.check(out);
    const Floats other = operation.run(several, kPlaces[(turn + 1) % 3]);
    check_same("out", other.data(), out);
}

void run_product(const ProductCase& given, int64_t& turn) {
    for (std::size_t k = 0; k < instruction_sets().size(); ++k, ++turn) {
        about(words("product",
                    {{"rows", given.rows}, {"depth", given.depth}, {"columns", given.columns}, {"turn", turn}}));
        Random random(static_cast<uint64_t>(turn));
        run_everywhere(Product(given, random), turn);
    }
}

void run_weight_gradient(const WeightGradientCase& given, int64_t& turn) {
    for (std::size_t k = 0; k < instruction_sets().size(); ++k, ++turn) {
        about(words("weight_gradient",
                    {{"rows", given.rows}, {"depth", given.depth}, {"columns", given.columns}, {"skipped", given.skipped},
                     {"turn", turn}}));
        Random random(static_cast<uint64_t>(turn));
        run_everywhere(WeightGradient(given, random), turn);
    }
}

}  // namespace

void run_products() {
    const Stage stage("products");
    int64_t turn = 0, layout = 0;
    for (const int64_t rows : {0, 1, 2, 3, 7, 8, 13, 129, 257}) {
        for (const int64_t depth : {0, 1, 5, 127, 128, 129, 260}) {
            for (const int64_t columns : kColumns) {
                const int64_t x_gap = layout % 3 == 0 ? 0 : layout % 3 == 1 ? 5 : -depth;
                run_product({rows, depth, columns, x_gap, layout / 3 % 2 == 0, layout % 5, layout % 4 != 0}, turn);
                ++layout;
            }
        }
    }
    for (const int64_t rows : {0, 1, 2, 127, 128, 129, 300}) {
        for (const int64_t depth : {0, 1, 3, 7, 8, 17, 65}) {
            for (const int64_t columns : kColumns) {
                run_weight_gradient({rows, depth, columns, layout % 3, layout % 4, layout % 5 != 0, layout % 6 / 2 * 2}, turn);
                ++layout;
            }
        }
    }
}

}  // namespace driver
