// Linear layers on quantized weights, and the quantization of rows and weights.
//
// Codes are multiplied as integers, exactly, group by group; the groups are added as floats in the
// order of K. So neither the tile a row is in nor the way codes are unpacked changes a bit.
// Included by kernels_impl.h only.
#pragma once

namespace {

using hearth::code_offset;

// What the rows of a tile share. SCALE: uint16_t (bfloat16), or float where scales
// are wide.
template <class SCALE>
struct QuantPanel {
  using Scale = SCALE;
  static constexpr int64_t scales_bytes = kPanel * sizeof(Scale);

  const QuantLinearArgs& a;
  int64_t groups, head_bytes, block_bytes, row_step;
  int middle;

  explicit QuantPanel(const QuantLinearArgs& args) : a(args) {
    groups = hearth::num_groups(a.cols, a.group);
    head_bytes = scales_bytes + (a.zeros ? kPanel : 0);
    block_bytes = head_bytes + int64_t{a.group} * kPanel * a.bits / 8;
    row_step = hearth::row_group_bytes(a.group);
    middle = hearth::middle_code(a.bits);
  }
  const uint8_t* block(int64_t group) const { return a.panel + group * block_bytes; }
  // A group of a row: its codes, and behind them its scale and minus their sum.
  const int8_t* row_group(int r, int64_t group) const {
    return reinterpret_cast<const int8_t*>(a.x + r * a.ldx + group * row_step);
  }
  const int8_t* row_scale(int r, int64_t group) const { return row_group(r, group) + a.group; }
  // Groups of residuals are numbered on behind those of the row.
  bool has_residuals(int r, int64_t group) const {
    float scale;
    memcpy(&scale, row_scale(r, groups + group), 4);
    return scale != 0.0f;
  }
  const int8_t* minus_sum(int r, int64_t group) const { return row_scale(r, group) + 4; }
};

// How far ahead of their use codes are asked for, in bytes: where one row tile goes straight
// through a panel, and where several take it or it takes several passes. The processor by itself
// asks later, and less of it the more it computes in between. Codes are used once: they need no
// place in the second-level cache, which the rows need.
constexpr int kStraightAhead = 6144, kSharedAhead = 8192;
constexpr int kNoReuse = 0;  // of __builtin_prefetch

// What is read again is not kept in a register: accumulators need them all.
HEARTH_INLINE void reload() {
  asm volatile("" ::: "memory");
}

// Four bytes in every lane.
HEARTH_INLINE Int four_values(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return iset(word);
}
HEARTH_INLINE Vec one_value(const int8_t* p) {
  float value;
  memcpy(&value, p, 4);
  return vset(value);
}

// −zero · sum: the integer that the products of a group start from.
template <int V, int BITS, class P>
HEARTH_INLINE Int first_sum(const P& p, const uint8_t* block, int column, int v, int r,
                            int64_t at) {
  Int minus_sum = four_values(p.minus_sum(r, at));
  if (!p.a.zeros) return ishift_left<BITS - 1>(minus_sum);  // the zero point is 2^(BITS − 1)
  return imul(iload_bytes(block + p.scales_bytes + column + v * kLanes), minus_sum);
}

// Where a tile takes its codes from.
enum class Codes {
  kPacked,    // the weight, two to a byte
  kUnpack,    // the same, and leaves them one to a byte for the tiles that follow
  kUnpacked,  // what such a tile left
  kBytes,     // the weight, one to a byte
};

// A row tile's place, and the groups that it adds.
struct QuantTile {
  int row, rows;
  float* sums;  // of its rows, [rows][kPanel]
  int64_t first_group, last_group;
  uint8_t* unpacked;  // of the groups, [group / 4][kPanel][4] each
};

// A group of the weight, and what of the rows is multiplied with it: their codes, or residuals.
struct Group {
  int64_t of_weight, of_rows;
};

// acc += codes of V vectors · four values of each of R rows.
template <int R, int V, int BITS>
HEARTH_INLINE void dot_rows(Int (&acc)[R][V], const Int (&codes)[V], const int8_t* x, int64_t ldx) {
  unroll<R>([&](auto r) HEARTH_LAMBDA {
    Int values = four_values(x + r.value * ldx);
    unroll<V>([&](auto v) HEARTH_LAMBDA {
      acc[r.value][v.value] = idot<BITS>(acc[r.value][v.value], codes[v.value], values);
    });
  });
}

// sums += scales of the weight and the row · the integer sums of a group. Addresses are local: the
// compiler would read them again after each store, which may have changed anything. A row without
// residuals in the group is left alone, so that those beside it change none of its bits.
template <int R, int V, bool IS_RESIDUAL, class P>
HEARTH_INLINE void add_group(const P& p, Group g, const QuantTile& t, int column,
                             const Int (&acc)[R][V]) {
  const auto* scales = reinterpret_cast<const typename P::Scale*>(p.block(g.of_weight)) + column;
  float* out = t.sums + column;
  const int8_t* row_scale = p.row_scale(t.row, g.of_rows);
  const int64_t ldx = p.a.ldx;
  unroll<V>([&](auto v) HEARTH_LAMBDA {
    Vec scale = vload(scales + v.value * kLanes);
    unroll<R>([&](auto r) HEARTH_LAMBDA {
      if (IS_RESIDUAL && !p.has_residuals(t.row + r.value, g.of_weight)) return;
      float* to = out + r.value * kPanel + v.value * kLanes;
      Vec factor = vmul(scale, one_value(row_scale + r.value * ldx));
      Vec sum = !IS_RESIDUAL && g.of_weight == 0 ? vzero() : vload(to);
      vstore(to, vfma(vfloat(acc[r.value][v.value]), factor, sum));
    });
  });
}

// Adds one group to R rows of V vectors of outputs. BITS bounds the values of codes.
template <int R, int V, Codes FROM, int BITS, int AHEAD, class P>
HEARTH_INLINE void quant_tile(const P& p, Group g, const QuantTile& t, int column) {
  constexpr bool is_packed = FROM == Codes::kPacked || FROM == Codes::kUnpack;
  const QuantLinearArgs& a = p.a;
  const uint8_t* block = p.block(g.of_weight);
  Int acc[R][V];
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    acc[r][v] = first_sum<V, BITS>(p, block, column, v, t.row + r, g.of_rows);
  });
  const int8_t* x = p.row_group(t.row, g.of_rows);
  uint8_t* unpacked = t.unpacked + ((g.of_weight - t.first_group) * a.group * kPanel + column * 4);
  const uint8_t* w = FROM == Codes::kUnpacked ? unpacked : block + p.head_bytes + column * 4;
  // The rows of the tile that comes next, which lie far apart: 4 to 10 % at long rows.
  if constexpr (FROM == Codes::kUnpacked)
    for (int r = 0; r < R; r++)
      for (int k = 0; k < a.group; k += 64) __builtin_prefetch(x + (R + r) * a.ldx + k);
