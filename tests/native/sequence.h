// One layer over time: numbers to run it on, its calls, and the loops that say what should come out.
#pragma once

#include "buffers.h"
#include "near.h"
#include "unrolled.h"

namespace driver {

struct Sizes {
    int64_t steps, rows, hidden;

    int64_t states() const { return steps * rows * hidden; }
};

enum class Masks { none, resets, lengths, both, all_reset, all_ended };
constexpr Masks kMasks[] = {Masks::none, Masks::resets,    Masks::lengths,
                            Masks::both, Masks::all_reset, Masks::all_ended};

// What is not as in the plain cell.
struct Options {
    bool peephole, hard_gates, relu;
    float clip;  // 0 for none
    bool norm;
};
constexpr Options kPlain{false, false, false, 0.0f, false};
constexpr Options kNormed{false, false, false, 0.0f, true};
constexpr Options kOptions[] = {{true, false, false, 0.0f, false},  {false, true, false, 0.0f, false},
                                {false, false, true, 0.0f, false},  {false, false, false, 0.75f, false},
                                {true, true, true, 0.75f, false},   kNormed,
                                {true, false, false, 0.75f, true}, {true, true, true, 0.75f, true}};

struct Sequence {
    Sequence(Sizes given, Masks masks, Random& random, Options options = kPlain);

    // With the addresses of copies of the peephole and of gains and shifts.
    UnrolledCell cell(const Buffer<float>& of_peephole, const Buffer<float>& of_norm) const;
    // Numbers of a unit that are stored of a step: the gates, and the sums that are normalised.
    int64_t planes() const { return options.norm ? 8 : 4; }
    int64_t gradient_planes() const { return (options.norm ? 10 : 0) + (options.peephole ? 3 : 0); }
    // The cell's functions, and their slopes from what they returned.
    Near gate(Near x) const { return options.hard_gates ? hard_sigmoid(x) : sigmoid(x); }
    Near squashed(Near x) const { return options.relu ? relu(x) : tanh(x); }
    Near gate_slope(float y) const;
    Near squashed_slope(float y) const;
    Near squashed_slope(Near y) const;
    // Times the gain, plus the shift, of i, f, g, o or c.
    Near normed(int64_t which, int64_t unit, Near standard) const {
        return standard * gain_at(which, unit) + norm_at(5 + which, unit);
    }
    Near gain_at(int64_t which, int64_t unit) const { return norm_at(which, unit); }
    Near norm_at(int64_t row, int64_t unit) const { return exact(norm.data()[row * sizes.hidden + unit]); }
    float peephole_at(int64_t which, int64_t unit) const { return peephole.data()[which * sizes.hidden + unit]; }

    Options options;

    Sizes sizes;
    Floats pre, w_h, h0, c0;
    Floats peephole, norm;         // empty for none
    std::vector<uint8_t> resets;   // empty for none
    std::vector<int64_t> lengths;  // empty for none
};

// NaN, infinities and what is far outside the range of sigmoid, in the pre-activations of some rows.
void add_extremes(Sequence& sequence, Random& random);

struct Stored {
    bool gates, every_c;
};

class Forward {
   public:
    Forward(const Sequence& sequence, Stored stored, Place place);

    UnrolledForward call;
    Buffer<float> h, c, gates;

   private:
    Buffer<float> pre_, w_h_, h0_, c0_, peephole_, norm_, sums_;
    Buffer<uint8_t> resets_;
    Buffer<int64_t> lengths_;
    Buffer<float> scratch_;
};

// Every step against a loop that starts from the state which the kernel itself stored before it: errors do not add up.
void check_forward(const Sequence& sequence, const Forward& run);

// How a cotangent lies in memory. `absent` is NULL; `batch_first` is [B, T, W] with a gap behind every row; `expanded`
// is one row for all.
enum class Layout { absent, contiguous, batch_first, expanded };

class Cotangent {
   public:
    Cotangent(Sizes sizes, int64_t width, Layout layout, Random& random);

    UnrolledGradient at(const Buffer<float>& memory) const;
    float operator()(int64_t step, int64_t row, int64_t column) const;

    Floats values;

   private:
    Layout layout_;
    int64_t time_stride_, row_stride_;
};

struct Cotangents {
    Cotangent h, c, gates;
};

class Backward {
   public:
    // `c` and `gates` are what the forward pass stored.
    Backward(const Sequence& sequence, const Floats& c, const Floats& gates, const Cotangents& given, Place place);

    UnrolledBackward call;
    Buffer<float> grad_pre, grad_h0, grad_c0, grad_cell;

   private:
    Buffer<float> grad_h_, grad_c_, grad_gates_, w_h_, c_, gates_, c0_, peephole_, norm_;
    Buffer<uint8_t> resets_;
    Buffer<int64_t> lengths_;
    Buffer<float> scratch_;
};

// As forward: what reaches a step is made from the gradients that the kernel stored for the one behind it.
void check_backward(const Sequence& sequence, const Cotangents& given, const Backward& run);

}  // namespace driver
