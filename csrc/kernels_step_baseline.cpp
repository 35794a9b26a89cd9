#define UNROLLED_ISA baseline

#include "step_int8.h"
#include "steps.h"

namespace unrolled {

const StepKernels kStepBaseline{UNROLLED_ISA::step_kernel<UNROLLED_ISA::FloatFormat<UNROLLED_ISA::Float32>>(),
                                UNROLLED_ISA::step_kernel<UNROLLED_ISA::FloatFormat<UNROLLED_ISA::BFloat16>>(),
                                UNROLLED_ISA::step_kernel<UNROLLED_ISA::Int8Format>()};

}  // namespace unrolled
