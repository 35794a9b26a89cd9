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
    bool peephole = false, hard_gates = false, relu = false;
    float clip = 0.0f;  // 0 for none
    bool norm = false;
    // How likely something is held or dropped; what is held or dropped is drawn, or expected.
    float zoneout_h = 0.0f, zoneout_c = 0.0f, dropout = 0.0f;
    bool draws = false;
    bool h_mask = false, projects = false;
};
constexpr Options kPlain{};
constexpr Options kNormed{false, false, false, 0.0f, true};
constexpr Options kAll{true, true, true, 0.75f, true, 0.3f, 0.2f, 0.25f, true, true, true};
constexpr Options kOptions[] = {{true},
                                {false, true},
                                {false, false, true},
                                {false, false, false, 0.75f},
                                {true, true, true, 0.75f},
                                kNormed,
                                {true, false, false, 0.75f, true},
                                {true, true, true, 0.75f, true},
                                {false, false, false, 0.0f, false, 0.3f, 0.2f, 0.25f, true, true},
                                {true, false, false, 0.75f, false, 0.3f, 0.2f},
                                {false, false, false, 0.0f, true, 0.3f, 0.0f, 0.0f, true},
                                {true, false, false, 0.75f, true, 0.0f, 0.2f, 0.25f, true, true},
                                {false, false, false, 0.0f, true, 0.3f, 0.2f},
                                {false, false, false, 0.0f, false, 0.0f, 0.0f, 0.0f, false, false, true},
                                {true, false, false, 0.75f, false, 0.3f, 0.2f, 0.25f, true, true, true},
                                {false, false, false, 0.0f, true, 0.3f, 0.0f, 0.0f, false, false, true},
                                kAll};

struct Where {
    int64_t step, row;
};

// What is held at a place, of h or of c, and what is dropped of g: the numbers by which a kernel draws it.
enum class Of { h, c, g };

struct Sequence {
    Sequence(Sizes given, Masks masks, Random& random, Options options = kPlain);

    // With the addresses of copies of the peephole, of gains and shifts, and of the keys.
    UnrolledCell cell(const Buffer<float>& of_peephole, const Buffer<float>& of_norm,
                      const Buffer<uint64_t>& of_keys) const;
    bool ended(int64_t step, int64_t row) const;
    bool starts(int64_t step, int64_t row) const;
    // How many numbers h is.
    int64_t width() const { return options.projects ? projected() : sizes.hidden; }
    int64_t projected() const { return options.projects ? sizes.hidden / 2 + 1 : 0; }
    float h_mask_at(int64_t row, int64_t unit) const {
        return h_mask.empty() ? 1.0f : h_mask.data()[row * width() + unit];
    }
    // The new value or the one before, or of both what is to be expected; and the gradients of both.
    Near held(Of what, Where at, int64_t unit, Near now, Near before) const;
    Near to_new(Of what, Where at, int64_t unit, Near grad) const;
    Near to_before(Of what, Where at, int64_t unit, Near grad) const;
    // g as c takes it in, and a gradient of that as one of g.
    Near written(Where at, int64_t unit, Near g) const;
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
    Floats peephole, norm, h_mask, w_hr, bias;  // empty for none
    std::vector<uint64_t> keys;           // empty for none
    std::vector<uint8_t> resets;   // empty for none
    std::vector<int64_t> lengths;  // empty for none

   private:
    float likely(Of what) const;
    bool drawn(Of what, Where at, int64_t unit) const;

    std::vector<uint32_t> words_;  // [2, steps, rows, the larger of hidden and width]
};

// NaN, infinities and what is far outside the range of sigmoid, in the pre-activations of some rows.
void add_extremes(Sequence& sequence, Random& random);

struct Stored {
    bool gates, every_c;
};

class Forward {
   public:
    Forward(const Sequence& sequence, Stored stored, Place place);

    // Before another call: one leaves there what its last step would hand on.
    void take_in_h0();

    UnrolledForward call;
    Buffer<float> h, c, gates;

   private:
    Buffer<float> pre_, w_h_, h0_, c0_, peephole_, norm_, sums_, h_mask_, h_in_, w_hr_, unprojected_, bias_;
    Buffer<uint64_t> keys_;
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
    Buffer<float> grad_pre, grad_h0, grad_c0, grad_cell, grad_projected, grad_bias;

   private:
    Buffer<float> grad_h_, grad_c_, grad_gates_, w_h_, c_, gates_, c0_, peephole_, norm_, h_mask_, w_hr_, unprojected_;
    Buffer<float> bias_sums_;
    Buffer<uint64_t> keys_;
    Buffer<uint8_t> resets_;
    Buffer<int64_t> lengths_;
    Buffer<float> scratch_;
};

// As forward: what reaches a step is made from the gradients that the kernel stored for the one behind it.
void check_backward(const Sequence& sequence, const Cotangents& given, const Backward& run);

}  // namespace driver
