// The kernels compiled for avx512 with dot products of bfloat16.
#if !defined(HEARTH_ONLY_GENERIC)
#define HEARTH_VECTOR_LAYER "vec_avx512.h"
#include "kernels_impl.h"

namespace hearth {
const Kernels kKernelsAvx512Bf16 = {"avx512_bf16", linear,   quant_linear, quant_linear_exact,
                                    quantize,      fit,      norm,         head_norm,
                                    gate,          attend,   attend_merge, kv_write,
                                    add,           activate, add_scaled,   soft_cap,
                                    maximum,       exp_sum};
}  // namespace hearth
#endif