#pragma GCC unroll 2
  for (int k = 0; k < a.group; k += is_packed ? 8 : 4, w += kPanel * 4) {
    Int bytes[V], codes[V];
    unroll<V>([&](auto v) HEARTH_LAMBDA {
      const uint8_t* from = w + v.value * kLanes * 4;
      bytes[v.value] = iload(from);
      if constexpr (FROM != Codes::kUnpacked) __builtin_prefetch(from + AHEAD, 0, kNoReuse);
      codes[v.value] = is_packed ? low_codes(bytes[v.value]) : bytes[v.value];
      if constexpr (FROM == Codes::kUnpack) istore(unpacked + v.value * kLanes * 4, codes[v.value]);
    });
    dot_rows<R, V, BITS>(acc, codes, x + k, a.ldx);
    if constexpr (is_packed) {
      constexpr bool is_full = R * V > kLinearRows * kLinearVectors / 2;
      if constexpr (is_full) reload();
      unroll<V>([&](auto v) HEARTH_LAMBDA {
        if constexpr (is_full) bytes[v.value] = iload(w + v.value * kLanes * 4);
        codes[v.value] = high_codes(bytes[v.value]);
        if constexpr (FROM == Codes::kUnpack)
          istore(unpacked + (kPanel + v.value * kLanes) * 4, codes[v.value]);
      });
      dot_rows<R, V, BITS>(acc, codes, x + k + 4, a.ldx);
      unpacked += 2 * kPanel * 4;
    }
  }
  // One question a tile: asked for each row, it took 4 % of the time of rows without residuals.
  if (g.of_rows == g.of_weight)
    add_group<R, V, false>(p, g, t, column, acc);
  else
    add_group<R, V, true>(p, g, t, column, acc);
}

// Whether any row of the tile has residuals in the group.
template <class P>
inline bool any_residuals(const P& p, int64_t group, const QuantTile& t) {
  bool any = false;
  for (int r = 0; p.a.residual && r < t.rows; r++) any |= p.has_residuals(t.row + r, group);
  return any;
}

