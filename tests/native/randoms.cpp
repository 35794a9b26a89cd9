// Random words, keys of rows and what is dropped out: the same from every instruction set and on any number of slots.
#include "check.h"
#include "stages.h"

namespace driver {
namespace {

struct Places {
    int64_t first, steps, rows, units;

    int64_t count() const { return steps * rows * units; }
};

std::vector<uint32_t> words_of(const UnrolledRun& run, const Places& at, const Buffer<uint64_t>& keys, Place place) {
    Buffer<uint32_t> words(2 * at.count(), place);
    const UnrolledRandomWords call{at.first, at.steps, at.rows, at.units, keys.data(), words.data()};
    accepted(unrolled_random_words(&run, &call));
    return words.values();
}

void run_places(const Places& at) {
    const Place place = kPlaces[at.units % 3];
    Buffer<uint64_t> keys(at.rows, place);
    accepted(unrolled_row_keys(~uint64_t{0}, 3, at.rows, keys.data()));
    const std::vector<uint32_t> expected = words_of({"baseline", 1}, at, keys, Place::heap);
    constexpr uint32_t kThreshold = 20000;
    Floats multiplier;
    for (int64_t k = 0; k < at.count(); ++k) {
        multiplier.push_back((expected.data()[k] & 0xffffu) < kThreshold ? 0.0f : 1.5f);
    }
    for (const std::string& set : instruction_sets()) {
        for (const int64_t threads : {1, 2, 5}) {
            about(words(set.c_str(), {{"random, units", at.units}, {"steps", at.steps}, {"threads", threads}}));
            const UnrolledRun run{set.c_str(), threads};
            if (words_of(run, at, keys, place) != expected) fail("words differ");
            Buffer<float> found(at.count(), place);
            const UnrolledMultiplier call{at.first,    at.steps,   at.rows, at.units,
                                          keys.data(), kThreshold, 1.5f,    found.data()};
            accepted(unrolled_multiplier(&run, &call));
            check_same("multiplier", found.data(), multiplier);
        }
    }
}

// Of SplitMix64 that begins with zero; docs and tests in Python have the source.
void run_known_keys() {
    about("row_keys");
    uint64_t keys[2];
    accepted(unrolled_row_keys(0, 1, 2, keys));
    if (keys[0] != 0x6E789E6AA1B965F4u || keys[1] != 0x06C45D188009454Fu) fail("keys differ");
}

}  // namespace

void run_randoms() {
    const Stage stage("random bits");
    run_known_keys();
    for (int64_t units = 0; units < 40; ++units) run_places({units % 2 == 0 ? -2 : 70000, units % 4, 1 + units % 3, units});
}

}  // namespace driver
