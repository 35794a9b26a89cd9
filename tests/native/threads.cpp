// Several threads at once: the same bits as one, whatever team takes the slots, and no race on the way.
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "check.h"
#include "products.h"
#include "sequence.h"
#include "stack.h"
#include "stages.h"
#include "teams.h"

namespace driver {
namespace {

// One thread without a team, then every team with several: the same bits.
template <typename Operation>
void in_every_team(const char* set, const char* what, const Operation& operation) {
    about(std::string(what) + ", " + set + ", one slot");
    const auto expected = operation({set, 1});
    for (const Team& team : kTeams) {
        const InTeam in_team(team.run);
        for (const int64_t slots : {2, 3, 5}) {
            about(std::string(what) + ", " + set + ", " + team.name + ", slots " + std::to_string(slots));
            const auto got = operation({set, slots});
            check_same("h or out", got.h.data(), expected.h);
            check_same("c", got.c.data(), expected.c);
            check_same("the rest", got.out.data(), expected.out);
        }
    }
}

StepResult run_both_ways(const UnrolledRun& run, const Sequence& sequence, const Cotangents& given) {
    Forward forward(sequence, {true, true}, Place::heap);
    accepted(unrolled_forward(&run, &forward.call));
    StepResult result{forward.h.values(), forward.c.values(), forward.gates.values()};
    Backward backward(sequence, result.c, result.out, given, Place::heap);
    accepted(unrolled_backward(&run, &backward.call));
    for (const Buffer<float>* more : {&backward.grad_pre, &backward.grad_h0, &backward.grad_c0, &backward.grad_cell,
                                      &backward.grad_projected, &backward.grad_bias}) {
        const Floats values = more->values();
        result.out.insert(result.out.end(), values.begin(), values.end());
    }
    return result;
}

Cotangents cotangents(const Sequence& sequence, Random& random) {
    const Sizes& sizes = sequence.sizes;
    return {Cotangent(sizes, sequence.width(), Layout::contiguous, random),
            Cotangent(sizes, sizes.hidden, Layout::batch_first, random),
            Cotangent(sizes, sequence.planes() * sizes.hidden, Layout::expanded, random)};
}

void run_sequences(const char* set) {
    // Few rows share the units and wait at every step, many rows never do; the first two are mostly waiting.
    for (const Sizes& sizes :
         {Sizes{100, 1, 65}, Sizes{60, 3, 33}, Sizes{5, 30, 64}, Sizes{4, 2, 130}, Sizes{3, 9, 260}}) {
        for (const Options& options : {sizes.hidden % 2 == 0 ? kPlain : kNormed, kAll}) {
            Random random(1);
            const Sequence sequence(sizes, Masks::both, random, options);
            const Cotangents given = cotangents(sequence, random);
            in_every_team(set, "sequence", [&](const UnrolledRun& run) { return run_both_ways(run, sequence, given); });
        }
    }
}

void run_products_of(const char* set) {
    for (const int64_t rows : {9, 700}) {
        Random random(1);
        const Product product({rows, 33, 200, 0, rows == 9, 0, true}, random);
        in_every_team(set, "product", [&](const UnrolledRun& run) {
            return StepResult{product.run(run, Place::heap), {}, {}};
        });
    }
    for (const int64_t columns : {65, 400}) {
        Random random(1);
        const WeightGradient gradient({200, 33, columns, 0, 0, true, 1}, random);
        in_every_team(set, "weight_gradient", [&](const UnrolledRun& run) {
            return StepResult{gradient.run(run, Place::heap), {}, {}};
        });
    }
}

void run_stacks(const char* set) {
    for (const int32_t weights : {UNROLLED_FLOAT32, UNROLLED_BFLOAT16, UNROLLED_INT8}) {
        for (const int64_t rows : {1, 3, 20, 330}) {
            const bool large = rows < 20;
            Random random(1);
            const Stack stack({large ? 4 : 2, rows, 17, large ? 130 : 33, 65, 0, true}, random);
            in_every_team(set, "step", [&](const UnrolledRun& run) {
                const PackedStack packed(run, weights, stack, Place::heap);
                return packed.step(run, stack.h, stack.c, Place::heap, false);
            });
            const int64_t steps = rows == 1 ? 140 : 4;
            const StepsCase given{random.floats(rows * steps * 17, 2.0f), {}, stack.h, stack.c, steps};
            in_every_team(set, "steps", [&](const UnrolledRun& run) {
                return PackedStack(run, weights, stack, Place::heap).steps(run, given, Place::heap);
            });
        }
    }
}

// Calls hold no state in common: two threads that know nothing of each other may make them.
void run_two_callers() {
    about("two callers at once");
    Random random(1);
    const Sizes sizes{20, 3, 65};
    const Sequence sequence(sizes, Masks::both, random);
    Forward alone(sequence, {true, true}, Place::heap);
    const UnrolledRun run{nullptr, 3};
    accepted(unrolled_forward(&run, &alone.call));
    const InTeam in_team(kTeams[1].run);
    for (int turn = 0; turn < 10; ++turn) {
        Forward mine(sequence, {true, true}, Place::heap), theirs(sequence, {true, true}, Place::heap);
        const char* answer = nullptr;
        std::thread other([&] { answer = unrolled_forward(&run, &theirs.call); });
        accepted(unrolled_forward(&run, &mine.call));
        other.join();
        accepted(answer);
        check_same("h", mine.h.data(), alone.h.values());
        check_same("h", theirs.h.data(), alone.h.values());
    }
}

// A child has its parent's address of the thread pool, but none of the threads: it must not ask for them.
void run_forked_child() {
    about("a forked child");
    Random random(1);
    const Sequence sequence({5, 3, 65}, Masks::none, random);
    Forward run(sequence, {true, true}, Place::heap);
    const UnrolledRun several{nullptr, 3};
    const InTeam in_team(forbidden_team);
    const pid_t child = fork();
    if (child == 0) std::_Exit(unrolled_forward(&several, &run.call) == nullptr ? 0 : 2);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) fail("no child");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("the child ended with status " + std::to_string(status));
    accepted(nullptr);
}

}  // namespace

void run_threads() {
    const Stage stage("threads");
    for (const std::string& set : instruction_sets()) {
        run_sequences(set.c_str());
        run_products_of(set.c_str());
        run_stacks(set.c_str());
    }
    run_two_callers();
    run_forked_child();
}

}  // namespace driver
