// Every sentence with which the step refuses a call, and that nothing has been written then.
#include "stack.h"
#include "stages.h"
#include "trial.h"

namespace driver {
namespace {

constexpr int64_t kRows = 3, kInput = 2, kHidden = 5, kOutput = 4;

// The arguments of the two functions that pack, so that one can be changed at a time.
struct PackLayer {
    int32_t weights;
    int64_t input, hidden;
    const float *w_x, *w_h, *bias;
    void* packed;
};
struct PackProjection {
    int32_t weights;
    int64_t hidden, output;
    const float *weight, *bias;
    void* packed;
};

const char* pack_layer(const UnrolledRun* run, const PackLayer* call) {
    return unrolled_step_pack_layer(run, call->weights, call->input, call->hidden, call->w_x, call->w_h, call->bias,
                                    call->packed);
}

const char* pack_projection(const UnrolledRun* run, const PackProjection* call) {
    return unrolled_step_pack_projection(run, call->weights, call->hidden, call->output, call->weight, call->bias,
                                         call->packed);
}

template <typename Call>
void refuse_sizes(const Trial<Call>& trial, std::initializer_list<int64_t Call::*> sizes) {
    constexpr const char* kOutside = "a size is negative or beyond 2^24";
    trial.refuse_values("weights must be 0 (float32), 1 (bfloat16) or 2 (int8)", &Call::weights, {-1, 3, 1 << 30});
    for (int64_t Call::*size : sizes) {
        trial.refuse_values(kOutside, size, {int64_t{-1}, (int64_t{1} << 24) + 1, kHuge, -kHuge});
        trial.refuse("int8 takes sizes up to 2^17", [&](Call& call) {
            call.weights = UNROLLED_INT8;
            call.*size = (int64_t{1} << 17) + 1;
        });
    }
}

void refuse_packing() {
    Random random(1);
    const Floats w = random.floats(4 * kHidden * kHidden, 1.0f);
    Buffer<char> packed(unrolled_step_layer_bytes(UNROLLED_FLOAT32, kInput, kHidden), Place::heap);
    const auto check = [&] { check_untouched(packed); };
    const PackLayer layer{UNROLLED_FLOAT32, kInput, kHidden, w.data(), w.data(), w.data(), packed.data()};
    const Trial<PackLayer> of_layer(pack_layer, layer, check);
    refuse_sizes<PackLayer>(of_layer, {&PackLayer::input, &PackLayer::hidden});
    of_layer.refuse_values("hidden must be at least 1", &PackLayer::hidden, {int64_t{0}});
    constexpr const char* kNull = "w_x, w_h and packed must not be NULL";
    of_layer.refuse_null(kNull, {&PackLayer::w_x, &PackLayer::w_h});
    of_layer.refuse_null(kNull, {&PackLayer::packed});
    const PackProjection projection{UNROLLED_FLOAT32, kHidden, kOutput, w.data(), w.data(), packed.data()};
    const Trial<PackProjection> of_projection(pack_projection, projection, check);
    refuse_sizes<PackProjection>(of_projection, {&PackProjection::hidden, &PackProjection::output});
    of_projection.refuse_values("hidden must be at least 1", &PackProjection::hidden, {int64_t{0}});
    of_projection.refuse_null("weight and packed must not be NULL", {&PackProjection::weight});
    of_projection.refuse_null("weight and packed must not be NULL", {&PackProjection::packed});
}

void check_byte_counts() {
    about("bytes of what cannot be packed or run");
    const int64_t counts[] = {
        unrolled_step_layer_bytes(3, 1, 1),
        unrolled_step_layer_bytes(UNROLLED_FLOAT32, -1, 1),
        unrolled_step_layer_bytes(UNROLLED_FLOAT32, 1, kHuge),
        unrolled_step_layer_bytes(UNROLLED_INT8, 1, (1 << 17) + 1),
        unrolled_step_projection_bytes(-1, 1, 1),
        unrolled_step_projection_bytes(UNROLLED_BFLOAT16, kHuge, 1),
        unrolled_step_projection_bytes(UNROLLED_BFLOAT16, 1, -1),
        unrolled_step_scratch_bytes(3, 1, 1, 1, 1),
        unrolled_step_scratch_bytes(UNROLLED_INT8, -1, 1, 1, 1),
        unrolled_step_scratch_bytes(UNROLLED_INT8, 1, 1, 1, 0),
        unrolled_step_scratch_bytes(UNROLLED_INT8, 1, 1, 1, (1 << 16) + 1),
        unrolled_step_scratch_bytes(UNROLLED_INT8, 1, kHuge, 1, 1),
        unrolled_steps_scratch_bytes(3, 1, 1, 1, 1),
        unrolled_steps_scratch_bytes(UNROLLED_FLOAT32, -1, 1, 1, 1),
        unrolled_steps_scratch_bytes(UNROLLED_FLOAT32, kHuge, 1, 1, 1),
        unrolled_steps_scratch_bytes(UNROLLED_FLOAT32, int64_t{1} << 40, 1, 2, 1),
        unrolled_steps_scratch_bytes(UNROLLED_FLOAT32, 1, 1, 1, 0),
    };
    for (const int64_t count : counts) {
        if (count != -1) fail("not -1");
    }
}

struct StepMemory {
    Floats x, table, h;
    std::vector<int64_t> ids;
    Buffer<float> after, c, out;
    Buffer<char> layer, layer_by_id, projection, scratch;
    const void *packed, *packed_by_id;