// Residuals follow their group's codes, when the weight's lie in the cache.
template <int R, Codes FROM, int AHEAD, class P>
void quant_rows(const P& p, const QuantTile& t) {
  if constexpr (R > 0) {
    if (t.rows != R) return quant_rows<R - 1, FROM, AHEAD>(p, t);
    constexpr int vectors = R <= kNarrowRows ? kNarrowVectors : kLinearVectors;
    for (int64_t group = t.first_group; group < t.last_group; group++) {
      int64_t last = any_residuals(p, group, t) ? p.groups + group : group;
      for (int64_t of_rows = group; of_rows <= last; of_rows += p.groups)
        for (int column = 0; column < kPanel; column += vectors * kLanes)
          quant_tile<R, vectors, FROM, FROM == Codes::kBytes ? 8 : 4, AHEAD>(p, {group, of_rows}, t,
                                                                             column);
    }
  }
}

// The first of a panel's row tiles unpacks codes in registers. Where many follow, it leaves them in
// the cache; a few do as it does, which is faster than writing.
template <class P>
void quant_rows(const P& p, const QuantTile& t, int tiles) {
  constexpr int most = kLinearRows, most_packed = 3;
  if (p.a.bits == 8)
    return tiles == 1 ? quant_rows<most, Codes::kBytes, kStraightAhead>(p, t)
                      : quant_rows<most, Codes::kBytes, kSharedAhead>(p, t);
  bool is_straight = tiles == 1 && (kLinearVectors * kLanes == kPanel || t.rows <= kNarrowRows);
  if (is_straight) return quant_rows<most, Codes::kPacked, kStraightAhead>(p, t);
  if (tiles <= most_packed) return quant_rows<most, Codes::kPacked, kSharedAhead>(p, t);
  t.row == 0 ? quant_rows<most, Codes::kUnpack, kSharedAhead>(p, t)
             : quant_rows<most, Codes::kUnpacked, 0>(p, t);
}

inline void add_bias(const QuantLinearArgs& a) {
  if (!a.bias) return;
  for (int r = 0; r < a.rows; r++)
    for (int column = 0; column < kPanel; column += kLanes) {
      float* out = a.out + r * a.ldo + column;
      vstore(out, vadd(vload(out), vload(a.bias + column)));
    }
}

inline void write_sums(const QuantLinearArgs& a, const float* sums) {
  for (int r = 0; r < a.rows; r++)
    for (int column = 0; column < kPanel; column += kLanes)
      vstore(a.out + r * a.ldo + column, vload(sums + r * kPanel + column));
  add_bias(a);
}

// Columns of K that are taken at a time: unpacked, they stay in the first-level cache while the
// row tiles go by.
constexpr int kQuantColumnsOfK = 128;

// Rows go in tiles of nearly equal size.
template <class SCALE>
void quant_linear_of(const QuantLinearArgs& a) {
  QuantPanel<SCALE> p(a);
  auto* sums = reinterpret_cast<float*>(a.scratch);
  int tiles = (a.rows + kLinearRows - 1) / kLinearRows;
  int64_t step = tiles == 1 ? p.groups : larger(1, kQuantColumnsOfK / a.group);
  for (int64_t group = 0; group < p.groups; group += step)
    for (int i = 0, row = 0; i < tiles; i++) {
      int rows = a.rows / tiles + (i < a.rows % tiles);
      quant_rows(p,
                 {row, rows, sums + row * kPanel, group, smaller(p.groups, group + step),
                  a.scratch + hearth::kQuantSumBytes},
                 tiles);
      row += rows;
    }
  write_sums(a, sums);
}

void quant_linear(const QuantLinearArgs& a) {
  a.wide ? quant_linear_of<float>(a) : quant_linear_of<uint16_t>(a);
}

// The exact mode: float rows. Each group's products are summed in the order of K, then scaled.
template <int R, int V, class P>
HEARTH_INLINE void exact_tile(const P& p, int64_t group, int column, int row) {
  const QuantLinearArgs& a = p.a;
  const uint8_t* block = p.block(group);
  Vec acc[R][V], zero[V];
  unroll<V>([&](auto v) HEARTH_LAMBDA {
    const uint8_t* zeros = block + p.scales_bytes + column + v.value * kLanes;
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
  const auto* scales = reinterpret_cast<const typename P::Scale*>(block) + column;
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    float* out = a.out + (row + r) * a.ldo + column + v * kLanes;
    Vec sum = group == 0 ? vzero() : vload(out);
    vstore(out, vfma(acc[r][v], vload(scales + v * kLanes), sum));
  });
}

