// What is being run, what it should have given, and the end at the first thing that is wrong.
#pragma once

#include <cstdint>
#include <string>

#include "buffers.h"
#include "near.h"
#include "unrolled.h"

namespace driver {

// Prints a line when it ends: the calls that were made, and how close the worst number came to its bound.
class Stage {
   public:
    explicit Stage(const char* name);
    ~Stage();
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;
};

// What the next checks are about, in the words of whoever will read of a failure.
void about(std::string what);
[[noreturn]] void fail(const std::string& what);

// The answer of a call that nothing is wrong with.
void accepted(const char* answer);
void refused(const char* answer, const char* expected);

void check_near(const char* name, int64_t index, float got, Near expected);
void check_same(const char* name, const float* got, const Floats& expected);

// The instruction sets of this processor, best last.
const std::vector<std::string>& instruction_sets();

// Words for `about`.
std::string words(const char* set, std::initializer_list<std::pair<const char*, int64_t>> sizes);

}  // namespace driver
