// Row operations: norms, gate, add, soft cap, and the reductions over the vocabulary.
// Included by kernels_impl.h only.
#pragma once

namespace {

// Σ (x − mean)² over a row's own values; those of its pad are zero and count where mean is 0.
inline float squares_of(const NormArgs& a, const float* x, Vec mean) {
  Vec sums[4] = {vzero(), vzero(), vzero(), vzero()};
  for (int64_t k = 0; k < a.padded; k += 4 * kLanes)
    unroll<4>([&](auto i) HEARTH_LAMBDA {
      int64_t first = k + i.value * kLanes;
      Vec v = vload(x + first);
      if (a.centered) {
        int own = static_cast<int>(smaller(kLanes, larger(0, a.width - first)));
        v = vkeep(vsub(v, mean), vzero(), 0, own);
      }
      sums[i.value] = vfma(v, v, sums[i.value]);
    });
  return lane_sum(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])));
}

// x and out may be the same row.
void norm(const NormArgs& a) {
  auto width = static_cast<float>(a.width);
  for (int row = 0; row < a.rows; row++) {
    const float* x = a.x + row * a.stride;
    float* out = a.out + row * a.stride;
    Vec mean = vzero();
    if (a.centered) {
      for (int64_t k = 0; k < a.padded; k += kLanes) mean = vadd(mean, vload(x + k));
      mean = vset(lane_sum(mean) / width);
    }
    Vec inverse = vset(1.0f / __builtin_sqrtf(squares_of(a, x, mean) / width + a.eps));
    for (int64_t k = 0; k < a.padded; k += kLanes) {
      Vec v = vload(x + k);
      if (a.centered) v = vsub(v, mean);
      v = vmul(vload(a.weight + k), vmul(v, inverse));
      vstore(out + k, a.bias ? vadd(v, vload(a.bias + k)) : v);
    }
  }
}

// The first `lanes` of p, the others 0; a head's last elements have neighbours that are not its
// own.
HEARTH_INLINE Vec load_lanes(const float* p, int64_t lanes) {
  if (lanes >= kLanes) return vload(p);
  float part[kLanes] = {};
  memcpy(part, p, sizeof(float) * static_cast<size_t>(lanes));
  return vload(part);
}
HEARTH_INLINE void store_lanes(float* p, Vec v, int64_t lanes) {
  if (lanes >= kLanes) return vstore(p, v);
  float part[kLanes];
  vstore(part, v);
  memcpy(p, part, sizeof(float) * static_cast<size_t>(lanes));
}

void head_norm(const HeadNormArgs& a) {
  for (int head = 0; head < a.heads; head++) {
    float* x = a.x + static_cast<int64_t>(head) * a.head_dim;
    Vec sum = vzero();
    for (int64_t k = 0; k < a.head_dim; k += kLanes) {
      Vec v = load_lanes(x + k, a.head_dim - k);
      sum = vfma(v, v, sum);
    }
    float mean = lane_sum(sum) / static_cast<float>(a.head_dim);
    Vec inverse = vset(1.0f / __builtin_sqrtf(mean + a.eps));
    for (int64_t k = 0; k < a.head_dim; k += kLanes) {
      Vec scaled = vmul(load_lanes(x + k, a.head_dim - k), inverse);
      store_lanes(x + k, vmul(vload(a.weight + k), scaled), a.head_dim - k);
    }
  }
}

// erfc(z) for z ≥ 0, relative error below 2e-7 but for the rounding of z² (a Chebyshev fit: Press
// et al., Numerical Recipes, 6.2).
HEARTH_INLINE Vec verfc(Vec z) {
  Vec t = vdiv(vset(1.0f), vfma(vset(0.5f), z, vset(1.0f)));
  Vec p = vset(0.17087277f);
  p = vfma(p, t, vset(-0.82215223f));
  p = vfma(p, t, vset(1.48851587f));
  p = vfma(p, t, vset(-1.13520398f));
  p = vfma(p, t, vset(0.27886807f));
  p = vfma(p, t, vset(-0.18628806f));
  p = vfma(p, t, vset(0.09678418f));
  p = vfma(p, t, vset(0.37409196f));
  p = vfma(p, t, vset(1.00002368f));
  p = vfma(p, t, vset(-1.26551223f));
  return vmul(t, vexp(vsub(p, vmul(z, z))));
}

