// Which instruction sets the library was compiled for, and which of them this processor runs.
//
// "baseline": what every processor of the target has. "avx2": AVX2 and FMA. "avx512": those, and AVX-512 F, BW, DQ, VL.
// Whoever runs one runs those before it.
#pragma once

#include "unrolled.h"

namespace unrolled {

// The best that this processor runs and the library has.
const char* best_instruction_set();

// Whether this processor runs the set of that name and the library has it; false for an unknown name.
bool has_instruction_set(const char* name);

// Instructions beyond "avx512"; false below it. `vnni` is AVX-512 VNNI, `bf16` is AVX-512 BF16.
bool has_vnni();
bool has_bf16();

}  // namespace unrolled

extern "C" {

UNROLLED_API const char* unrolled_instruction_set(void);

// All that this processor runs and the library has, best last, separated by spaces.
UNROLLED_API const char* unrolled_instruction_sets(void);

// 1 where the kernels' products are the ones to take: x86 processors on which MKL, made for Intel's, is not the fastest.
// Measured on AMD Zen 4 alone: 207 GFLOP/s, MKL 190. Intel's have MKL, and other architectures are unmeasured.
UNROLLED_API int32_t unrolled_prefers_own_products(void);

// Of "vnni" and "bf16" those that the processor runs, separated by a space; "" where it runs neither.
UNROLLED_API const char* unrolled_instruction_flags(void);
}
