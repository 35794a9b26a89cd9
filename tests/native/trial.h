// A call that is right, and what becomes of it when one thing is not.
#pragma once

#include <functional>
#include <limits>
#include <utility>

#include "check.h"

namespace driver {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr UnrolledRun kRun{nullptr, 2};

template <typename... Outputs>
inline void check_untouched(const Outputs&... outputs) {
    if (!(outputs.untouched() && ...)) fail("refused, but something has been written");
}

// Begins with what every call refuses of its `run`.
template <typename Call>
class Trial {
   public:
    using Function = const char*(const UnrolledRun*, const Call*);

    Trial(Function* function, const Call& right, std::function<void()> check_outputs)
        : function_(function), right_(right), check_outputs_(std::move(check_outputs)) {
        refuse_run("run is NULL", nullptr);
        for (const int64_t threads : {int64_t{0}, int64_t{-1}, -kHuge}) {
            const UnrolledRun run{nullptr, threads};
            refuse_run("threads must be at least 1", &run);
        }
        for (const int64_t threads : {(int64_t{1} << 16) + 1, kHuge}) {
            const UnrolledRun run{nullptr, threads};
            refuse_run("threads is beyond 2^16", &run);
        }
        for (const char* name : {"", "avx", "avx5122", "AVX2"}) {
            const UnrolledRun run{name, 1};
            refuse_run("this processor, or this library, has no such instruction set", &run);
        }
    }

    template <typename Change>
    void refuse(const char* expected, const Change& change) const {
        about(expected);
        Call call = right_;
        change(call);
        refused(function_(&kRun, &call), expected);
        check_outputs_();
    }

    template <typename Pointer>
    void refuse_null(const char* expected, std::initializer_list<Pointer Call::*> members) const {
        for (Pointer Call::*member : members) refuse(expected, [&](Call& call) { call.*member = nullptr; });
    }

    template <typename Value>
    void refuse_values(const char* expected, Value Call::*member, std::initializer_list<Value> values) const {
        for (Value value : values) refuse(expected, [&](Call& call) { call.*member = value; });
    }

    void refuse_no_call(const char* expected) const {
        about(expected);
        refused(function_(&kRun, nullptr), expected);
    }

   private:
    void refuse_run(const char* expected, const UnrolledRun* run) const {
        about(expected);
        refused(function_(run, &right_), expected);
        check_outputs_();
    }

    Function* function_;
    Call right_;
    std::function<void()> check_outputs_;
};

}  // namespace driver
