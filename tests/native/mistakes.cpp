#include "mistakes.h"

#include <climits>
#include <cstdio>
#include <cstring>
#include <thread>

#include "buffers.h"
#include "sequence.h"
#include "teams.h"

namespace driver {
namespace {

// A sequence whose states end one float too early.
void overrun() {
    Random random(1);
    const Sequence sequence({2, 3, 16}, Masks::none, random);
    Forward run(sequence, {true, true}, Place::heap);
    Buffer<float> short_h(run.h.count() - 1, Place::heap);
    run.call.h = short_h.data();
    const UnrolledRun one{"baseline", 1};
    unrolled_forward(&one, &run.call);
}

// The same with masked stores, up to the end of a page.
void masked_overrun() {
    Random random(1);
    const Sequence sequence({2, 3, 17}, Masks::none, random);
    Forward run(sequence, {true, true}, Place::page);
    Buffer<float> short_h(run.h.count() - 1, Place::page);
    run.call.h = short_h.data();
    const UnrolledRun one{nullptr, 1};
    unrolled_forward(&one, &run.call);
}

// A scratch size beyond 64 bits.
void overflow() { std::printf("%lld\n", static_cast<long long>(unrolled_product_scratch(INT64_MAX / 2, 1))); }

// Two threads run a sequence each, and both into the same memory.
void race() {
    Random random(1);
    const Sequence sequence({2, 3, 16}, Masks::none, random);
    Forward run(sequence, {true, true}, Place::heap);
    const UnrolledRun one{nullptr, 1};
    std::thread other([&] { unrolled_forward(&one, &run.call); });
    unrolled_forward(&one, &run.call);
    other.join();
}

}  // namespace

bool make_mistake(const char* name) {
    if (std::strcmp(name, "overrun") == 0) {
        overrun();
    } else if (std::strcmp(name, "masked-overrun") == 0) {
        masked_overrun();
    } else if (std::strcmp(name, "overflow") == 0) {
        overflow();
    } else if (std::strcmp(name, "race") == 0) {
        race();
    } else {
        return false;
    }
    return true;
}

}  // namespace driver
