#include "unrolled.h"

// What the library was made from; set by the build.
#ifndef UNROLLED_SOURCES
#define UNROLLED_SOURCES ""
#endif

extern "C" {

int32_t unrolled_abi_version(void) { return UNROLLED_ABI_VERSION; }

UNROLLED_API const char* unrolled_sources(void) { return UNROLLED_SOURCES; }
}
