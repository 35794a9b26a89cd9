#include "check.h"

#include <sanitizer/common_interface_defs.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "instruction_sets.h"

namespace driver {
namespace {

std::string stage, subject;
int64_t calls;
double closest;

void say_where() { std::fprintf(stderr, "while running %s: %s\n", stage.c_str(), subject.c_str()); }

}  // namespace

Stage::Stage(const char* name) {
    __sanitizer_set_death_callback(say_where);
    stage = name;
    subject.clear();
    calls = 0;
    closest = 0.0;
}

Stage::~Stage() {
    std::printf("%s: %lld calls", stage.c_str(), static_cast<long long>(calls));
    if (closest > 0.0) std::printf(", the largest error is %.2f of its bound", closest);
    std::printf("\n");
    std::fflush(stdout);
}

void about(std::string what) { subject = std::move(what); }

void fail(const std::string& what) {
    std::fflush(stdout);
    say_where();
    std::fprintf(stderr, "%s\n", what.c_str());
    std::_Exit(1);
}

void accepted(const char* answer) {
    ++calls;
    if (answer != nullptr) fail(std::string("refused with \"") + answer + '"');
}

void refused(const char* answer, const char* expected) {
    ++calls;
    if (answer == nullptr) fail(std::string("not refused, expected \"") + expected + '"');
    if (std::string(answer) == expected) return;
    fail(std::string("refused with \"") + answer + "\", expected \"" + expected + '"');
}

void check_near(const char* name, int64_t index, float got, Near expected) {
    if (std::isnan(expected.value) ? std::isnan(got) : static_cast<double>(got) == expected.value) return;
    const double share = std::fabs(static_cast<double>(got) - expected.value) / expected.error;
    if (share <= 1.0) {
        closest = std::max(closest, share);
        return;
    }
    std::ostringstream text;
    text.precision(9);
    text << name << '[' << index << "] is " << got << ", expected " << expected.value << " within " << expected.error;
    fail(text.str());
}

void check_same(const char* name, const float* got, const Floats& expected) {
    if (expected.empty() || std::memcmp(got, expected.data(), expected.size() * sizeof *got) == 0) return;
    for (std::size_t k = 0; k < expected.size(); ++k) {
        if (std::memcmp(got + k, &expected[k], sizeof *got) == 0) continue;
        std::ostringstream text;
        text.precision(9);
        text << name << '[' << k << "] is " << got[k] << ", expected the bits of " << expected[k];
        fail(text.str());
    }
}

const std::vector<std::string>& instruction_sets() {
    static const std::vector<std::string> found = [] {
        std::istringstream names(unrolled_instruction_sets());
        std::vector<std::string> all;
        for (std::string name; names >> name;) all.push_back(name);
        return all;
    }();
    return found;
}

std::string words(const char* set, std::initializer_list<std::pair<const char*, int64_t>> sizes) {
    std::ostringstream text;
    text << set;
    for (const auto& [name, size] : sizes) text << ", " << name << ' ' << size;
    return text.str();
}

}  // namespace driver
