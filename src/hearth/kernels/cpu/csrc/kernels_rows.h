// Row operations: norm, gate, add, and the reductions over the vocabulary.
// Included by kernels_impl.h only.
#pragma once

namespace {

void norm(const NormArgs& a) {
  for (int row = 0; row < a.rows; row++) {
    const float* x = a.x + row * a.stride;
    float* out = a.out + row * a.stride;
    Vec sums[4] = {vzero(), vzero(), vzero(), vzero()};
    for (int64_t k = 0; k < a.padded; k += 4 * kLanes)
      unroll<4>([&](auto i) HEARTH_LAMBDA {
        Vec v = vload(x + k + i.value * kLanes);
        sums[i.value] = vfma(v, v, sums[i.value]);
      });
    float total = lane_sum(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])));
    float mean = total / static_cast<float>(a.width);
    Vec inverse = vset(1.0f / __builtin_sqrtf(mean + a.eps));
    for (int64_t k = 0; k < a.padded; k += kLanes)
      vstore(out + k, vmul(vload(a.weight + k), vmul(vload(x + k), inverse)));
  }
}

void gate(const GateArgs& a) {
  for (int row = 0; row < a.rows; row++) {
    const float* x = a.x + row * a.ldx;
    float* out = a.out + row * a.ldo;
    for (int64_t k = 0; k < a.width; k += kLanes) {
      Vec g = vload(x + k),
          up = vload(x + a.width + k);  // reads past the row's end stay in its pad
      Vec silu = vdiv(g, vadd(vset(1.0f), vexp(vsub(vzero(), g))));
      int lanes = static_cast<int>(a.width - k);
      vstore(out + k, vkeep(vmul(silu, up), vzero(), 0, lanes));
    }
  }
}

void add(float* x, const float* y, int64_t count) {
  for (int64_t k = 0; k < count; k += kLanes) vstore(x + k, vadd(vload(x + k), vload(y + k)));
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
