// The kernels compiled for generic.
#define HEARTH_VECTOR_LAYER "vec_generic.h"
#include "kernels_impl.h"

namespace hearth {
const Kernels kKernelsGeneric = {
    "generic", linear, quant_linear, quant_linear_exact, quantize, fit,      norm,       head_norm,
    gate,      attend, attend_merge, kv_write,           add,      activate, add_scaled, soft_cap,
    maximum,   exp_sum};
}  // namespace hearth
