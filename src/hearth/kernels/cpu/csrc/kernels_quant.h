// Linear layers on quantized weights, and the quantization of rows and weights.
//
// Codes are multiplied as integers, exactly, group by group; the groups are added as floats in the
// order of K. So neither the tile a row is in nor the way codes are unpacked changes a bit.
// Included by kernels_impl.h only.
#pragma once

namespace {

using hearth::code_offset;
using hearth::kUnpackBytes;

// What the rows of a tile share.
struct QuantPanel {
  const QuantLinearArgs& a;
  int64_t groups, head_bytes, block_bytes;
  int middle;

  explicit QuantPanel(const QuantLinearArgs& args) : a(args) {
    groups = hearth::num_groups(a.cols, a.group);
    head_bytes = kPanel * (hearth::kScaleBytes + (a.zeros ? 1 : 0));
    block_bytes = head_bytes + int64_t{a.group} * kPanel * a.bits / 8;
    middle = hearth::middle_code(a.bits);
  }
  const uint8_t* block(int64_t group) const { return a.panel + group * block_bytes; }
  const int8_t* row(int r) const { return reinterpret_cast<const int8_t*>(a.x + r * a.ldx); }
  float row_scale(int r, int64_t group) const {
    float scale;
    memcpy(&scale, row(r) + groups * a.group + group * 4, 4);
    return scale;
  }
  int32_t row_sum(int r, int64_t group) const {
    int32_t sum;
    memcpy(&sum, row(r) + groups * (a.group + 4) + group * 4, 4);
    return sum;
  }
};

HEARTH_INLINE Int four_values(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return iset(word);
}

// −zero · sum: the integer that the products of a group start from.
template <int V>
HEARTH_INLINE Int first_sum(const QuantPanel& p, const uint8_t* block, int column, int v,
                            int32_t row_sum) {
  if (!p.a.zeros) return iset(-p.middle * row_sum);
  const uint8_t* zeros = block + kPanel * hearth::kScaleBytes + column + v * kLanes;
  return imul(iload_bytes(zeros), iset(-row_sum));
}

// Adds one group to R rows of V vectors of outputs. PACKED: two 4-bit codes a byte, else bytes;
// BITS bounds their values.
template <int R, int V, bool PACKED, int BITS>
HEARTH_INLINE void quant_tile(const QuantPanel& p, int64_t group, const uint8_t* codes, int column,
                              int row) {
  const QuantLinearArgs& a = p.a;
  const uint8_t* block = p.block(group);
  Int acc[R][V];
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    acc[r][v] = first_sum<V>(p, block, column, v, p.row_sum(row + r, group));
  });
  const int8_t* x = p.row(row) + group * a.group;
  const uint8_t* w = codes + column * 4;
  constexpr int step = PACKED ? 8 : 4;
  for (int k = 0; k < a.group; k += step, w += kPanel * 4) {
    Int low[V], high[V];
    unroll<V>([&](auto v) HEARTH_LAMBDA {
      Int bytes = iload(w + v.value * kLanes * 4);
      low[v.value] = PACKED ? low_codes(bytes) : bytes;
      if constexpr (PACKED) high[v.value] = high_codes(bytes);
    });
    unroll<R>([&](auto r) HEARTH_LAMBDA {
      Int values = four_values(x + r.value * a.ldx + k);
      unroll<V>([&](auto v) HEARTH_LAMBDA {
        acc[r.value][v.value] = idot<BITS>(acc[r.value][v.value], low[v.value], values);
      });
    });
    if constexpr (PACKED) {
      unroll<R>([&](auto r) HEARTH_LAMBDA {
        Int values = four_values(x + r.value * a.ldx + k + 4);
        unroll<V>([&](auto v) HEARTH_LAMBDA {
          acc[r.value][v.value] = idot<BITS>(acc[r.value][v.value], high[v.value], values);
        });
      });
    }
  }
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(block) + column;
  unroll<V>([&](auto v) HEARTH_LAMBDA {
    Vec scale = vload(scales + v.value * kLanes);
    unroll<R>([&](auto r) HEARTH_LAMBDA {
      float* out = a.out + (row + r.value) * a.ldo + column + v.value * kLanes;
      Vec factor = vmul(scale, vset(p.row_scale(row + r.value, group)));
      Vec sum = group == 0 ? vzero() : vload(out);
      vstore(out, vfma(vfloat(acc[r.value][v.value]), factor, sum));
    });
  });
}