template <int R, class P>
void exact_rows(const P& p, int64_t group, int row) {
  for (int column = 0; column < kPanel; column += kLinearVectors * kLanes)
    exact_tile<R, kLinearVectors>(p, group, column, row);
}

template <int R, class P>
void exact_remainder(const P& p, int64_t group, int row) {
  if constexpr (R > 0) {
    if (p.a.rows - row == R) return exact_rows<R>(p, group, row);
    exact_remainder<R - 1>(p, group, row);
  }
}

template <class SCALE>
void quant_linear_exact_of(const QuantLinearArgs& a) {
  QuantPanel<SCALE> p(a);
  constexpr int tile = kLinearRows > 4 ? 4 : kLinearRows;
  for (int64_t group = 0; group < p.groups; group++) {
    int row = 0;
    for (; row + tile <= a.rows; row += tile) exact_rows<tile>(p, group, row);
    exact_remainder<tile - 1>(p, group, row);
  }
  add_bias(a);
}

void fp8_linear(const QuantLinearArgs& a);  // kernels_fp8.h

void quant_linear_exact(const QuantLinearArgs& a) {
  if (a.fp8) return fp8_linear(a);
  a.wide ? quant_linear_exact_of<float>(a) : quant_linear_exact_of<uint16_t>(a);
}

// Codes of a group of values, and behind them its scale and minus the codes' sum.
inline void put_row_group(int8_t* codes, int group, float scale, Int sums) {
  int32_t lanes[kLanes], sum = 0;
  istore(lanes, sums);
  for (int i = 0; i < kLanes; i++) sum += lanes[i];
  int32_t minus_sum = -sum;
  memcpy(codes + group, &scale, 4);
  memcpy(codes + group + 4, &minus_sum, 4);
}

HEARTH_INLINE Vec signed_bytes(const int8_t* p) {
  return vfloat(iload_signed_bytes(reinterpret_cast<const uint8_t*>(p)));
}

// Whether a few values have taken the steps of the others, so that these have small codes. Codes
// are integers, whose sum is exact in any order.
inline bool is_crowded(const int8_t* codes, int64_t count, int group) {
  Vec sizes = vzero();
  for (int64_t k = 0; k < group; k += kLanes) {
    Vec code = signed_bytes(codes + k);
    sizes = vadd(sizes, vmax(code, vsub(vzero(), code)));
  }
  return lane_sum(sizes) < static_cast<float>(hearth::kResidualBelow * count);
}

// What rounding left of a group that `codes` of x · factor stand for.
inline void put_residuals(const float* x, int64_t count, int group, float factor, float scale,
                          const int8_t* codes, int8_t* out) {
  Int sums = izero();
  for (int64_t k = 0; k < group; k += kLanes) {
    Vec left = vzero();
    if (k < count) {
      left = vsub(vmul(vload(x + k), vset(factor)), signed_bytes(codes + k));
      left = vmul(left, vset(hearth::kResidualSteps));
      left = vkeep(left, vzero(), 0, static_cast<int>(smaller(kLanes, count - k)));
    }
    sums = iadd(sums, istore_bytes(out + k, left));
  }
  put_row_group(out, group, scale / hearth::kResidualSteps, sums);
}

// One row to int8, each group by its own largest magnitude. A value that is not finite makes the
// group's scale NaN, so that every output that reads it is NaN too.
void quantize(const QuantizeArgs& a) {
  int64_t groups = hearth::num_groups(a.cols, a.group), step = hearth::row_group_bytes(a.group);
  for (int64_t g = 0; g < groups; g++) {
    auto* codes = reinterpret_cast<int8_t*>(a.out + g * step);
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
    float factor = is_usable ? inverse : 0.0f;
    if (finite != 0.0f) scale = __builtin_nanf("");
    Int sums = izero();
    for (int64_t k = 0; k < a.group; k += kLanes) {
      Vec v = k < end && is_usable
                  ? vkeep(vload(x + k), vzero(), 0, static_cast<int>(smaller(kLanes, end - k)))
                  : vzero();
      sums = iadd(sums, istore_bytes(codes + k, vmul(v, vset(factor))));
    }
    put_row_group(codes, a.group, scale, sums);
    if (!a.residuals) continue;
    auto* residuals = reinterpret_cast<int8_t*>(a.residuals + g * step);
    if (is_usable && inverse > 0.0f && is_crowded(codes, end, a.group))
      put_residuals(x, end, a.group, factor, scale, codes, residuals);
    else
      put_row_group(residuals, a.group, 0.0f, izero());
  }
}

}  // namespace
