// Linear layers on weights in FP8 (e4m3) and float rows.
//
// A code becomes a float in registers, exactly; where several row tiles read a group, it is first
// written to the scratch as bfloat16, which holds it exactly, too. Each group's products are summed
// in the order of K, then scaled: no bit depends on which way a row goes.
// Included by kernels_impl.h only, behind kernels_quant.h.
#pragma once
#include "kernels_quant.h"

namespace {

// Numbers come as 1/256 of what they are, so that exponents need no addition: a scale takes it
// back. A power of two changes no bit.
constexpr float kOfE4m3 = 256.0f;

// Byte J of every lane. Its exponent and fraction are those of a float with the exponent's bias
// 112 + 15; what has the exponent 0 lacks the leading one, which is 2·x − 2^−14, the smaller of
// both there and the larger elsewhere. Six instructions with AVX-512 (two merge by vpternlogd; none
// of the sums is spilled), nine with AVX2, which are what one row takes its time for.
template <int J>
HEARTH_INLINE Vec number_of(Int codes) {
  Int high = ishift_left<24 - 8 * J>(codes);
  Vec size = vfrom_bits(imasked_or(ishift_right<4>(high), 0x07f00000, iset(112 << 23)));
  size = vmin(size, vfma(size, vset(2.0f), vset(-0x1p-14f)));
  return vfrom_bits(imasked_or(high, static_cast<int32_t>(0x80000000u), ito_bits(size)));
}

// How many rows take the codes apart for themselves rather than from the scratch.
constexpr int kDirectRows = 2;

struct Fp8Group {
  int64_t group;
  int columns;            // of K that the row has; the rest of the group are zeros
  const uint8_t* codes;   // [columns / 4][kPanel][4]
  uint16_t* numbers;      // [columns][kPanel], bfloat16
  const uint8_t* scales;  // [kPanel]
};

// acc += numbers of V vectors · value k of each of R rows.
template <int R, int V>
HEARTH_INLINE void add_products(Vec (&acc)[R][V], const Vec (&numbers)[V], const char* x,
                                int64_t ldx) {
  unroll<R>([&](auto r) HEARTH_LAMBDA {
    float xk;
    memcpy(&xk, x + r.value * ldx, 4);
    unroll<V>([&](auto v) HEARTH_LAMBDA {
      acc[r.value][v.value] = vfma(numbers[v.value], vset(xk), acc[r.value][v.value]);
    });
  });
}

template <int R, int V>
HEARTH_INLINE void from_codes(Vec (&acc)[R][V], const Fp8Group& g, int column, const char* x,
                              int64_t ldx) {
  const uint8_t* w = g.codes + column * 4;
  for (int k = 0; k < g.columns; k += 4, w += kPanel * 4) {
    Int codes[V];
    unroll<V>([&](auto v) HEARTH_LAMBDA {
      codes[v.value] = iload(w + v.value * kLanes * 4);
      __builtin_prefetch(w + v.value * kLanes * 4 + kStraightAhead, 0, kNoReuse);
    });
    unroll<4>([&](auto j) HEARTH_LAMBDA {
      if (k + j.value >= g.columns) return;
      Vec numbers[V];
      unroll<V>([&](auto v)
                    HEARTH_LAMBDA { numbers[v.value] = number_of<j.value>(codes[v.value]); });
      add_products<R, V>(acc, numbers, x + (k + j.value) * 4, ldx);
    });
  }
}

template <int R, int V>
HEARTH_INLINE void from_numbers(Vec (&acc)[R][V], const Fp8Group& g, int column, const char* x,
                                int64_t ldx) {
  const uint16_t* w = g.numbers + column;
  for (int k = 0; k < g.columns; k++, w += kPanel) {
    Vec numbers[V];
    unroll<V>([&](auto v) HEARTH_LAMBDA { numbers[v.value] = vload(w + v.value * kLanes); });
    add_products<R, V>(acc, numbers, x + k * 4, ldx);
  }
}

template <int R, int V, class SCALE>
HEARTH_INLINE void fp8_tile(const QuantLinearArgs& a, const Fp8Group& g, int column, int row) {
  Vec acc[R][V];
  unroll<R * V>([&](auto i) HEARTH_LAMBDA { acc[i.value / V][i.value % V] = vzero(); });
  const char* x = a.x + row * a.ldx + g.group * a.group * 4;
  if constexpr (R <= kDirectRows) {
    a.rows <= kDirectRows ? from_codes<R, V>(acc, g, column, x, a.ldx)
                          : from_numbers<R, V>(acc, g, column, x, a.ldx);
  } else {
    from_numbers<R, V>(acc, g, column, x, a.ldx);
  }
  const auto* scales = reinterpret_cast<const SCALE*>(g.scales) + column;
  unroll<V>([&](auto v) HEARTH_LAMBDA {
    Vec scale = vmul(vload(scales + v.value * kLanes), vset(kOfE4m3));
    unroll<R>([&](auto r) HEARTH_LAMBDA {
      float* out = a.out + (row + r.value) * a.ldo + column + v.value * kLanes;
      Vec sum = g.group == 0 ? vzero() : vload(out);
      vstore(out, vfma(acc[r.value][v.value], scale, sum));
    });
  });
}

// Rows in tiles of kLinearRows; the remainder in one smaller tile.
template <int R, class SCALE>
void fp8_rows(const QuantLinearArgs& a, const Fp8Group& g, int row, int rows) {
  if constexpr (R > 0) {
    if (rows != R) return fp8_rows<R - 1, SCALE>(a, g, row, rows);
    constexpr int vectors = R <= kNarrowRows ? kNarrowVectors : kLinearVectors;
    for (int column = 0; column < kPanel; column += vectors * kLanes)
      fp8_tile<R, vectors, SCALE>(a, g, column, row);
  }
}

inline void write_numbers(const Fp8Group& g) {
  uint16_t* out = g.numbers;
  for (int k = 0; k < g.columns; k += 4, out += 4 * kPanel)
    for (int column = 0; column < kPanel; column += kLanes) {
      Int codes = iload(g.codes + k * kPanel + column * 4);
      unroll<4>([&](auto j) HEARTH_LAMBDA {
        vstore_high(out + j.value * kPanel + column, number_of<j.value>(codes));
      });
    }
}

template <class SCALE>
void fp8_linear_of(const QuantLinearArgs& a) {
  constexpr int64_t head_bytes = kPanel * sizeof(SCALE);
  int64_t groups = hearth::num_groups(a.cols, a.group);
  int64_t block_bytes = head_bytes + int64_t{a.group} * kPanel;
  auto* numbers = reinterpret_cast<uint16_t*>(a.scratch + hearth::kQuantSumBytes);
  for (int64_t group = 0; group < groups; group++) {
    const uint8_t* block = a.panel + group * block_bytes;
    int columns = static_cast<int>(smaller(a.group, a.cols - group * a.group));
    Fp8Group g{group, columns, block + head_bytes, numbers, block};
    if (a.rows > kDirectRows) write_numbers(g);
    for (int row = 0; row < a.rows; row += kLinearRows)
      fp8_rows<kLinearRows, SCALE>(a, g, row, static_cast<int>(smaller(kLinearRows, a.rows - row)));
  }
}

void fp8_linear(const QuantLinearArgs& a) {
  a.wide ? fp8_linear_of<float>(a) : fp8_linear_of<uint16_t>(a);
  add_bias(a);
}

}  // namespace
