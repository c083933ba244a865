// The kernels compiled for avx2.
#if !defined(HEARTH_ONLY_GENERIC)
#include "kernels_impl.h"
#include "vec_avx2.h"

namespace hearth {
extern const Kernels kKernelsAvx2;
const Kernels kKernelsAvx2 = {"avx2", linear, norm, gate, attend, kv_write, add, maximum, exp_sum};
}  // namespace hearth
#endif
