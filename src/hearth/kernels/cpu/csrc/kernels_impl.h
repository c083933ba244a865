// The kernels, written once over the vector layer of the including translation unit.
//
// Everything is in an unnamed namespace and uses no inline function of the standard library: a
// copy of it compiled for AVX-512 must never be the one that the linker keeps for all.
// Included by isa_*.cpp, which define HEARTH_VECTOR_LAYER.
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "quant.h"
#include HEARTH_VECTOR_LAYER

namespace {

using hearth::AttendArgs;
using hearth::FitArgs;
using hearth::GateArgs;
using hearth::HeadNormArgs;
using hearth::kKeyGroup;
using hearth::kPanel;
using hearth::kSegment;
using hearth::kTile;
using hearth::KvWriteArgs;
using hearth::LinearArgs;
using hearth::NormArgs;
using hearth::QuantizeArgs;
using hearth::QuantLinearArgs;

#define HEARTH_INLINE inline __attribute__((always_inline))
#define HEARTH_LAMBDA __attribute__((always_inline))

constexpr float kMinusInfinity = -__builtin_inff();

template <int N>
struct Index {
  static constexpr int value = N;
};

// Calls f(Index<0>) … f(Index<N−1>) without a loop, so that arrays of vectors stay in registers.
template <int N, class F>
HEARTH_INLINE void unroll(F&& f) {
  if constexpr (N > 0) {
    unroll<N - 1>(f);
    f(Index<N - 1>{});
  }
}

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// x = n · ln 2 + r, |r| < 0.35.
struct ExpParts {
  Vec n, r;
};
HEARTH_INLINE ExpParts reduce_exponent(Vec x) {
  Vec n = vround(vmul(x, vset(1.44269504088896341f)));
  Vec r = vfma(n, vset(-0.693359375f), x);
  return {n, vfma(n, vset(2.12194440e-4f), r)};
}
// (e^r − 1 − r) / r² for |r| < 0.35 (Cephes expf).
HEARTH_INLINE Vec exp_polynomial(Vec r) {
  Vec p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  return vfma(p, r, vset(5.0000001201e-1f));
}

// e^x for x in [−87, 88], 0 below and e^88 above; relative error below 2e-7.
HEARTH_INLINE Vec vexp(Vec x) {
  auto [n, r] = reduce_exponent(vmin(vmax(x, vset(-87.0f)), vset(88.0f)));
  Vec p = vfma(vmul(r, r), exp_polynomial(r), vadd(r, vset(1.0f)));
  return vless(x, vset(-87.0f), vzero(), vmul(p, vpow2(n)));
}
// tanh x = e / (e + 2), e = e^(2x) − 1 without cancellation: relative error below 4e-7 everywhere.
// The operands of minimum and maximum stand so that NaN, as the second one, stays NaN.
HEARTH_INLINE Vec vtanh(Vec x) {
  Vec clamped = vmin(vset(9.5f), vmax(vset(-9.5f), x));
  auto [n, r] = reduce_exponent(vmul(clamped, vset(2.0f)));
  Vec power = vpow2(n), small = vfma(vmul(r, r), exp_polynomial(r), r);
  Vec e = vfma(small, power, vsub(power, vset(1.0f)));
  return vdiv(e, vadd(e, vset(2.0f)));
}
HEARTH_INLINE Vec capped(Vec x, float cap) {
  return vmul(vtanh(vdiv(x, vset(cap))), vset(cap));
}

constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x ≤ 127, 2^−126 below −126; relative error below 2e-7, and none where x is an integer.
// Since it is 2^n times a polynomial of x − n, adding an integer to x changes the exponent alone.
// NaN stays NaN. Coefficients: least largest relative error for |x − n| ≤ 1/2.
HEARTH_INLINE Vec vexp2(Vec x) {
  x = vmax(vset(-126.0f), x);
  Vec n = vround(x), f = vsub(x, n);
  Vec p = vset(1.3264727e-3f);
  p = vfma(p, f, vset(9.6715127e-3f));
  p = vfma(p, f, vset(5.5507337e-2f));
  p = vfma(p, f, vset(2.4022242e-1f));
  p = vfma(p, f, vset(6.9314698e-1f));
  return vmul(vfma(p, f, vset(1.0f)), vpow2(n));
}
inline float first_lane(Vec v) {
  float lanes[kLanes];
  vstore(lanes, v);
  return lanes[0];
}
inline float exp2_scalar(float x) {
  return first_lane(vexp2(vset(x)));
}
inline float round_scalar(float x) {
  return first_lane(vround(vset(x)));
}

}  // namespace

#include "kernels_fit.h"
#include "kernels_fp8.h"
#include "kernels_linear.h"
#include "kernels_quant.h"
#include "kernels_rows.h"
#include "kernels_segments.h"
