// The recurrence over its grid of sizes, masks, outputs and layouts.
#include <algorithm>

#include "check.h"
#include "sequence.h"
#include "stages.h"

namespace driver {
namespace {

constexpr Layout kLayouts[] = {Layout::contiguous, Layout::batch_first, Layout::expanded, Layout::absent};
constexpr Stored kStored[] = {{true, true}, {false, true}, {false, false}, {true, false}};
// More than there are rows or blocks of units, too. No thread is there to take the slots: one walks through all of
// them.
constexpr int64_t kThreads[] = {1, 2, 3, 5, 16};

// The last step's c, which is all that is kept of it.
Floats last_of(const Floats& c, Sizes sizes) {
    return Floats(c.end() - static_cast<std::ptrdiff_t>(sizes.rows * sizes.hidden), c.end());
}

// A call checked against the loop, and others that must have its bits: elsewhere in memory, on more slots, with less
// stored, with the weights packed already, with the gates over the pre-activations.
class Case {
   public:
    Case(const char* set, const Sequence& sequence, int64_t turn)
        : set_(set), sequence_(sequence), turn_(turn), whole_(sequence, {true, true}, place(0)) {}

    void run_forward() {
        const UnrolledRun run{set_, 1};
        accepted(unrolled_forward(&run, &whole_.call));
        check_forward(sequence_, whole_);
        const Floats h = whole_.h.values(), c = whole_.c.values(), gates = whole_.gates.values();
        for (int64_t k = 0; k < 2; ++k) {
            const Stored stored = kStored[(turn_ + k) % 4];
            Forward other(sequence_, stored, place(1 + k));
            const UnrolledRun other_run{set_, threads(k)};
            accepted(unrolled_forward(&other_run, &other.call));
            check_other(other, stored, h, c, gates);
            other.call.packed = 1;
            other.take_in_h0();
            accepted(unrolled_forward(&other_run, &other.call));
            check_other(other, stored, h, c, gates);
            if (!stored.gates || sequence_.options.norm) continue;
            std::copy(sequence_.pre.begin(), sequence_.pre.end(), other.gates.data());
            other.call.pre = other.gates.data();
            other.take_in_h0();
            accepted(unrolled_forward(&other_run, &other.call));
            check_other(other, stored, h, c, gates);
        }
    }

    void run_backward(const Cotangents& given) {
        const Floats c = whole_.c.values(), gates = whole_.gates.values();
        Backward first(sequence_, c, gates, given, place(1));
        const UnrolledRun run{set_, 1};
        accepted(unrolled_backward(&run, &first.call));
        check_backward(sequence_, given, first);
        const Floats grad_pre = first.grad_pre.values(), grad_h0 = first.grad_h0.values();
        const Floats grad_c0 = first.grad_c0.values(), grad_cell = first.grad_cell.values();
        const Floats grad_projected = first.grad_projected.values(), grad_bias = first.grad_bias.values();
        for (int64_t k = 0; k < 2; ++k) {
            Backward other(sequence_, c, gates, given, place(2 + k));
            const UnrolledRun other_run{set_, threads(1 + k)};
            accepted(unrolled_backward(&other_run, &other.call));
            check_same("grad_pre", other.grad_pre.data(), grad_pre);
            check_same("grad_h0", other.grad_h0.data(), grad_h0);
            check_same("grad_c0", other.grad_c0.data(), grad_c0);
            check_same("grad_cell", other.grad_cell.data(), grad_cell);
            check_same("grad_projected", other.grad_projected.data(), grad_projected);
            check_same("grad_bias", other.grad_bias.data(), grad_bias);
        }
    }

   private:
    Place place(int64_t k) const { return kPlaces[(turn_ + k) % 3]; }
    int64_t threads(int64_t k) const { return kThreads[(turn_ + k) % 5]; }

    void check_other(const Forward& other, Stored stored, const Floats& h, const Floats& c, const Floats& gates) const {
        check_same("h", other.h.data(), h);
        if (stored.gates) check_same("gates", other.gates.data(), gates);
        if (stored.every_c) {
            check_same("c", other.c.data(), c);
        } else if (sequence_.sizes.steps > 0) {
            check_same("the last c", other.c.data(), last_of(c, sequence_.sizes));
        }
    }

