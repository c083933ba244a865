// The kernels compiled for generic.

#include "kernels_impl.h"
#include "vec_generic.h"

namespace hearth {
extern const Kernels kKernelsGeneric;
const Kernels kKernelsGeneric = {"generic", linear, norm,    gate,   attend,
                                 kv_write,  add,    maximum, exp_sum};
}  // namespace hearth
