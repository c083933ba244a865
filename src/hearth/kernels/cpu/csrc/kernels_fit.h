// Quantization of weights: codes and a scale for one group of one row, by round-to-nearest with a
// search. Included by kernels_impl.h only.
#pragma once
#include "kernels_kv.h"

namespace {

// Scales are bfloat16: the range of float, so that no weight is too small or too large for them,
// and what their 8 bits lose is not lost, since codes are made with the scale that is stored.
inline float of_bf16(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// A group whose values are all smaller is zero: their inverse would leave the range of float.
constexpr float kLeast = 1e-35f;

// Codes of a group are clamp(round(x · inverse), low, high): what they are worth.
struct Fit {
  float inverse, low, high;
  float products, squares;  // Σ x · code, Σ code²
};

HEARTH_INLINE Vec code_of(Vec x, const Fit& f) {
  return vmin(vmax(vround(vmul(x, vset(f.inverse))), vset(f.low)), vset(f.high));
}

inline void weigh(const FitArgs& a, Fit& f) {
  Vec products = vzero(), squares = vzero();
  for (int k = 0; k < a.count; k += kLanes) {
    Vec x = vload(a.x + k), code = code_of(x, f);
    products = vfma(x, code, products);
    squares = vfma(code, code, squares);
  }
  f.products = lane_sum(products);
  f.squares = lane_sum(squares);
}

// With the best scale for its codes, products / squares, a fit leaves Σ x² − products² / squares.
inline bool is_better(const Fit& a, const Fit& b) {
  return a.products * a.products * b.squares > b.products * b.products * a.squares;
}

// `scale` is one that bfloat16 holds.
inline void write_codes(FitArgs& a, Fit f, float scale, int zero) {
  a.scale = to_bf16(scale);
  a.zero = static_cast<uint8_t>(zero);
  for (int k = 0; k < a.count; k += kLanes) {
    float values[kLanes];
    vstore(values, vadd(code_of(vload(a.x + k), f), vset(static_cast<float>(zero))));
    for (int i = 0; i < kLanes; i++)
      a.codes[k + i] = static_cast<uint8_t>(static_cast<int32_t>(values[i]));
  }
}

inline Vec smallest_and_largest(const FitArgs& a, float& smallest, float& largest) {
  Vec low = vzero(), high = vzero(), check = vzero();
  for (int k = 0; k < a.count; k += kLanes) {
    Vec x = vload(a.x + k);
    low = vmin(low, x);
    high = vmax(high, x);
    check = vfma(x, vzero(), check);
  }
  largest = lane_max(high);
  smallest = -lane_max(vsub(vzero(), low));
  return check;
}

// Symmetric: the value of largest magnitude gets the code −8, the one of the longer side; scales
// around it are tried. 8-bit codes use ±127, so that no search is worth its time.
inline void fit_symmetric(FitArgs& a, float smallest, float largest) {
  float most = -smallest > largest ? smallest : largest;
  float magnitude = most < 0.0f ? -most : most;
  int middle = hearth::middle_code(a.bits);
  if (magnitude < kLeast) return write_codes(a, {0, 0, 0, 0, 1}, 0.0f, middle);
  if (a.bits == 8) {
    float scale = of_bf16(to_bf16(magnitude / 127.0f));
    return write_codes(a, {1.0f / scale, -127, 127, 0, 1}, scale, middle);
  }
  Fit best{-8.0f / most, -8, 7, 0, 0};
  weigh(a, best);
  for (int i = 1; i <= a.candidates; i++) {
    float step = 0.25f * static_cast<float>((i + 1) / 2);
    Fit fit{-(i % 2 ? 8.0f + step : 8.0f - step) / most, -8, 7, 0, 0};
    weigh(a, fit);
    if (is_better(fit, best)) best = fit;
  }
  float scale = of_bf16(to_bf16(best.products / best.squares));
  best.inverse = 1.0f / scale;
  write_codes(a, best, scale, middle);
}

// With a zero point: the range of the values, then narrower ones, each with its squared error.
inline void fit_with_zero(FitArgs& a, float smallest, float largest) {
  float levels = a.bits == 4 ? 15.0f : 255.0f, least = 0.0f;
  Fit best{0, 0, 0, 0, 1};
  float best_scale = 0.0f, best_zero = 0.0f;
  for (int i = 0; i <= a.candidates && largest - smallest >= kLeast; i++) {
    float shrink = 1.0f - 0.02f * static_cast<float>(i);
    float scale = of_bf16(to_bf16((largest - smallest) * shrink / levels));
    float lanes[kLanes];
    vstore(lanes, vround(vset(-smallest * shrink / scale)));
    float zero = lanes[0];
    Fit fit{1.0f / scale, -zero, levels - zero, 0, 0};
    Vec squares = vzero();
    for (int k = 0; k < a.count; k += kLanes) {
      Vec x = vload(a.x + k), error = vfma(code_of(x, fit), vset(-scale), x);
      squares = vfma(error, error, squares);
    }
    float error = lane_sum(squares);
    if (i == 0 || error < least) {
      least = error;
      best = fit;
      best_scale = scale;
      best_zero = zero;
    }
  }
  write_codes(a, best, best_scale, static_cast<int>(best_zero));
}

// FP8: the largest magnitude becomes 448. Steps are relative to a value's own size but for the
// smallest, so that no search is worth its time.
inline void fit_e4m3(FitArgs& a, float smallest, float largest) {
  float most = -smallest > largest ? -smallest : largest;
  float scale = most < kLeast ? 0.0f : of_bf16(to_bf16(most / 448.0f));
  a.scale = to_bf16(scale);
  a.zero = 0;
  for (int k = 0; k < a.count; k += kLanes) {
    float values[kLanes];
    Vec x = scale > 0.0f ? vdiv(vload(a.x + k), vset(scale)) : vzero();
    vstore(values, vmin(vmax(x, vset(-448.0f)), vset(448.0f)));
    for (int i = 0; i < kLanes; i++) a.codes[k + i] = to_e4m3(values[i]);
  }
}

void fit(FitArgs& a) {
  float smallest, largest;
  float finite = lane_sum(smallest_and_largest(a, smallest, largest));
  a.is_finite = finite == 0.0f;
  if (!a.is_finite) return;
  if (a.fp8)
    fit_e4m3(a, smallest, largest);
  else if (a.zeros)
    fit_with_zero(a, smallest, largest);
  else
    fit_symmetric(a, smallest, largest);
}

}  // namespace
