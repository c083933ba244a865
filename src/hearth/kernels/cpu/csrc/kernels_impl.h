// The kernels, written once over the vector layer of the including translation unit.
//
// Everything is in an unnamed namespace and uses no inline function of the standard library: a
// copy of it compiled for AVX-512 must never be the one that the linker keeps for all.
// Included by isa_*.cpp after a vec_*.h.
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace {

using hearth::AttendArgs;
using hearth::GateArgs;
using hearth::kKeyGroup;
using hearth::kPanel;
using hearth::kSegment;
using hearth::kTile;
using hearth::KvWriteArgs;
using hearth::LinearArgs;
using hearth::NormArgs;

#define HEARTH_INLINE inline __attribute__((always_inline))
#define HEARTH_LAMBDA __attribute__((always_inline))

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

// Sum and maximum over the lanes, in lane order.
inline float lane_sum(Vec v) {
  float lanes[kLanes];
  vstore(lanes, v);
  float sum = lanes[0];
  for (int i = 1; i < kLanes; i++) sum += lanes[i];
  return sum;
}
inline float lane_max(Vec v) {
  float lanes[kLanes];
  vstore(lanes, v);
  float most = lanes[0];
  for (int i = 1; i < kLanes; i++) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// e^x for x in [−87, 88], clamped outside; relative error below 2e-7 (Cephes expf polynomial).
HEARTH_INLINE Vec vexp(Vec x) {
  x = vmin(vmax(x, vset(-87.0f)), vset(88.0f));
  Vec n = vround(vmul(x, vset(1.44269504088896341f)));
  Vec r = vfma(n, vset(-0.693359375f), x);
  r = vfma(n, vset(2.12194440e-4f), r);
  Vec p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vfma(vmul(r, r), p, vadd(r, vset(1.0f)));
  return vmul(p, vpow2(n));
}
inline float exp_scalar(float x) {
  float lanes[kLanes];
  vstore(lanes, vexp(vset(x)));
  return lanes[0];
}

// ---- linear: lanes are output columns, so K is reduced in order whatever the shape -------------

// acc[R][V] over cols k0 … k1 of V vectors of a panel; sums so far stand in `out`.
template <int R, int V, class W>
HEARTH_INLINE void linear_tile(const LinearArgs& a, const W* weight, int column, int row,
                               int64_t k0, int64_t k1) {
  const float* x = a.x + row * a.ldx;
  float* out = a.out + row * a.ldo + column;
  const W* w = weight + column + k0 * kPanel;
  Vec acc[R][V];
  unroll<R * V>([&](auto i) HEARTH_LAMBDA {
    constexpr int r = i.value / V, v = i.value % V;
    acc[r][v] = k0 == 0 ? vzero() : vload(out + r * a.ldo + v * kLanes);
  });
  for (int64_t k = k0; k < k1; k++, w += kPanel) {
    Vec row_of_w[V];
    unroll<V>([&](auto v) HEARTH_LAMBDA { row_of_w[v.value] = vload(w + v.value * kLanes); });
    unroll<R>([&](auto r) HEARTH_LAMBDA {
      Vec xk = vset(x[r.value * a.ldx + k]);
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
    vstore(out + r * a.ldo + v * kLanes, sum);
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
  if (a.bf16)
    linear_panel<uint16_t>(a);
  else
    linear_panel<float>(a);
}

// ---- row operations ---------------------------------------------------------------------------

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

// ---- KV cache ---------------------------------------------------------------------------------

// Nearest even bfloat16; NaN stays NaN.
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
inline void put(float* p, float x) {
  *p = x;
}
inline void put(uint16_t* p, float x) {
  *p = to_bf16(x);
}

template <class E>
void kv_write_as(const KvWriteArgs& a) {
  int group = a.offset / kKeyGroup, lane = a.offset % kKeyGroup;
  int padded = (a.head_dim + kKeyGroup - 1) / kKeyGroup * kKeyGroup;
  E* k = reinterpret_cast<E*>(a.part) + static_cast<int64_t>(group) * a.head_dim * kKeyGroup + lane;
  E* v = reinterpret_cast<E*>(a.part + a.value_offset) + static_cast<int64_t>(a.offset) * padded;
  for (int d = 0; d < a.head_dim; d++) put(k + d * kKeyGroup, a.k[d]);
  for (int d = 0; d < a.head_dim; d++) put(v + d, a.v[d]);
  for (int d = a.head_dim; d < padded; d++) put(v + d, 0.0f);
}

void kv_write(const KvWriteArgs& a) {
  if (a.bf16)
    kv_write_as<uint16_t>(a);
  else
    kv_write_as<float>(a);
}

// ---- attention --------------------------------------------------------------------------------
//
// Keys are reduced in tiles of 64 and segments of 512 at absolute positions: within a segment by
// online softmax, tile by tile; segments are merged in ascending order. Which keys a tile leaves
// out depends on the row's position and window alone, so prefill and decode give the same bits.
//
//   scratch: | total [heads][padded] | segment [heads][padded] | scores [heads][64] | m, l, M, L |

constexpr int kVecsPerGroup = kKeyGroup / kLanes;
constexpr int kTileVecs = kTile / kLanes;
constexpr float kMinusInfinity = -__builtin_inff();

struct AttendState {
  float *total, *segment, *scores;
  float *m, *l, *total_m, *total_l;
  int padded;
};

inline const char* key_part(const AttendArgs& a, int64_t key) {
  int64_t block = a.blocks[key / a.block_size - a.first_block];
  return a.pool + block * a.block_stride + a.part_offset;
}

// scores[h][64] of the tile at `base`; lanes outside [lo, hi) are −infinity.
template <class E>
void tile_scores(const AttendArgs& a, const AttendState& s, int64_t base, int lo, int hi) {
  for (int g = 0; g < kTile / kKeyGroup; g++) {
    int begin = lo - g * kKeyGroup, end = hi - g * kKeyGroup;
    if (end <= 0 || begin >= kKeyGroup) {
      for (int h = 0; h < a.heads; h++)
        for (int v = 0; v < kVecsPerGroup; v++)
          vstore(s.scores + h * kTile + g * kKeyGroup + v * kLanes, vset(kMinusInfinity));
      continue;
    }
    int64_t key = base + g * kKeyGroup;
    const E* k = reinterpret_cast<const E*>(key_part(a, key)) +
                 key % a.block_size / kKeyGroup * (static_cast<int64_t>(a.head_dim) * kKeyGroup);
    for (int h = 0; h < a.heads; h++) {
      const float* q = a.q + h * a.head_dim;
      Vec acc[kVecsPerGroup];
      unroll<kVecsPerGroup>([&](auto v) HEARTH_LAMBDA { acc[v.value] = vzero(); });
      for (int d = 0; d < a.head_dim; d++) {
        Vec qd = vset(q[d]);
        unroll<kVecsPerGroup>([&](auto v) HEARTH_LAMBDA {
          acc[v.value] = vfma(vload(k + d * kKeyGroup + v.value * kLanes), qd, acc[v.value]);
        });
      }
      unroll<kVecsPerGroup>([&](auto v) HEARTH_LAMBDA {
        Vec scaled = vmul(acc[v.value], vset(a.scale));
        scaled =
            vkeep(scaled, vset(kMinusInfinity), begin - v.value * kLanes, end - v.value * kLanes);
        vstore(s.scores + h * kTile + g * kKeyGroup + v.value * kLanes, scaled);
      });
    }
  }
}

// Turns the scores of head h into weights; returns the factor for what was summed before.
inline float tile_weights(const AttendState& s, int h, int lo, int hi) {
  float* scores = s.scores + h * kTile;
  Vec most = vload(scores);
  for (int v = 1; v < kTileVecs; v++) most = vmax(most, vload(scores + v * kLanes));
  float m = lane_max(most);
  m = m > s.m[h] ? m : s.m[h];
  float factor = s.m[h] == kMinusInfinity ? 0.0f : exp_scalar(s.m[h] - m);
  Vec sum = vzero();
  for (int v = 0; v < kTileVecs; v++) {
    Vec weight = vexp(vsub(vload(scores + v * kLanes), vset(m)));
    weight = vkeep(weight, vzero(), lo - v * kLanes, hi - v * kLanes);
    vstore(scores + v * kLanes, weight);
    sum = vadd(sum, weight);
  }
  s.l[h] = s.l[h] * factor + lane_sum(sum);
  s.m[h] = m;
  return factor;
}

// segment[h] = segment[h] · factor + weights · V, N vectors from column `column`, keys in order.
template <int N, class E>
HEARTH_INLINE void add_values(const AttendArgs& a, const AttendState& s, int h, int column,
                              int64_t base, int lo, int hi, float factor) {
  float* sum = s.segment + h * s.padded + column;
  const float* weights = s.scores + h * kTile;
  Vec acc[N];
  unroll<N>([&](auto i) HEARTH_LAMBDA {
    acc[i.value] = vmul(vload(sum + i.value * kLanes), vset(factor));
  });
  for (int key = lo; key < hi;) {
    int in_group = kKeyGroup - key % kKeyGroup;
    int last = static_cast<int>(smaller(hi, key + in_group));
    const E* v = reinterpret_cast<const E*>(key_part(a, base + key) + a.value_offset) +
                 (base + key) % a.block_size * s.padded + column;
    for (; key < last; key++, v += s.padded) {
      Vec weight = vset(weights[key]);
      unroll<N>([&](auto i) HEARTH_LAMBDA {
        acc[i.value] = vfma(vload(v + i.value * kLanes), weight, acc[i.value]);
      });
    }
  }
  unroll<N>([&](auto i) HEARTH_LAMBDA { vstore(sum + i.value * kLanes, acc[i.value]); });
}

template <class E>
void tile_values(const AttendArgs& a, const AttendState& s, int h, int64_t base, int lo, int hi,
                 float factor) {
  int column = 0;
  for (; column + 8 * kLanes <= s.padded; column += 8 * kLanes)
    add_values<8, E>(a, s, h, column, base, lo, hi, factor);
  for (; column + 2 * kLanes <= s.padded; column += 2 * kLanes)
    add_values<2, E>(a, s, h, column, base, lo, hi, factor);
  for (; column < s.padded; column += kLanes)
    add_values<1, E>(a, s, h, column, base, lo, hi, factor);
}

// total = total merged with segment, for every head.
void merge_segment(const AttendArgs& a, const AttendState& s) {
  for (int h = 0; h < a.heads; h++) {
    float m = s.m[h] > s.total_m[h] ? s.m[h] : s.total_m[h];
    float before = s.total_m[h] == kMinusInfinity ? 0.0f : exp_scalar(s.total_m[h] - m);
    float now = exp_scalar(s.m[h] - m);
    for (int d = 0; d < s.padded; d += kLanes) {
      float* total = s.total + h * s.padded + d;
      Vec old = vmul(vload(total), vset(before));
      vstore(total, vfma(vload(s.segment + h * s.padded + d), vset(now), old));
    }
    s.total_l[h] = s.total_l[h] * before + s.l[h] * now;
    s.total_m[h] = m;
  }
}

void clear(float* sums, float* m, float* l, const AttendArgs& a, int padded) {
  memset(sums, 0, sizeof(float) * static_cast<size_t>(a.heads) * static_cast<size_t>(padded));
  for (int h = 0; h < a.heads; h++) {
    m[h] = kMinusInfinity;
    l[h] = 0.0f;
  }
}

template <class E>
void attend_as(const AttendArgs& a) {
  AttendState s;
  s.padded = (a.head_dim + kKeyGroup - 1) / kKeyGroup * kKeyGroup;
  s.total = a.scratch;
  s.segment = s.total + a.heads * s.padded;
  s.scores = s.segment + a.heads * s.padded;
  s.m = s.scores + a.heads * kTile;
  s.l = s.m + a.heads;
  s.total_m = s.l + a.heads;
  s.total_l = s.total_m + a.heads;
  clear(s.total, s.total_m, s.total_l, a, s.padded);
  int64_t end = a.position + 1;
  for (int64_t segment = a.first_key / kSegment * kSegment; segment < end; segment += kSegment) {
    clear(s.segment, s.m, s.l, a, s.padded);
    int64_t first_tile = larger(segment, a.first_key / kTile * kTile);
    for (int64_t base = first_tile; base < smaller(end, segment + kSegment); base += kTile) {
      int lo = static_cast<int>(larger(0, a.first_key - base));
      int hi = static_cast<int>(smaller(kTile, end - base));
      tile_scores<E>(a, s, base, lo, hi);
      for (int h = 0; h < a.heads; h++)
        tile_values<E>(a, s, h, base, lo, hi, tile_weights(s, h, lo, hi));
    }
    merge_segment(a, s);
  }
  for (int h = 0; h < a.heads; h++) {
    Vec inverse = vset(1.0f / s.total_l[h]);
    for (int d = 0; d < s.padded; d += kLanes)
      vstore(s.total + h * s.padded + d, vmul(vload(s.total + h * s.padded + d), inverse));
    memcpy(a.out + h * a.head_dim, s.total + h * s.padded,
           sizeof(float) * static_cast<size_t>(a.head_dim));
  }
}

void attend(const AttendArgs& a) {
  if (a.bf16)
    attend_as<uint16_t>(a);
  else
    attend_as<float>(a);
}

// ---- over the vocabulary ----------------------------------------------------------------------

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
