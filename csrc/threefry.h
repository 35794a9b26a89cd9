// Random bits from a counter: recurrence/threefry.py is the definition, and has the sources.
#pragma once

#include <cstdint>

#include "tasks.h"
#include "vector.h"

namespace unrolled {
namespace UNROLLED_ISA {

constexpr int kThreefryRounds = 13;
constexpr int kRotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
constexpr uint32_t kParity = 0x1BD11BDAu;

// A vector of words, a lane for each unit.
#if defined(__AVX512F__)

struct Words {
    __m512i value;
};

UNROLLED_INLINE Words all_words(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
UNROLLED_INLINE Words lane_numbers() {
    return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
UNROLLED_INLINE Words operator+(Words a, Words b) { return {_mm512_add_epi32(a.value, b.value)}; }
UNROLLED_INLINE Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.value, b.value)}; }
template <int kCount>
UNROLLED_INLINE Words rotated(Words a) {
    return {_mm512_rol_epi32(a.value, kCount)};
}
UNROLLED_INLINE Words low_half(Words a) { return {_mm512_and_si512(a.value, _mm512_set1_epi32(0xffff))}; }
UNROLLED_INLINE Words high_half(Words a) { return {_mm512_srli_epi32(a.value, 16)}; }
// Of numbers that are not above 2^31.
UNROLLED_INLINE Mask below(Words a, Words threshold) { return {_mm512_cmplt_epi32_mask(a.value, threshold.value)}; }
UNROLLED_INLINE void store(uint32_t* to, Words a) { _mm512_storeu_si512(to, a.value); }

#elif defined(__AVX2__)

struct Words {
    __m256i value;
};

UNROLLED_INLINE Words all_words(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
UNROLLED_INLINE Words lane_numbers() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
UNROLLED_INLINE Words operator+(Words a, Words b) { return {_mm256_add_epi32(a.value, b.value)}; }
UNROLLED_INLINE Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.value, b.value)}; }
template <int kCount>
UNROLLED_INLINE Words rotated(Words a) {
    return {_mm256_or_si256(_mm256_slli_epi32(a.value, kCount), _mm256_srli_epi32(a.value, 32 - kCount))};
}
UNROLLED_INLINE Words low_half(Words a) { return {_mm256_and_si256(a.value, _mm256_set1_epi32(0xffff))}; }
UNROLLED_INLINE Words high_half(Words a) { return {_mm256_srli_epi32(a.value, 16)}; }
UNROLLED_INLINE Mask below(Words a, Words threshold) {
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(threshold.value, a.value))};
}
UNROLLED_INLINE void store(uint32_t* to, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.value); }

#else

struct Words {
    uint32_t value[kLanes];
};

#define UNROLLED_WORDS(expression)                                 \
    Words result;                                                  \
    for (int k = 0; k < kLanes; ++k) result.value[k] = expression; \
    return result

UNROLLED_INLINE Words all_words(uint32_t x) { UNROLLED_WORDS(x); }
UNROLLED_INLINE Words lane_numbers() { UNROLLED_WORDS(static_cast<uint32_t>(k)); }
UNROLLED_INLINE Words operator+(Words a, Words b) { UNROLLED_WORDS(a.value[k] + b.value[k]); }
UNROLLED_INLINE Words operator^(Words a, Words b) { UNROLLED_WORDS(a.value[k] ^ b.value[k]); }
template <int kCount>
UNROLLED_INLINE Words rotated(Words a) {
    UNROLLED_WORDS((a.value[k] << kCount) | (a.value[k] >> (32 - kCount)));
}
UNROLLED_INLINE Words low_half(Words a) { UNROLLED_WORDS(a.value[k] & 0xffffu); }
UNROLLED_INLINE Words high_half(Words a) { UNROLLED_WORDS(a.value[k] >> 16); }
UNROLLED_INLINE Mask below(Words a, Words threshold) {
    Mask result;
    for (int k = 0; k < kLanes; ++k) result.value[k] = a.value[k] < threshold.value[k];
    return result;
}
UNROLLED_INLINE void store(uint32_t* to, Words a) { std::memcpy(to, a.value, sizeof a.value); }
#undef UNROLLED_WORDS

#endif

struct RandomWords {
    Words first, second;
};

template <int kTurn>
UNROLLED_INLINE void threefry_round(RandomWords& x, const uint32_t (&schedule)[3]) {
    if constexpr (kTurn < kThreefryRounds) {
        x.first = x.first + x.second;
        x.second = x.first ^ rotated<kRotations[kTurn % 8]>(x.second);
        if constexpr (kTurn % 4 == 3) {
            constexpr uint32_t kInto = kTurn / 4 + 1;
            x.first = x.first + all_words(schedule[kInto % 3]);
            x.second = x.second + all_words(schedule[(kInto + 1) % 3] + kInto);
        }
        threefry_round<kTurn + 1>(x, schedule);
    }
}

// Of a row's key, a step, and the units from `unit` on.
UNROLLED_INLINE RandomWords random_words(uint64_t key, uint32_t step, uint32_t unit) {
    const auto low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    const uint32_t schedule[3] = {low, high, low ^ high ^ kParity};
    RandomWords x{all_words(step + low), lane_numbers() + all_words(unit + high)};
    threefry_round<0>(x, schedule);
    return x;
}

// Calls run(at, count, words) for every vector of units that a slot has of a call's places: `at` counts them all, in the
// order of steps, rows and units.
template <typename Task, typename Run>
UNROLLED_INLINE void for_each_place(const Task& task, int64_t slot, const Run& run) {
    const auto& call = task.call;
    const int64_t units = call.units;
    const Range places = part(call.steps * call.rows, task.slots, slot);
    for (int64_t place = places.begin; place < places.end; ++place) {
        const auto step = static_cast<uint32_t>(call.first + place / call.rows);
        for (int64_t unit = 0; unit < units; unit += kLanes) {
            const int64_t count = units - unit < kLanes ? units - unit : kLanes;
            const uint64_t key = call.keys[place % call.rows];
            run(place * units + unit, count, random_words(key, step, static_cast<uint32_t>(unit)));
        }
    }
}

inline void random_words_all(const void* given, int64_t, int64_t slot) {
    const RandomWordsTask& task = *static_cast<const RandomWordsTask*>(given);
    const UnrolledRandomWords& call = task.call;
    const int64_t plane = call.steps * call.rows * call.units;
    for_each_place(task, slot, [&](int64_t at, int64_t count, const RandomWords& x) {
        const Words both[2] = {x.first, x.second};
        for (int half = 0; half < 2; ++half) {
            uint32_t lanes[kLanes];
            store(lanes, both[half]);
            std::memcpy(call.words + half * plane + at, lanes, sizeof(uint32_t) * count);
        }
    });
}

inline void multiplier_all(const void* given, int64_t, int64_t slot) {
    const MultiplierTask& task = *static_cast<const MultiplierTask*>(given);
    const UnrolledMultiplier& call = task.call;
    for_each_place(task, slot, [&](int64_t at, int64_t count, const RandomWords& x) {
        const Mask dropped = below(low_half(x.first), all_words(call.threshold));
        store(call.multiplier + at, select(dropped, zero(), broadcast(call.scale)), static_cast<int>(count));
    });
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