    const char* set_;
    const Sequence& sequence_;
    int64_t turn_;
    Forward whole_;
};

void run_case(const char* set, const Sequence& sequence, int64_t turn, const Layout (&layouts)[3], uint64_t seed) {
    const Sizes& sizes = sequence.sizes;
    Random random(seed);
    Case one(set, sequence, turn);
    one.run_forward();
    one.run_backward({Cotangent(sizes, sequence.width(), layouts[0], random),
                      Cotangent(sizes, sizes.hidden, layouts[1], random),
                      Cotangent(sizes, sequence.planes() * sizes.hidden, layouts[2], random)});
}

void run_size(Sizes sizes, bool all_layouts, int64_t& turn) {
    for (const Masks masks : kMasks) {
        Random random(static_cast<uint64_t>(turn));
        const Sequence sequence(sizes, masks, random);
        for (const std::string& set : instruction_sets()) {
            // Its lanes are loops, each access of which is checked, and four of them meet every edge in a small layer.
            if (set == "baseline" && sizes.hidden > 33 && masks != Masks::both) continue;
            about(words(set.c_str(), {{"steps", sizes.steps},
                                      {"rows", sizes.rows},
                                      {"hidden", sizes.hidden},
                                      {"masks", static_cast<int64_t>(masks)},
                                      {"turn", turn}}));
            const int64_t most = all_layouts ? 64 : 1;
            for (int64_t k = 0; k < most; ++k) {
                const int64_t at = all_layouts ? k : turn % 64;
                ++turn;
                run_case(set.c_str(), sequence, turn, {kLayouts[at % 4], kLayouts[at / 4 % 4], kLayouts[at / 16]},
                         static_cast<uint64_t>(turn));
            }
        }
    }
}

// Every option alone and all of them, at sizes with whole and with partial vectors.
void run_options(int64_t& turn) {
    for (const Options& options : kOptions) {
        for (const Sizes& sizes : {Sizes{3, 4, 5}, Sizes{5, 9, 16}, Sizes{2, 3, 33}, Sizes{3, 13, 130}, Sizes{0, 2, 5},
                                   Sizes{2, 3, 1}, Sizes{2, 5, 0}}) {
            // Refused.
            if (options.projects && sizes.hidden == 0) continue;
            for (const Masks masks : {Masks::none, Masks::both}) {
                Random random(static_cast<uint64_t>(turn));
                const Sequence sequence(sizes, masks, random, options);
                for (const std::string& set : instruction_sets()) {
                    about(words(set.c_str(), {{"options", &options - kOptions},
                                              {"hidden", sizes.hidden},
                                              {"masks", static_cast<int64_t>(masks)}}));
                    const int64_t at = turn % 64;
                    run_case(set.c_str(), sequence, turn,
                             {kLayouts[at % 4], kLayouts[at / 4 % 4], kLayouts[at / 16]}, static_cast<uint64_t>(turn));
                    ++turn;
                }
            }
        }
    }
}

void run_extremes(int64_t& turn) {
    for (int64_t hidden : {5, 33}) {
        Random random(static_cast<uint64_t>(hidden));
        Sequence sequence({4, 6, hidden}, Masks::both, random);
        add_extremes(sequence, random);
        for (const std::string& set : instruction_sets()) {
            about(words(set.c_str(), {{"extremes, hidden", hidden}}));
            run_case(set.c_str(), sequence, turn++, {Layout::contiguous, Layout::contiguous, Layout::contiguous}, 1);
        }
    }
}

}  // namespace

void run_recurrence() {
    const Stage stage("recurrence");
    int64_t turn = 0;
    for (const int64_t hidden : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 130}) {
        for (const int64_t rows : {0, 1, 2, 3, 4, 7, 8, 13}) {
            for (const int64_t steps : {0, 1, 2, 5}) {
                if (hidden <= 65 || steps <= 2 || rows <= 4) run_size({steps, rows, hidden}, false, turn);
            }
        }
    }
    // Rows are taken in chunks of 128. From 257 units on, threads share the units of however many rows.
    run_size({3, 127, 5}, false, turn);
    run_size({3, 129, 16}, false, turn);
    run_size({2, 260, 17}, false, turn);
    run_size({2, 130, 130}, false, turn);
    run_size({2, 9, 260}, false, turn);
    // Biases' gradients are summed by 64 steps.
    run_size({130, 2, 5}, false, turn);
    for (const Sizes& sizes : {Sizes{1, 1, 1}, Sizes{3, 3, 6}, Sizes{2, 5, 17}}) run_size(sizes, true, turn);
    run_options(turn);
    run_extremes(turn);
}

}  // namespace driver
