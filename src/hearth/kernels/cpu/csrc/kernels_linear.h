// Linear layers: lanes are output columns, so K is reduced in order whatever the shape.
// Included by kernels_impl.h only.
#pragma once

namespace {

HEARTH_INLINE int64_t row_offset(const int64_t* offsets, int64_t stride, int row) {
  return offsets ? offsets[row] : row * stride;
}

// acc[R][V] over cols k0 … k1 of V vectors of a panel; sums so far stand in `out`.
template <int R, int V, class W>
HEARTH_INLINE void linear_tile(const LinearArgs& a, const W* weight, int column, int row,
                               int64_t k0, int64_t k1) {
  const float* x[R];
  float* out[R];
  unroll<R>([&](auto r) HEARTH_LAMBDA {
    x[r.value] = a.x + row_offset(a.x_offsets, a.ldx, row + r.value);
    out[r.value] = a.out + row_offset(a.out_offsets, a.ldo, row + r.value) + column;
  });
  const W* w = weight + column + k0 * kPanel;
  bool from_zero = k0 == 0 && !a.accumulate;
  Vec acc[R][V];
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    acc[r][v] = from_zero ? vzero() : vload(out[r] + v * kLanes);
  });
  for (int64_t k = k0; k < k1; k++, w += kPanel) {
    Vec row_of_w[V];
    unroll<V>([&](auto v) HEARTH_LAMBDA { row_of_w[v.value] = vload(w + v.value * kLanes); });
    unroll<R>([&](auto r) HEARTH_LAMBDA {
      Vec xk = vset(x[r.value][k]);
      unroll<V>([&](auto v) HEARTH_LAMBDA {
        acc[r.value][v.value] = vfma(row_of_w[v.value], xk, acc[r.value][v.value]);
      });
    });
  }
  bool add_bias = k1 == a.cols && a.bias;
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    Vec sum = acc[r][v];
    if (add_bias) sum = vadd(sum, vload(a.bias + column + v * kLanes));
    vstore(out[r] + v * kLanes, sum);
  });
}

template <int R, int V, class W>
void linear_rows(const LinearArgs& a, const W* weight, int row, int64_t k0, int64_t k1) {
  for (int column = 0; column < kPanel; column += V * kLanes)
    linear_tile<R, V, W>(a, weight, column, row, k0, k1);
}

// Rows in tiles of kLinearRows; the remainder in one smaller tile.
template <int R, class W>
void linear_remainder(const LinearArgs& a, const W* weight, int row, int64_t k0, int64_t k1) {
  if constexpr (R > 0) {
    constexpr int vectors = R <= kNarrowRows ? kNarrowVectors : kLinearVectors;
    if (a.rows - row == R) return linear_rows<R, vectors, W>(a, weight, row, k0, k1);
    linear_remainder<R - 1, W>(a, weight, row, k0, k1);
  }
}

// Columns of K that are taken at a time when there are several row tiles: 64 · 512 weights stay in
// the second-level cache while the rows go by.
constexpr int64_t kBlockK = 512;

template <class W>
void linear_panel(const LinearArgs& a) {
  const W* weight = static_cast<const W*>(a.weight);
  int64_t step = a.rows > kLinearRows ? kBlockK : a.cols;
  for (int64_t k0 = 0; k0 < a.cols; k0 += step) {
    int64_t k1 = smaller(a.cols, k0 + step);
    int row = 0;
    for (; row + kLinearRows <= a.rows; row += kLinearRows)
      linear_rows<kLinearRows, kLinearVectors, W>(a, weight, row, k0, k1);
    linear_remainder<kLinearRows - 1, W>(a, weight, row, k0, k1);
  }
}

void linear(const LinearArgs& a) {
  if (a.dtype == HEARTH_BF16) return linear_panel<uint16_t>(a);
  a.dtype == HEARTH_F16 ? linear_panel<hearth::Half>(a) : linear_panel<float>(a);
}

}  // namespace