    explicit StepMemory(Random& random)
        : x(random.floats(kRows * kInput, 1.0f)),
          table(random.floats(7 * 4 * kHidden, 1.0f)),
          h(random.floats(kRows * kHidden, 1.0f)),
          ids{0, 6, 3},
          after(kRows * kHidden, Place::heap),
          c(kRows * kHidden, Place::heap),
          out(kRows * kOutput, Place::heap),
          layer(unrolled_step_layer_bytes(UNROLLED_INT8, kInput, kHidden), Place::heap),
          layer_by_id(unrolled_step_layer_bytes(UNROLLED_INT8, 0, kHidden), Place::heap),
          projection(unrolled_step_projection_bytes(UNROLLED_INT8, kHidden, kOutput), Place::heap),
          scratch(unrolled_step_scratch_bytes(UNROLLED_INT8, kRows, kInput, kHidden, kRun.threads), Place::heap),
          packed(layer.data()),
          packed_by_id(layer_by_id.data()) {
        const Floats w = random.floats(4 * kHidden * kHidden, 1.0f);
        constexpr int32_t kind = UNROLLED_INT8;
        accepted(unrolled_step_pack_layer(&kRun, kind, kInput, kHidden, w.data(), w.data(), nullptr, layer.data()));
        accepted(unrolled_step_pack_layer(&kRun, kind, 0, kHidden, nullptr, w.data(), nullptr, layer_by_id.data()));
        accepted(unrolled_step_pack_projection(&kRun, kind, kHidden, kOutput, w.data(), nullptr, projection.data()));
    }

    UnrolledStep step() {
        return {1,
                kRows,
                kInput,
                kHidden,
                kOutput,
                UNROLLED_INT8,
                &packed,
                projection.data(),
                x.data(),
                nullptr,
                nullptr,
                0,
                h.data(),
                after.data(),
                c.data(),
                out.data(),
                scratch.data(),
                scratch.count(),
                nullptr,
                nullptr};
    }

