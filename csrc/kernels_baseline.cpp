#define UNROLLED_ISA baseline

#include "backward.h"
#include "elementwise.h"
#include "forward.h"
#include "product.h"
#include "threefry.h"
#include "weight_gradient.h"

namespace unrolled {

// Two for all sets of options: without vector instructions, code that fits the cache gains little.
const Kernels kBaseline{UNROLLED_ISA::kLanes,
                        {UNROLLED_ISA::forward<0>,
                         UNROLLED_ISA::forward<kEverything>,
                         UNROLLED_ISA::forward<kEverything>,
                         UNROLLED_ISA::forward<kEverything>,
                         UNROLLED_ISA::forward<kEverything>},
                        {UNROLLED_ISA::backward<0>,
                         UNROLLED_ISA::backward<kEverything>,
                         UNROLLED_ISA::backward<kEverything>,
                         UNROLLED_ISA::backward<kEverything>,
                         UNROLLED_ISA::backward<kEverything>},
                        UNROLLED_ISA::product,
                        UNROLLED_ISA::weight_gradient,
                        UNROLLED_ISA::random_words_all,
                        UNROLLED_ISA::multiplier_all,
                        UNROLLED_ISA::sigmoid_all,
                        UNROLLED_ISA::tanh_all};

}  // namespace unrolled
