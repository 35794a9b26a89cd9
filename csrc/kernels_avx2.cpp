#define UNROLLED_ISA avx2

#include "backward.h"
#include "elementwise.h"
#include "forward.h"
#include "product.h"
#include "threefry.h"
#include "weight_gradient.h"

namespace unrolled {

const Kernels kAvx2{UNROLLED_ISA::kLanes,
                    {UNROLLED_ISA::forward<kKernelsFor[0]>,
                     UNROLLED_ISA::forward<kKernelsFor[1]>,
                     UNROLLED_ISA::forward<kKernelsFor[2]>,
                     UNROLLED_ISA::forward<kKernelsFor[3]>,
                     UNROLLED_ISA::forward<kKernelsFor[4]>},
                    {UNROLLED_ISA::backward<kKernelsFor[0]>,
                     UNROLLED_ISA::backward<kKernelsFor[1]>,
                     UNROLLED_ISA::backward<kKernelsFor[2]>,
                     UNROLLED_ISA::backward<kKernelsFor[3]>,
                     UNROLLED_ISA::backward<kKernelsFor[4]>},
                    UNROLLED_ISA::product,
                    UNROLLED_ISA::weight_gradient,
                    UNROLLED_ISA::random_words_all,
                    UNROLLED_ISA::multiplier_all,
                    UNROLLED_ISA::sigmoid_all,
                    UNROLLED_ISA::tanh_all};

}  // namespace unrolled
