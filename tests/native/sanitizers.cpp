// What the sanitizers are asked for: their libraries call these functions when the process starts.
//
// Not AddressSanitizer's detect_stack_use_after_return: GCC 12 then puts variables that want 64 bytes of alignment
// where there are 32, and AVX-512 code faults.
extern "C" {

__attribute__((used, visibility("default"))) const char* __ubsan_default_options() { return "print_stacktrace=1"; }

// The first race ends the process: those behind it tend to be the same one.
__attribute__((used, visibility("default"))) const char* __tsan_default_options() { return "halt_on_error=1"; }
}
