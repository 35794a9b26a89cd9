#define UNROLLED_ISA baseline

#include "backward.h"
#include "elementwise.h"
#include "forward.h"
#include "product.h"
#include "threefry.h"
#include "weight_gradient.h"

namespace unrolled {

const Kernels kBaseline{UNROLLED_ISA::kLanes,
                        UNROLLED_ISA::forward<true>,
                        UNROLLED_ISA::backward<true>,
                        UNROLLED_ISA::forward<false>,
                        UNROLLED_ISA::backward<false>,
                        UNROLLED_ISA::product,
                        UNROLLED_ISA::weight_gradient,
                        UNROLLED_ISA::random_words_all,
                        UNROLLED_ISA::multiplier_all,
                        UNROLLED_ISA::sigmoid_all,
                        UNROLLED_ISA::tanh_all};

}  // namespace unrolled
