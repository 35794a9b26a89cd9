// The two large products of a layer: numbers, calls, and the loops that say what should come out.
#pragma once

#include "buffers.h"
#include "unrolled.h"

namespace driver {

struct ProductCase {
    int64_t rows, depth, columns;
    int64_t x_gap;       // floats between rows of x; -depth has every row be the first
    bool columns_first;  // w is [columns, depth] in memory
    int64_t w_gap;
    bool has_bias;
};

class Product {
   public:
    Product(const ProductCase& given, Random& random);

    // One call from `place`, and one with what it packed.
    Floats run(const UnrolledRun& run, Place place) const;
    void check(const Floats& out) const;

   private:
    ProductCase case_;
    int64_t x_stride_, depth_stride_, column_stride_;
    Floats x_, w_, bias_;
};

struct WeightGradientCase {
    int64_t rows, depth, columns;
    int64_t x_gap, grad_gap;
    bool has_bias;
    int64_t skipped;  // of 4 rows, at random; the rows of x then hold NaN
};

class WeightGradient {
   public:
    WeightGradient(const WeightGradientCase& given, Random& random);

    // grad_w, and behind it grad_bias.
    Floats run(const UnrolledRun& run, Place place) const;
    void check(const Floats& out) const;

   private:
    WeightGradientCase case_;
    int64_t x_stride_, grad_stride_;
    Floats x_, grad_;
    std::vector<uint8_t> skip_;
};

}  // namespace driver
