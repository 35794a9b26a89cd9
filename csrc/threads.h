// A team of slots that walks through phases together, on the threads of whoever calls.
//
// A phase is a piece of work that every slot does its share of; no slot enters a phase before all have left the one
// before. A thread may be given several slots (nested parallel regions, smaller teams): it then takes them in turn.
#pragma once

#include <cstdint>

namespace unrolled {

using Share = void (*)(const void* task, int64_t phase, int64_t slot);
// The signature of torch's torch_parallel_for, which is looked up in the library that the caller has loaded.
using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);

void use_parallel_for(ParallelFor function);

// Denormals count as zero inside: they cost a hundred cycles each where a cell state fades away.
void run_phases(Share share, const void* task, int64_t phases, int64_t slots);

// The part of 0..total that slot `index` of `parts` has; earlier ones have one more where it does not divide.
struct Range {
    int64_t begin, end;
};
inline Range part(int64_t total, int64_t parts, int64_t index) {
    const int64_t size = total / parts, larger = total % parts;
    const int64_t begin = index * size + (index < larger ? index : larger);
    return {begin, begin + size + (index < larger ? 1 : 0)};
}

}  // namespace unrolled
