// The kernels compiled for avx512.
#if !defined(HEARTH_ONLY_GENERIC)
#include "kernels_impl.h"
#include "vec_avx512.h"

namespace hearth {
extern const Kernels kKernelsAvx512;
const Kernels kKernelsAvx512 = {"avx512", linear, norm,    gate,   attend,
                                kv_write, add,    maximum, exp_sum};
}  // namespace hearth
#endif
