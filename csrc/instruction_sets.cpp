#include "instruction_sets.h"

#include <cstring>

#if defined(UNROLLED_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#elif defined(UNROLLED_X86)
#include <cpuid.h>
#endif

namespace unrolled {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
constexpr const char* kJoined[] = {"baseline", "baseline avx2", "baseline avx2 avx512"};

struct Processor {
    int best;  // index into kNames
    bool vnni, bf16, intel;
};

#if defined(UNROLLED_X86)

struct Registers {
    unsigned eax, ebx, ecx, edx;
};

// All zeros for a leaf that the processor does not have.
Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers found{0, 0, 0, 0};
#if defined(_MSC_VER)
    int values[4];
    __cpuid(values, 0);
    if (static_cast<unsigned>(values[0]) < leaf) return found;
    __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
    std::memcpy(&found, values, sizeof found);
#else
    __get_cpuid_count(leaf, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx);
#endif
    return found;
}

// XCR0: which registers the operating system saves when it changes threads.
unsigned saved_registers() {
#if defined(_MSC_VER)
    return static_cast<unsigned>(_xgetbv(0));
#else
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

constexpr unsigned bit(int index) { return 1u << index; }
constexpr bool all(unsigned value, unsigned bits) { return (value & bits) == bits; }

// The first four letters of GenuineIntel.
constexpr unsigned kGenuineIntel = 0x756e6547;

// Bits: Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID in volume 2A, XCR0 in volume 1, chapter 13.
Processor detect() {
    Processor found{0, false, false, cpuid(0, 0).ebx == kGenuineIntel};
    constexpr unsigned kFma = bit(12), kOsSaves = bit(27), kAvx = bit(28);
    if (!all(cpuid(1, 0).ecx, kFma | kOsSaves | kAvx)) return found;
    const unsigned saved = saved_registers();
    constexpr unsigned kLowerHalves = bit(1), kUpperHalves = bit(2), kAvx512 = bit(5) | bit(6) | bit(7);
    const Registers features = cpuid(7, 0);
    if (!all(saved, kLowerHalves | kUpperHalves) || !all(features.ebx, bit(5))) return found;
    found.best = 1;
    constexpr unsigned kF = bit(16), kDq = bit(17), kBw = bit(30), kVl = bit(31);
    if (!all(saved, kAvx512) || !all(features.ebx, kF | kDq | kBw | kVl)) return found;
    found.best = 2;
    found.vnni = all(features.ecx, bit(11));
    found.bf16 = features.eax >= 1 && all(cpuid(7, 1).eax, bit(5));
    return found;
}

#else

Processor detect() { return {0, false, false, false}; }

#endif

const Processor& processor() {
    static const Processor found = detect();
    return found;
}

}  // namespace

const char* best_instruction_set() { return kNames[processor().best]; }

bool has_instruction_set(const char* name) {
    for (int k = 0; k <= processor().best; ++k) {
        if (std::strcmp(name, kNames[k]) == 0) return true;
    }
    return false;
}

bool has_vnni() { return processor().vnni; }
bool has_bf16() { return processor().bf16; }

}  // namespace unrolled

extern "C" {

const char* unrolled_instruction_set(void) { return unrolled::best_instruction_set(); }

const char* unrolled_instruction_sets(void) { return unrolled::kJoined[unrolled::processor().best]; }

int32_t unrolled_prefers_own_products(void) {
    const unrolled::Processor& found = unrolled::processor();
    return found.best > 0 && !found.intel;
}

const char* unrolled_instruction_flags(void) {
    if (unrolled::has_vnni()) return unrolled::has_bf16() ? "vnni bf16" : "vnni";
    return unrolled::has_bf16() ? "bf16" : "";
}
}
