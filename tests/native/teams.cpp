#include "teams.h"

#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "unrolled.h"

namespace driver {
namespace {

using unrolled::RangeFunction;

// At most kThreads of them, with nearly as many slots each; the caller's is the first.
template <int64_t kThreads>
int32_t at_most(int64_t begin, int64_t end, int64_t, RangeFunction function, void* context) {
    const int64_t count = end - begin < kThreads ? end - begin : kThreads;
    std::vector<std::thread> others;
    for (int64_t k = 1; k < count; ++k) {
        const unrolled::Range share = unrolled::part(end - begin, count, k);
        others.emplace_back(function, begin + share.begin, begin + share.end, context);
    }
    function(begin, begin + unrolled::part(end - begin, count, 0).end, context);
    for (std::thread& other : others) other.join();
    return 0;
}

// All slots but one in one thread.
int32_t lopsided(int64_t begin, int64_t end, int64_t, RangeFunction function, void* context) {
    std::thread last(function, end - 1, end, context);
    function(begin, end - 1, context);
    last.join();
    return 0;
}

// The caller comes last, when the others have long given up spinning.
int32_t late(int64_t begin, int64_t end, int64_t, RangeFunction function, void* context) {
    std::vector<std::thread> others;
    for (int64_t slot = begin + 1; slot < end; ++slot) others.emplace_back(function, slot, slot + 1, context);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    function(begin, begin + 1, context);
    for (std::thread& other : others) other.join();
    return 0;
}

int32_t refusing(int64_t, int64_t, int64_t, RangeFunction, void*) { return 1; }

}  // namespace

const Team kTeams[7] = {{"one thread", at_most<1>},   {"two threads", at_most<2>}, {"three threads", at_most<3>},
                        {"five threads", at_most<5>}, {"two, unevenly", lopsided}, {"a late one", late},
                        {"a refusal", refusing}};

int32_t forbidden_team(int64_t, int64_t, int64_t, RangeFunction, void*) { std::_Exit(3); }

InTeam::InTeam(unrolled::ParallelFor run) { unrolled_use_parallel_for(reinterpret_cast<void*>(run)); }
InTeam::~InTeam() { unrolled_use_parallel_for(nullptr); }

}  // namespace driver
