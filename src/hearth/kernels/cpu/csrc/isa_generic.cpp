// The kernels compiled for generic.
#define HEARTH_VECTOR_LAYER "vec_generic.h"
#include "kernels_impl.h"

namespace hearth {
const Kernels kKernelsGeneric = {"generic", linear, norm,    gate,   attend,
                                 kv_write,  add,    maximum, exp_sum};
}  // namespace hearth
