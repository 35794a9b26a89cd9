#define UNROLLED_ISA vnni
#define UNROLLED_VNNI

#include "step_int8.h"
#include "steps.h"

namespace unrolled {

const StepKernel kStepVnni = UNROLLED_ISA::step_kernel<UNROLLED_ISA::Int8Format>();

}  // namespace unrolled