template <int R, int V, bool PACKED, int BITS>
void quant_rows(const QuantPanel& p, int64_t group, const uint8_t* codes, int row) {
  for (int column = 0; column < kPanel; column += V * kLanes)
    quant_tile<R, V, PACKED, BITS>(p, group, codes, column, row);
}

template <int R, bool PACKED, int BITS>
void quant_remainder(const QuantPanel& p, int64_t group, const uint8_t* codes, int row) {
  if constexpr (R > 0) {
    if (p.a.rows - row == R)
      return quant_rows<R, kLinearVectors, PACKED, BITS>(p, group, codes, row);
    quant_remainder<R - 1, PACKED, BITS>(p, group, codes, row);
  }
}

inline void unpack_codes(const uint8_t* codes, int group, uint8_t* out) {
  for (int k = 0; k < group; k += 8, codes += kPanel * 4, out += 2 * kPanel * 4)
    for (int byte = 0; byte < kPanel * 4; byte += kLanes * 4) {
      Int v = iload(codes + byte);
      istore(out + byte, low_codes(v));
      istore(out + kPanel * 4 + byte, high_codes(v));
    }
}

inline void add_bias(const QuantLinearArgs& a) {
  if (!a.bias) return;
  for (int r = 0; r < a.rows; r++)
    for (int column = 0; column < kPanel; column += kLanes) {
      float* out = a.out + r * a.ldo + column;
      vstore(out, vadd(vload(out), vload(a.bias + column)));
    }
}

// Few rows: codes are unpacked in registers. Many: some groups at a time into the cache, then all
// row tiles go over them.
void quant_linear(const QuantLinearArgs& a) {
  QuantPanel p(a);
  if (a.rows <= kLinearRows) {
    for (int64_t group = 0; group < p.groups; group++) {
      const uint8_t* codes = p.block(group) + p.head_bytes;
      if (a.bits == 4)
        quant_remainder<kLinearRows, true, 4>(p, group, codes, 0);
      else
        quant_remainder<kLinearRows, false, 8>(p, group, codes, 0);
    }
    return add_bias(a);
  }
  int64_t unpacked_bytes = int64_t{a.group} * kPanel;
  int64_t step = larger(1, kUnpackBytes / 2 / unpacked_bytes);
  for (int64_t first = 0; first < p.groups; first += step) {
    int64_t last = smaller(p.groups, first + step);
    if (a.bits == 4)
      for (int64_t g = first; g < last; g++)
        unpack_codes(p.block(g) + p.head_bytes, a.group, a.scratch + (g - first) * unpacked_bytes);
    for (int row = 0; row < a.rows; row += kLinearRows)
      for (int64_t g = first; g < last; g++) {
        const uint8_t* codes =
            a.bits == 4 ? a.scratch + (g - first) * unpacked_bytes : p.block(g) + p.head_bytes;
        bool is_whole = a.rows - row >= kLinearRows;
        if (a.bits == 4 && is_whole)
          quant_rows<kLinearRows, kLinearVectors, false, 4>(p, g, codes, row);
        else if (a.bits == 4)
          quant_remainder<kLinearRows - 1, false, 4>(p, g, codes, row);
        else if (is_whole)
          quant_rows<kLinearRows, kLinearVectors, false, 8>(p, g, codes, row);
        else
          quant_remainder<kLinearRows - 1, false, 8>(p, g, codes, row);
      }
  }
  add_bias(a);
}

