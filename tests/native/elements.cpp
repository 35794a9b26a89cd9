// Sigmoid and tanh over memory: every count up to some vectors, ordinary floats and the ends of their range.
#include <limits>

#include "check.h"
#include "stages.h"
#include "trial.h"

namespace driver {
namespace {

using Function = const char*(const char* instruction_set, const float* x, float* y, int64_t count);

struct Named {
    const char* name;
    Function* run;
    Near (*expected)(Near);
};

constexpr Named kFunctions[] = {{"sigmoid", unrolled_sigmoid, sigmoid}, {"tanh", unrolled_tanh, tanh}};

Floats some_floats(int64_t count, Random& random) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity(), kLargest = std::numeric_limits<float>::max();
    constexpr float kEnds[] = {0.0f,   -0.0f,   kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                               1e-45f, -1e-45f, 1e-30f,    kLargest,   -kLargest,
                               87.5f,  -87.5f,  88.5f,     -88.5f,     104.0f,
                               9.25f,  -9.25f,  0.256f,    8.0f,       -104.0f};
    Floats values = random.floats(count, 12.0f);
    for (float& value : values) {
        if (random.below(3) == 0) value = kEnds[random.below(sizeof kEnds / sizeof *kEnds)];
    }
    return values;
}

void run_function(const Named& function, const char* set, int64_t count, Place place) {
    about(words(set, {{function.name, count}}));
    Random random(static_cast<uint64_t>(count));
    const Floats values = some_floats(count, random);
    const Buffer<float> x(values, place);
    Buffer<float> y(count, place), in_place(values, place);
    accepted(function.run(set, x.data(), y.data(), count));
    for (int64_t k = 0; k < count; ++k) check_near("y", k, y.data()[k], function.expected(exact(x.data()[k])));
    accepted(function.run(set, in_place.data(), in_place.data(), count));
    check_same("in place", in_place.data(), y.values());
}

void refuse(const Named& function) {
    const Floats x(3, 1.0f);
    Buffer<float> y(3, Place::heap);
    const auto expect = [&](const char* expected, const char* answer) {
        about(function.name);
        refused(answer, expected);
        check_untouched(y);
    };
    expect("this processor, or this library, has no such instruction set",
           function.run("avx1024", x.data(), y.data(), 3));
    expect("count must not be negative", function.run(nullptr, x.data(), y.data(), -1));
    expect("x and y must not be NULL", function.run(nullptr, nullptr, y.data(), 3));
    expect("x and y must not be NULL", function.run(nullptr, x.data(), nullptr, 3));
    accepted(function.run(nullptr, nullptr, nullptr, 0));
}

}  // namespace

void run_elements() {
    const Stage stage("elements");
    for (const Named& function : kFunctions) {
        for (const std::string& set : instruction_sets()) {
            for (int64_t count = 0; count < 70; ++count) {
                for (const Place place : kPlaces) run_function(function, set.c_str(), count, place);
            }
            run_function(function, set.c_str(), 20000, Place::heap);
        }
        refuse(function);
    }
}

}  // namespace driver