// x · sigmoid(z): SiLU with z = x, quick GELU with z = 1.702 x, the tanh form of GELU with
// z = √(8/π) (x + 0.044715 x³). GELU itself: x · erfc(−x / √2) / 2.
HEARTH_INLINE Vec activated(Vec x, int kind) {
  if (kind == HEARTH_ACT_GELU) {
    Vec size = vmax(x, vsub(vzero(), x));
    Vec lower = vmul(vmul(x, vset(0.5f)), verfc(vmul(size, vset(0.70710678118654752f))));
    return vless(x, vzero(), lower, vsub(x, lower));
  }
  Vec z = x;
  if (kind == HEARTH_ACT_QUICK_GELU) z = vmul(x, vset(1.702f));
  if (kind == HEARTH_ACT_GELU_TANH) {
    Vec cubic = vfma(vmul(vmul(x, x), x), vset(0.044715f), x);
    z = vmul(cubic, vset(1.5957691216057308f));
  }
  return vdiv(x, vadd(vset(1.0f), vexp(vsub(vzero(), z))));
}

void activate(float* x, int64_t count, int activation) {
  for (int64_t k = 0; k < count; k += kLanes) vstore(x + k, activated(vload(x + k), activation));
}

void add_scaled(float* x, const float* y, float weight, int64_t count) {
  for (int64_t k = 0; k < count; k += kLanes)
    vstore(x + k, vfma(vload(y + k), vset(weight), vload(x + k)));
}

void gate(const GateArgs& a) {
  for (int row = 0; row < a.rows; row++) {
    const float* x = a.x + row * a.ldx;
    float* out = a.out + row * a.ldo;
    for (int64_t k = 0; k < a.width; k += kLanes) {
      Vec g = vload(x + k),
          up = vload(x + a.width + k);  // reads past the row's end stay in its pad
      int lanes = static_cast<int>(a.width - k);
      vstore(out + k, vkeep(vmul(activated(g, a.activation), up), vzero(), 0, lanes));
    }
  }
}

void add(float* x, const float* y, int64_t count) {
  for (int64_t k = 0; k < count; k += kLanes) vstore(x + k, vadd(vload(x + k), vload(y + k)));
}

void soft_cap(float* x, float cap, int64_t count) {
  for (int64_t k = 0; k < count; k += kLanes) vstore(x + k, capped(vload(x + k), cap));
}

float maximum(const float* x, int64_t count) {
  Vec most = vset(kMinusInfinity);
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) most = vmax(most, vload(x + k));
  float result = lane_max(most);
  for (; k < count; k++) result = x[k] > result ? x[k] : result;  // exact whatever the order
  return result;
}

// `x` and `out` may be read and written to the next multiple of 16.
double exp_sum(const float* x, int64_t count, float most, float inv_temperature, float* out) {
  double total = 0.0;
  for (int64_t chunk = 0; chunk < count; chunk += 1024) {
    Vec sum = vzero();
    int64_t end = smaller(count, chunk + 1024);
    for (int64_t k = chunk; k < end; k += kLanes) {
      Vec z = vmul(vsub(vload(x + k), vset(most)), vset(inv_temperature));
      Vec e = vkeep(vexp(z), vzero(), 0, static_cast<int>(smaller(kLanes, end - k)));
      if (out) vstore(out + k, e);
      sum = vadd(sum, e);
    }
    total += static_cast<double>(lane_sum(sum));
  }
  return total;
}

}  // namespace