// The exact mode: float rows. Each group's products are summed in the order of K, then scaled.
template <int R, int V>
HEARTH_INLINE void exact_tile(const QuantPanel& p, int64_t group, int column, int row) {
  const QuantLinearArgs& a = p.a;
  const uint8_t* block = p.block(group);
  Vec acc[R][V], zero[V];
  unroll<V>([&](auto v) HEARTH_LAMBDA {
    const uint8_t* zeros = block + kPanel * hearth::kScaleBytes + column + v.value * kLanes;
    zero[v.value] = a.zeros ? vfloat(iload_bytes(zeros)) : vset(static_cast<float>(p.middle));
  });
  unroll<R * V>([&](auto i) HEARTH_LAMBDA { acc[i.value / V][i.value % V] = vzero(); });
  const char* x = a.x + row * a.ldx + group * a.group * 4;
  const uint8_t* w = block + p.head_bytes + column * 4;
  int64_t end = smaller(a.group, a.cols - group * a.group);
  int mask = a.bits == 4 ? 15 : 255, a_word = 32 / a.bits;
  for (int64_t k0 = 0; k0 < end; k0 += a_word, w += kPanel * 4)
    for (int j = 0; j < a_word && k0 + j < end; j++) {
      int shift = a.bits == 8 ? 8 * j : 8 * (j % 4) + 4 * (j / 4);
      unroll<V>([&](auto v) HEARTH_LAMBDA {
        Vec value =
            vsub(vfloat(ibits(iload(w + v.value * kLanes * 4), shift, mask)), zero[v.value]);
        unroll<R>([&](auto r) HEARTH_LAMBDA {
          float xk;
          memcpy(&xk, x + r.value * a.ldx + (k0 + j) * 4, 4);
          acc[r.value][v.value] = vfma(value, vset(xk), acc[r.value][v.value]);
        });
      });
    }
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(block) + column;
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    float* out = a.out + (row + r) * a.ldo + column + v * kLanes;
    Vec sum = group == 0 ? vzero() : vload(out);
    vstore(out, vfma(acc[r][v], vload(scales + v * kLanes), sum));
  });
}

template <int R>
void exact_rows(const QuantPanel& p, int64_t group, int row) {
  for (int column = 0; column < kPanel; column += kLinearVectors * kLanes)
    exact_tile<R, kLinearVectors>(p, group, column, row);
}

template <int R>
void exact_remainder(const QuantPanel& p, int64_t group, int row) {
  if constexpr (R > 0) {
    if (p.a.rows - row == R) return exact_rows<R>(p, group, row);
    exact_remainder<R - 1>(p, group, row);
  }
}

void quant_linear_exact(const QuantLinearArgs& a) {
  QuantPanel p(a);
  constexpr int tile = kLinearRows > 4 ? 4 : kLinearRows;
  for (int64_t group = 0; group < p.groups; group++) {
    int row = 0;
    for (; row + tile <= a.rows; row += tile) exact_rows<tile>(p, group, row);
    exact_remainder<tile - 1>(p, group, row);
  }
  add_bias(a);
}

// One row to int8, each group by its own largest magnitude. A value that is not finite makes the
// group's scale NaN, so that every output that reads it is NaN too.
void quantize(const QuantizeArgs& a) {
  int64_t groups = hearth::num_groups(a.cols, a.group);
  auto* codes = reinterpret_cast<int8_t*>(a.out);
  for (int64_t g = 0; g < groups; g++, codes += a.group) {
    const float* x = a.x + g * a.group;
    int64_t end = smaller(a.group, a.cols - g * a.group);
    Vec most = vzero(), check = vzero();
    for (int64_t k = 0; k < end; k += kLanes) {
      Vec v = vkeep(vload(x + k), vzero(), 0, static_cast<int>(smaller(kLanes, end - k)));
      most = vmax(most, vmax(v, vsub(vzero(), v)));
      check = vfma(v, vzero(), check);  // NaN for NaN and for infinity
    }
    float largest = lane_max(most), finite = lane_sum(check);
    float scale = largest / 127.0f, inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    bool is_usable = finite == 0.0f && inverse < 3.0e38f;  // subnormal rows count as zero
    Vec factor = vset(is_usable ? inverse : 0.0f);
    if (finite != 0.0f) scale = __builtin_nanf("");
    Int sums = izero();
    for (int64_t k = 0; k < a.group; k += kLanes) {
      Vec v = k < end && is_usable
                  ? vkeep(vload(x + k), vzero(), 0, static_cast<int>(smaller(kLanes, end - k)))
                  : vzero();
      sums = iadd(sums, istore_bytes(codes + k, vmul(v, factor)));
    }
    int32_t lanes[kLanes], sum = 0;
    istore(lanes, sums);
    for (int i = 0; i < kLanes; i++) sum += lanes[i];
    memcpy(a.out + hearth::row_scales_offset(a.cols, a.group) + g * 4, &scale, 4);
    memcpy(a.out + hearth::row_sums_offset(a.cols, a.group) + g * 4, &sum, 4);
  }
}

}  // namespace
