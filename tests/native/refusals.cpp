// Every sentence with which the recurrence and the products refuse a call, and that nothing has been written then.
#include <cmath>

#include "sequence.h"
#include "stages.h"
#include "trial.h"

namespace driver {
namespace {

template <typename Call>
void refuse_sequence_sizes(const Trial<Call>& trial) {
    constexpr const char* kNegative = "steps, rows and hidden must not be negative";
    constexpr const char* kBeyond = "steps x rows x hidden is beyond 2^38";
    for (int64_t Call::*size : {&Call::steps, &Call::rows, &Call::hidden}) {
        trial.refuse_values(kNegative, size, {int64_t{-1}, -kHuge});
    }
    trial.refuse_values("hidden is beyond 2^24", &Call::hidden, {(int64_t{1} << 24) + 1, kHuge});
    trial.refuse_values(kBeyond, &Call::steps, {int64_t{1} << 38, kHuge});
    trial.refuse_values(kBeyond, &Call::rows, {int64_t{1} << 38, kHuge});
    trial.refuse(kBeyond, [](Call& call) { call.rows = call.steps = int64_t{1} << 20; });
    trial.refuse_no_call("call is NULL");
}

// Each cell with what is wrong with it.
template <typename Call>
void refuse_masks(const Trial<Call>& trial) {
    constexpr const char* kLikely = "what is held or dropped must be so with a likelihood of 0 to 1";
    static const uint64_t keys[] = {1, 2, 3, 4};
    for (float UnrolledCell::*likely : {&UnrolledCell::zoneout_h, &UnrolledCell::zoneout_c, &UnrolledCell::dropout}) {
        for (const float wrong : {-0.5f, 1.5f, std::nanf("")}) {
            trial.refuse(kLikely, [&](Call& call) {
                call.cell.keys = keys;
                call.cell.*likely = wrong;
            });
        }
    }
    trial.refuse("nothing is dropped without keys", [](Call& call) { call.cell.dropout = 0.5f; });
}

template <typename Call>
void refuse_projections(const Trial<Call>& trial) {
    constexpr const char* kIncomplete =
        "where h is projected, there must be a w_hr, and hidden and projected be at least 1";
    for (const int64_t projected : {int64_t{0}, int64_t{-1}, -kHuge}) {
        trial.refuse(kIncomplete, [&](Call& call) {
            call.w_hr = call.c0;
            call.projected = projected;
        });
    }
    trial.refuse(kIncomplete, [](Call& call) { call.projected = 2; });
    trial.refuse(kIncomplete, [](Call& call) {
        call.w_hr = call.c0;
        call.projected = 2;
        call.hidden = 0;
    });
    for (const int64_t projected : {(int64_t{1} << 24) + 1, kHuge}) {
        trial.refuse("projected is beyond what hidden may be", [&](Call& call) {
            call.w_hr = call.c0;
            call.projected = projected;
        });
    }
}

void refuse_forward() {
    Random random(1);
    const Sequence sequence({3, 4, 5}, Masks::both, random);
    Forward run(sequence, {true, true}, Place::heap);
    const auto check = [&] { check_untouched(run.h, run.c, run.gates); };
    const Trial<UnrolledForward> trial(unrolled_forward, run.call, check);
    refuse_sequence_sizes(trial);
    using F = UnrolledForward;
    constexpr const char* kNull = "pre, w_h, h0, c0, h, c and scratch must not be NULL";
    trial.refuse_null(kNull, {&F::pre, &F::w_h, &F::h0, &F::c0});
    trial.refuse_null(kNull, {&F::h, &F::c, &F::scratch});
    trial.refuse_values("scratch is too small", &F::scratch_floats, {run.call.scratch_floats - 1, int64_t{0}, -kHuge});
    for (const float clip : {-1.0f, std::nanf("")}) {
        trial.refuse("the bound of c must be positive, or 0 for none", [&](F& call) { call.cell.clip = clip; });
    }
    trial.refuse("with a norm, gates or sums must not be NULL", [&](F& call) {
        call.cell.norm = call.pre;
        call.gates = nullptr;
    });
    refuse_masks(trial);
    trial.refuse("with an h_mask, h_in must not be NULL", [](F& call) {
        call.h_mask = call.h0;
        call.h_in = nullptr;
    });
    refuse_projections(trial);
    trial.refuse("with a w_hr, unprojected must not be NULL", [](F& call) {
        call.w_hr = call.h0;
        call.projected = 2;
        call.unprojected = nullptr;
    });
    about("nothing to do");
    for (int64_t F::*size : {&F::steps, &F::rows, &F::hidden}) {
        F call{};
        call.steps = call.rows = call.hidden = 2;
        call.*size = 0;
        accepted(unrolled_forward(&kRun, &call));
    }
    check();
}

template <typename Call>
void refuse_places(const Trial<Call>& trial) {
    for (int64_t Call::*size : {&Call::steps, &Call::rows, &Call::units}) {
        trial.refuse_values("steps, rows and units must not be negative", size, {int64_t{-1}, -kHuge});
        trial.refuse_values("steps x rows x units is beyond 2^40", size, {int64_t{1} << 40, kHuge});
    }
    trial.refuse_no_call("call is NULL");
}

void refuse_random_words() {
    const uint64_t keys[] = {1, 2, 3};
    Buffer<uint32_t> words(2 * 2 * 3 * 5, Place::heap);
    using W = UnrolledRandomWords;
    const Trial<W> trial(unrolled_random_words, {0, 2, 3, 5, keys, words.data()}, [&] { check_untouched(words); });
    refuse_places(trial);
    trial.refuse_null("keys and words must not be NULL", {&W::keys});
    trial.refuse_null("keys and words must not be NULL", {&W::words});
    about("nothing to do");
    const W nothing{0, 0, 3, 5, nullptr, nullptr};
    accepted(unrolled_random_words(&kRun, &nothing));
}

void refuse_multiplier() {
    const uint64_t keys[] = {1, 2, 3};
    Buffer<float> multiplier(2 * 3 * 5, Place::heap);
    using M = UnrolledMultiplier;
    const M right{0, 2, 3, 5, keys, 100, 2.0f, multiplier.data()};
    const Trial<M> trial(unrolled_multiplier, right, [&] { check_untouched(multiplier); });
    refuse_places(trial);
    trial.refuse_values("the threshold is beyond 2^16", &M::threshold, {65537u, ~0u});
    trial.refuse_null("keys and multiplier must not be NULL", {&M::keys});
    trial.refuse_null("keys and multiplier must not be NULL", {&M::multiplier});
    about("nothing to do");
    const M nothing{0, 2, 3, 0, nullptr, 0, 1.0f, nullptr};
    accepted(unrolled_multiplier(&kRun, &nothing));
}

void refuse_row_keys() {
    about("row_keys");
    Buffer<uint64_t> keys(3, Place::heap);
    constexpr const char* kSizes = "first and rows must not be negative, rows not beyond 2^40";
    refused(unrolled_row_keys(1, -1, 3, keys.data()), kSizes);
    refused(unrolled_row_keys(1, 0, -1, keys.data()), kSizes);
    refused(unrolled_row_keys(1, 0, kHuge, keys.data()), kSizes);
    refused(unrolled_row_keys(1, 0, 3, nullptr), "keys must not be NULL");
    check_untouched(keys);
    accepted(unrolled_row_keys(1, 0, 0, nullptr));
}

void refuse_backward() {
    Random random(1);
    const Sizes sizes{3, 4, 5};
    const Sequence sequence(sizes, Masks::both, random);
    const Floats c = random.floats(sizes.states(), 1.0f), gates = random.floats(4 * sizes.states(), 1.0f);
    const Cotangents given{Cotangent(sizes, 5, Layout::contiguous, random),
                           Cotangent(sizes, 5, Layout::batch_first, random),
                           Cotangent(sizes, 20, Layout::expanded, random)};
    Backward run(sequence, c, gates, given, Place::heap);
    const auto check = [&] { check_untouched(run.grad_pre, run.grad_h0, run.grad_c0, run.grad_bias); };
    const Trial<UnrolledBackward> trial(unrolled_backward, run.call, check);
    refuse_sequence_sizes(trial);
    using B = UnrolledBackward;
    for (const float clip : {-1.0f, std::nanf("")}) {
        trial.refuse("the bound of c must be positive, or 0 for none", [&](B& call) { call.cell.clip = clip; });
    }
    for (const float* UnrolledCell::*with : {&UnrolledCell::norm, &UnrolledCell::peephole}) {
        trial.refuse("with a norm or a peephole, grad_cell must not be NULL", [&](B& call) {
            call.cell.*with = call.c;
            call.grad_bias = nullptr;
        });
    }
    trial.refuse("with a norm there is no grad_bias", [](B& call) { call.cell.norm = call.c; });
    trial.refuse_null("with a grad_bias, bias_sums must not be NULL", {&B::bias_sums});
    refuse_masks(trial);
    refuse_projections(trial);
    for (float* B::*needed : {&B::unprojected, &B::grad_projected}) {
        trial.refuse("with a w_hr, unprojected and grad_projected must not be NULL", [&](B& call) {
            call.w_hr = call.c0;
            call.projected = 2;
            call.*needed = nullptr;
        });
    }
    for (UnrolledGradient B::*gradient : {&B::grad_h, &B::grad_c, &B::grad_gates}) {
        for (int64_t UnrolledGradient::*stride : {&UnrolledGradient::time_stride, &UnrolledGradient::row_stride}) {
            trial.refuse("a cotangent's strides must not be negative", [&](B& call) { call.*gradient.*stride = -1; });
        }
    }
    constexpr const char* kNull = "w_h, c0, grad_h0, grad_c0 and scratch must not be NULL";
    trial.refuse_null(kNull, {&B::w_h, &B::c0});
    trial.refuse_null(kNull, {&B::grad_h0, &B::grad_c0, &B::scratch});
    trial.refuse_null("c, gates and grad_pre must not be NULL", {&B::c, &B::gates});
    trial.refuse_null("c, gates and grad_pre must not be NULL", {&B::grad_pre});
    trial.refuse_values("scratch is too small", &B::scratch_floats, {run.call.scratch_floats - 1, int64_t{0}, -kHuge});
    about("nothing to do");
    for (int64_t B::*size : {&B::rows, &B::hidden}) {
        B call{};
        call.steps = call.rows = call.hidden = 2;
        call.*size = 0;
        accepted(unrolled_backward(&kRun, &call));
    }
    check();
}

template <typename Call>
void refuse_large_products(const Trial<Call>& trial) {
    constexpr const char* kBeyond = "a product of two of rows, depth and columns is beyond 2^40";
    for (int64_t Call::*size : {&Call::rows, &Call::depth, &Call::columns}) {
        trial.refuse_values(kBeyond, size, {int64_t{1} << 40, kHuge});
    }
    trial.refuse(kBeyond, [](Call& call) { call.rows = call.depth = int64_t{1} << 20; });
    trial.refuse(kBeyond, [](Call& call) { call.rows = call.columns = int64_t{1} << 20; });
    trial.refuse(kBeyond, [](Call& call) { call.depth = call.columns = int64_t{1} << 20; });
}

void refuse_product() {
    Random random(1);
    const Floats x = random.floats(3 * 4, 1.0f), w = random.floats(4 * 5, 1.0f);
    Buffer<float> out(3 * 5, Place::heap), scratch(unrolled_product_scratch(4, 5), Place::heap);
    using P = UnrolledProduct;
    const P right{3, 4, 5, x.data(), 4, w.data(), 5, 1, nullptr, out.data(), scratch.data(), scratch.count(), 0};
    const auto check = [&] { check_untouched(out); };
    const Trial<P> trial(unrolled_product, right, check);
    for (int64_t P::*size : {&P::rows, &P::depth, &P::columns}) {
        trial.refuse_values("rows, depth and columns must not be negative", size, {int64_t{-1}, -kHuge});
    }
    refuse_large_products(trial);
    trial.refuse_values("one of the strides of w must be 1", &P::w_column_stride, {int64_t{0}, int64_t{2}, -kHuge});
    for (int64_t P::*stride : {&P::w_depth_stride, &P::x_stride}) {
        trial.refuse_values("strides must not be negative", stride, {int64_t{-1}, -kHuge});
    }
    trial.refuse("strides must not be negative", [](P& call) {
        call.w_depth_stride = 1;
        call.w_column_stride = -1;
    });
    constexpr const char* kNull = "x, w, out and scratch must not be NULL";
    trial.refuse_null(kNull, {&P::x, &P::w});
    trial.refuse_null(kNull, {&P::out, &P::scratch});
    trial.refuse_values("scratch is too small", &P::scratch_floats, {right.scratch_floats - 1, int64_t{0}, -kHuge});
    trial.refuse_no_call("call is NULL");
    about("nothing to do");
    for (int64_t P::*size : {&P::rows, &P::columns}) {
        P call{};
        call.rows = call.depth = call.columns = 2;
        call.w_column_stride = 1;
        call.*size = 0;
        accepted(unrolled_product(&kRun, &call));
    }
    check();
}

void refuse_weight_gradient() {
    Random random(1);
    const Floats x = random.floats(3 * 4, 1.0f), grad = random.floats(3 * 5, 1.0f);
    Buffer<float> grad_w(4 * 5, Place::heap), grad_bias(5, Place::heap);
    Buffer<float> scratch(unrolled_weight_gradient_scratch(kRun.threads), Place::heap);
    using W = UnrolledWeightGradient;
    const W right{
        3, 4, 5, x.data(), grad.data(), 4, 5, grad_w.data(), grad_bias.data(), scratch.data(), scratch.count(),
        nullptr};
    const auto check = [&] { check_untouched(grad_w, grad_bias); };
    const Trial<W> trial(unrolled_weight_gradient, right, check);
    for (int64_t W::*size : {&W::rows, &W::depth, &W::columns}) {
        trial.refuse_values("rows, depth and columns must not be negative", size, {int64_t{-1}, -kHuge});
    }
    refuse_large_products(trial);
    for (int64_t W::*stride : {&W::x_stride, &W::grad_stride}) {
        trial.refuse_values("strides must not be negative", stride, {int64_t{-1}, -kHuge});
    }
    constexpr const char* kNull = "x, grad, grad_w and scratch must not be NULL";
    trial.refuse_null(kNull, {&W::x, &W::grad});
    trial.refuse_null(kNull, {&W::grad_w, &W::scratch});
    trial.refuse_values("scratch is too small", &W::scratch_floats, {right.scratch_floats - 1, int64_t{0}, -kHuge});
    trial.refuse_no_call("call is NULL");
    about("nothing to do");
    W call{};
    call.rows = call.depth = 2;
    accepted(unrolled_weight_gradient(&kRun, &call));
    check();
}

// It is advice: memory is as it was, and any address and size will do.
void advise() {
    about("large pages");
    const Floats values(3 << 20, 1.5f);
    for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1} << 21, int64_t{12} << 20}) {
        const Buffer<float> memory(values, Place::heap);
        unrolled_advise_large_pages(const_cast<float*>(memory.data()) + 1, bytes - (bytes > 8 ? 4 : 0));
        check_same("memory", memory.data(), values);
    }
    unrolled_advise_large_pages(nullptr, 0);
    accepted(nullptr);
}

}  // namespace

void run_refusals() {
    const Stage stage("refusals");
    about("the version of the interface");
    if (unrolled_abi_version() != UNROLLED_ABI_VERSION) fail("the header is another one than the library's");
    refuse_forward();
    refuse_random_words();
    refuse_multiplier();
    refuse_row_keys();
    refuse_backward();
    refuse_product();
    refuse_weight_gradient();
    advise();
}

}  // namespace driver
