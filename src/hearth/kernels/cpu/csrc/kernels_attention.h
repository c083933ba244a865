// KV cache and attention.
//
// Keys are reduced in tiles of 64 and segments of 512 at absolute positions: within a segment by
// online softmax, tile by tile; segments are merged in ascending order. Which keys a tile leaves
// out depends on the row's position and window alone, so prefill and decode give the same bits.
//
//   scratch: | total [heads][padded] | segment [heads][padded] | scores [heads][64] | m, l, M, L |
// Included by kernels_impl.h only.
#pragma once

namespace {

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

constexpr int kVecsPerGroup = kKeyGroup / kLanes;
constexpr int kTileVecs = kTile / kLanes;

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
        if (a.soft_cap > 0.0f) scaled = capped(scaled, a.soft_cap);
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

}  // namespace
