#define UNROLLED_ISA avx512

#include "steps.h"

namespace unrolled {

const StepKernels kStepAvx512{UNROLLED_ISA::step_kernel<UNROLLED_ISA::FloatFormat<UNROLLED_ISA::Float32>>(),
                              UNROLLED_ISA::step_kernel<UNROLLED_ISA::FloatFormat<UNROLLED_ISA::BFloat16>>(),
                              {0, nullptr, nullptr, nullptr}};

}  // namespace unrolled