    UnrolledStep step_by_id() {
        UnrolledStep result = step();
        result.input = 0;
        result.x = nullptr;
        result.packed = &packed_by_id;
        result.ids = ids.data();
        result.table = table.data();
        result.vocabulary = 7;
        return result;
    }
};

using S = UnrolledStep;

void refuse_step(StepMemory& memory, const Trial<S>& trial) {
    refuse_sizes<S>(trial, {&S::input, &S::hidden, &S::output});
    for (int64_t S::*size : {&S::layers, &S::rows, &S::vocabulary}) {
        trial.refuse_values("layers, rows and vocabulary must not be negative", size, {int64_t{-1}, -kHuge});
    }
    trial.refuse_values("layers and hidden must be at least 1", &S::layers, {int64_t{0}});
    trial.refuse_values("layers and hidden must be at least 1", &S::hidden, {int64_t{0}});
    trial.refuse_values("layers x rows x hidden is beyond 2^40", &S::layers, {int64_t{1} << 40, kHuge});
    trial.refuse_values("layers x rows x hidden is beyond 2^40", &S::rows, {int64_t{1} << 40, kHuge});
    trial.refuse_null("out must not be NULL beside a projection", {&S::out});
    trial.refuse_null("h_before, h_after and c must not be NULL", {&S::h_before});
    trial.refuse_null("h_before, h_after and c must not be NULL", {&S::h_after, &S::c});
    trial.refuse("h_after must be apart from h_before", [](S& step) { step.h_before = step.h_after; });
    trial.refuse_null("x must not be NULL where input is above 0", {&S::x});
    UnrolledCell unbounded{}, normed{};
    unbounded.clip = -1.0f;
    normed.norm = memory.x.data();
    trial.refuse("with a norm, sums must not be NULL", [&](S& step) { step.cells = &normed; });
    trial.refuse("the bound of c must be positive, or 0 for none", [&](S& step) { step.cells = &unbounded; });
    const uint64_t key = 1;
    UnrolledCell drawing{};
    drawing.keys = &key;
    trial.refuse("a step draws no masks", [&](S& step) { step.cells = &drawing; });
    trial.refuse_null("packed must not be NULL", {&S::packed});
    const void* none = nullptr;
    trial.refuse("packed must not be NULL", [&](S& step) { step.packed = &none; });
    trial.refuse_null("scratch is NULL or too small", {&S::scratch});
    trial.refuse_values("scratch is NULL or too small", &S::scratch_bytes,
                        {memory.scratch.count() - 1, int64_t{0}, -kHuge});
    trial.refuse_no_call("step is NULL");
}

void refuse_other_packing(StepMemory& memory, const Trial<S>& trial) {
    constexpr const char* kOther = "packed weights are of other sizes, of another kind or for another instruction set";
    trial.refuse(kOther, [&](S& step) { step.packed = &memory.packed_by_id; });
    trial.refuse(kOther, [&](S& step) { step.packed_projection = memory.packed; });
    trial.refuse_values(kOther, &S::weights, {int32_t{UNROLLED_FLOAT32}, int32_t{UNROLLED_BFLOAT16}});
    trial.refuse_values(kOther, &S::hidden, {kHidden - 1, kHidden + 1});
    trial.refuse_values(kOther, &S::input, {kInput - 1, kInput + 1});
    trial.refuse_values(kOther, &S::output, {kOutput - 1, kOutput + 1});
    Buffer<char> empty(memory.layer.count(), Place::heap);
    const void* nothing = empty.data();
    trial.refuse(kOther, [&](S& step) { step.packed = &nothing; });
    if (instruction_sets().size() < 2) return;
    about(kOther);
    const S step = memory.step();
    const UnrolledRun baseline{"baseline", 2};
    refused(unrolled_step(&baseline, &step), kOther);
    check_untouched(memory.after, memory.c, memory.out);
}

void refuse_ids(StepMemory& memory, const Trial<S>& trial) {
    trial.refuse_values("with ids, input must be 0", &S::input, {kInput});
    trial.refuse_null("table must not be NULL beside ids", {&S::table});
    trial.refuse_values("an id is outside the table", &S::vocabulary, {int64_t{0}, int64_t{6}});
    for (const int64_t id : {int64_t{-1}, int64_t{7}, kHuge, -kHuge}) {
        std::vector<int64_t> ids = memory.ids;
        ids.back() = id;
        trial.refuse("an id is outside the table", [&](S& step) { step.ids = ids.data(); });
    }
}

constexpr int64_t kSteps = 2;

const char* several(const UnrolledRun* run, const S* step) { return unrolled_steps(run, step, kSteps); }

// What a step refuses, and what concerns several alone.
void refuse_steps(Random& random) {
    StepMemory memory(random);
    const Floats x = random.floats(kRows * kSteps * kInput, 1.0f);
    Buffer<float> out(kRows * kSteps * kOutput, Place::heap);
    const int64_t bytes = unrolled_steps_scratch_bytes(UNROLLED_INT8, kRows, kInput, kHidden, kRun.threads);
    Buffer<char> scratch(bytes, Place::heap);
    S right = memory.step();
    right.x = x.data();
    right.out = out.data();
    right.scratch = scratch.data();
    right.scratch_bytes = bytes;
    const auto check = [&] { check_untouched(memory.after, memory.c, out); };
    const Trial<S> trial(several, right, check);
    refuse_step(memory, trial);
    refuse_other_packing(memory, trial);
    trial.refuse_values("scratch is NULL or too small", &S::scratch_bytes, {bytes - 1});
    trial.refuse("out must not be NULL for several steps", [](S& step) {
        step.packed_projection = nullptr;
        step.output = 0;
        step.out = nullptr;
    });
    S by_id = right;
    std::vector<int64_t> ids{0, 6, 3, 1, 2, 7};
    by_id.input = 0;
    by_id.x = nullptr;
    by_id.packed = &memory.packed_by_id;
    by_id.ids = ids.data();
    by_id.table = memory.table.data();
    by_id.vocabulary = 7;
    about("the last id of the last step");
    refused(unrolled_steps(&kRun, &by_id, kSteps), "an id is outside the table");
    about("steps");
    for (const int64_t steps : {int64_t{-1}, -kHuge}) {
        refused(unrolled_steps(&kRun, &right, steps), "steps must not be negative");
    }
    for (const int64_t steps : {(int64_t{1} << 40) + 1, kHuge}) {
        refused(unrolled_steps(&kRun, &right, steps), "rows x steps is beyond 2^40");
    }
    accepted(unrolled_steps(&kRun, &right, 0));
    check();
}

}  // namespace

void run_step_refusals() {
    const Stage stage("refusals of the step");
    check_byte_counts();
    refuse_packing();
    Random random(1);
    StepMemory memory(random);
    const auto check = [&] { check_untouched(memory.after, memory.c, memory.out); };
    const Trial<S> trial(unrolled_step, memory.step(), check);
    refuse_step(memory, trial);
    refuse_other_packing(memory, trial);
    refuse_ids(memory, Trial<S>(unrolled_step, memory.step_by_id(), check));
    refuse_steps(random);
    about("nothing to do");
    S step{};
    step.layers = 1;
    step.hidden = kHidden;
    step.input = kInput;
    step.weights = UNROLLED_INT8;
    step.packed = &memory.packed;
    accepted(unrolled_step(&kRun, &step));
    check();
}

}  // namespace driver
