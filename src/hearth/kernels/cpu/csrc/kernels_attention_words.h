// Attention over integer codes, by integer products.
//
// Codes of 8 and 4 bits become 16-bit integers, a vector at a time in registers or, where many
// queries look at them, a tile at a time in memory, and are multiplied with queries and weights in
// fixed point, two products a lane and instruction. Sums are exact: they are the same whatever
// their order, and however many queries go through the keys together.
//
// Fixed point: integers times a power of two. That of a query follows from its largest element;
// that of the weights of a tile (times the values' scales, of each group of columns that shares
// them) from the largest. What products need one word for (PARTS = 1)
// has 15 bits and a sign; of two words (PARTS = 2) 30 bits are used, more than float32 has. A key
// that a query does not see has the weight 0, whose product is 0 with any code.
//
// What is not finite has no fixed point: then the power of two is NaN, and so is all that it
// scales.
//
//   queries: [queries][PARTS][padded] words; weights: [queries][groups][PARTS][64] words, each in
//   the memory of as many floats
// Included by kernels_segments.h only.
#pragma once
#include "kernels_attention.h"

namespace {

constexpr float kLeastScore = -1e30f;  // finite, and below any other

// Sums of 512 products stay below 2^31: 512 · 127 · 2^15.
static_assert(int64_t{hearth::kMostCodedDim} * 127 * 32768 < 2147483648);

inline float power_of_two(float n) {  // an integer ≤ 127; 2^−126 below −126, and of NaN
  int32_t bits = ((n > -126.0f ? static_cast<int32_t>(n) : -126) + 127) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

struct FixedPoint {
  float up, down;  // to integers, and back
};
// Of numbers whose largest magnitude has these bits.
template <int PARTS>
inline FixedPoint fixed_point(int32_t most) {
  constexpr int places = PARTS == 1 ? 14 : 29;
  int exponent = most >> 23;
  if (exponent == 255) return {0.0f, kNaN};
  if (exponent <= places) exponent = places + 1;  // `up` would be too large: below 2^−97
  auto n = static_cast<float>(places + 127 - exponent);
  return {power_of_two(n), power_of_two(-n)};
}

inline Int magnitude_bits(Vec x) {
  return ibits(ito_bits(x), 0, 0x7fffffff);
}

// `count` codes as words in the same order, in 4 bits the low ones of all, then the high ones. Up
// to a vector is read and written too many.
template <int BITS>
HEARTH_INLINE void expand_words(const uint8_t* codes, int count, int64_t ahead, int16_t* out) {
  constexpr int at_once = 2 * kLanes;
  for (int i = 0; i < count; i += at_once) {
    if (i % kLine == 0) fetch<false>(codes + i, ahead);
    if constexpr (BITS == 8)
      istore(out + i, signed_words(codes + i));
    else
      istore(out + i, nibble_words<0>(codes + i));
  }
  if constexpr (BITS == 4)
    for (int i = 0; i < count; i += at_once) istore(out + count + i, nibble_words<1>(codes + i));
}

template <bool EXPANDED>
struct CodeOf {
  using Type = uint8_t;
};
template <>
struct CodeOf<true> {
  using Type = int16_t;
};

// As CodeTile, of codes where they lie, or EXPANDED.
template <int BITS, int PARTS, bool EXPANDED>
struct WordTile : CodePlaces {
  static constexpr bool kInWords = true, kGrouped = BITS == 4;
  static constexpr int kParts = PARTS;
  static constexpr int kInByte = BITS == 4 ? 2 : 1;
  static constexpr int kHalves = EXPANDED ? 1 : kInByte;
  using Code = typename CodeOf<EXPANDED>::Type;
  const Code* keys[kTile / kKeyGroup];
  const Code* values[kTile / kKeyGroup];
  float key_factors[kTile];  // with the scale of all scores
  bool fetches = !EXPANDED;  // the next tile's codes

  WordTile(const AttendArgs& a, int64_t base, uint16_t* memory) : CodePlaces(a, base) {
    for (int g = 0; g < kTile / kKeyGroup; g++)
      if constexpr (EXPANDED)
        expand(a, g, reinterpret_cast<int16_t*>(memory));
      else
        keys[g] = key_codes[g], values[g] = value_codes[g];
    Vec scale = vset(a.soft_cap > 0.0f ? a.scale : a.scale * kLog2E);
    for (int i = 0; i < kTile; i += kLanes)
      vstore(key_factors + i, vmul(vload(key_scales[i / kKeyGroup] + i % kKeyGroup), scale));
  }

  void expand(const AttendArgs& a, int g, int16_t* memory) {
    int key_size = static_cast<int>(a.layout.key_rows), size = static_cast<int>(a.layout.padded);
    int16_t* to_keys = memory + g * kKeyGroup * key_size;
    int16_t* to_values = memory + kTile * key_size + g * kKeyGroup * size;
    keys[g] = to_keys, values[g] = to_values;
    if (is_repeated[g]) {
      keys[g] = keys[g - 1], values[g] = values[g - 1];
      return;
    }
    expand_words<BITS>(key_codes[g], key_size / kInByte * kKeyGroup, keys_ahead[g], to_keys);
    for (int i = 0; i < kKeyGroup * size; i += 2 * size)
      expand_words<BITS>(value_codes[g] + i / kInByte, 2 * size / kInByte, values_ahead[g],
                         to_values + i);
  }

  // Two lines of what was fetched up to `group` and `offset`, of `size` bytes a group.
  void fetch_keys(int& group, int& offset, int size) const {
    fetch<true>(key_codes[group] + offset, keys_ahead[group]);
    fetch<true>(key_codes[group] + offset + kLine, keys_ahead[group]);
    offset += 2 * kLine;
    if (offset >= size) offset = 0, group = (group + 1) % (kTile / kKeyGroup);
  }

  // A vector of pairs of codes, of 4 bits the low ones or the high ones.
  template <int HALF>
  static Int load(const Code* p) {
    if constexpr (EXPANDED)
      return iload(p);
    else if constexpr (BITS == 4)
      return nibble_words<HALF>(p);
    else
      return signed_words(p);
  }
};

// Where the halves of a value's codes begin within a vector they have to be expanded; and where
// many queries look at them, it takes less time; but what is expanded is not fetched well ahead.
inline bool expands_words(const AttendArgs& a, int most_together) {
  if (a.storage == HEARTH_KV_INT4 && a.layout.padded % (2 * kKeyGroup) != 0) return true;
  return a.rows * a.heads > 4 * most_together;
}

// x · up as words, of two parts the high ones `step` before the low ones.
template <int PARTS>
inline void store_fixed(int16_t* out, int step, Vec scaled) {
  Int n = iround(scaled);
  if constexpr (PARTS == 2) {
    store_low_words(out + step, n);
    n = ishift_right_signed<16>(iadd(n, iset(0x8000)));
  }
  store_words(out, n);
}
template <int PARTS>
inline Vec sum_of_parts(const Int* parts, int step) {
  if constexpr (PARTS == 1) return vfloat(parts[0]);
  return vfma(vfloat(parts[0]), vset(65536.0f), vfloat(parts[step]));
}
inline Int pair_in_all_lanes(const int16_t* p) {
  int32_t both;
  memcpy(&both, p, 4);
  return iset(both);
}

inline int16_t* query_words(const AttendState& s, int query) {
  return reinterpret_cast<int16_t*>(s.queries + query * s.padded);
}
inline int16_t* weight_words(const AttendState& s, int query, int group) {
  return reinterpret_cast<int16_t*>(s.weights + (query * s.value_groups + group) * kTile);
}

template <int PARTS>
void copy_query_words(const AttendArgs& a, const AttendState& s) {
  for (int i = 0; i < a.rows * a.heads; i++) {
    float x[kMostCodedDim + kPanel];
    memcpy(x, query_of(a, i), sizeof(float) * static_cast<size_t>(a.head_dim));
    memset(x + a.head_dim, 0, sizeof(float) * kPanel);
    if (a.rotated) rotate(x, a.head_dim);
    Int most = izero();
    for (int d = 0; d < s.padded; d += kLanes) most = imax(most, magnitude_bits(vload(x + d)));
    FixedPoint fixed = fixed_point<PARTS>(lane_max(most));
    for (int d = 0; d < s.padded; d += kLanes)
      store_fixed<PARTS>(query_words(s, i) + d, s.padded, vmul(vload(x + d), vset(fixed.up)));
    s.query_factors[i] = fixed.down;
  }
}

// As tile_scores.
template <int Q, class T>
void tile_word_scores(const AttendArgs& a, const AttendState& s, const T& tile, int query,
                      const Span* spans, bool fetches) {
  constexpr int PARTS = T::kParts;
  const int16_t* q = query_words(s, query);
  const int q_step = 2 * s.padded, half = static_cast<int>(a.layout.key_rows) / T::kHalves;
  for (int lane = 0; lane < kTile; lane += kScoreVecs * kLanes) {
    const typename T::Code* k[kScoreVecs];
    unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
      int first = lane + v.value * kLanes;
      k[v.value] = tile.keys[first / kKeyGroup] + first % kKeyGroup * 2;
    });
    Int acc[Q * PARTS][kScoreVecs];
    unroll<Q * PARTS * kScoreVecs>(
        [&](auto i) HEARTH_LAMBDA { acc[i.value / kScoreVecs][i.value % kScoreVecs] = izero(); });
    int group = 0, offset = 0;
    for (int d = 0; d < half; d += 2) {
      if (fetches && lane == 0) tile.fetch_keys(group, offset, half * kKeyGroup);
      unroll<T::kHalves>([&](auto h) HEARTH_LAMBDA {
        Int keys[kScoreVecs];
        unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
          keys[v.value] = T::template load<h.value>(k[v.value] + d * kKeyGroup);
        });
        unroll<Q * PARTS>([&](auto i) HEARTH_LAMBDA {
          const int16_t* of_query = q + i.value / PARTS * q_step + i.value % PARTS * s.padded;
          Int qd = pair_in_all_lanes(of_query + h.value * half + d);
          unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
            acc[i.value][v.value] = dot_words(acc[i.value][v.value], keys[v.value], qd);
          });
        });
      });
    }
    unroll<Q * kScoreVecs>([&](auto i) HEARTH_LAMBDA {
      constexpr int number = i.value / kScoreVecs, v = i.value % kScoreVecs;
      Span span = spans[number];
      int first = lane + v * kLanes;
      Vec sum = sum_of_parts<PARTS>(&acc[number * PARTS][v], kScoreVecs);
      Vec score = vmul(sum, vset(s.query_factors[query + number]));
      score = vmul(score, vload(tile.key_factors + first));
      if (a.soft_cap > 0.0f) score = vmul(capped(score, a.soft_cap), vset(kLog2E));
      if (!span.is_whole())
        score = vkeep(score, vset(kMinusInfinity), span.lo - first, span.hi - first);
      vstore(s.scores + (query + number) * kTile + first, score);
    });
  }
}

// Weights times the values' scales as words; returns what they are to be multiplied by. The power
// of two is that of the largest product: a first token that takes nearly all weight has, as a rule,
// no value to speak of, and must not leave the others too few bits.
template <class T>
inline float store_weight_words(const AttendState& s, const T& tile, int query, int group,
                                const Vec* weights, Span span) {
  Vec scaled[kTileVecs];
  Int most = izero();
  unroll<kTileVecs>([&](auto v) HEARTH_LAMBDA {
    constexpr int first = v.value * kLanes;
    const uint16_t* scales = tile.value_scales[first / kKeyGroup] + first % kKeyGroup;
    scaled[v.value] = vmul(weights[v.value], vload(scales + group * tile.group_step));
    if (!span.is_whole())
      scaled[v.value] = vkeep(scaled[v.value], vzero(), span.lo - first, span.hi - first);
    most = imax(most, magnitude_bits(scaled[v.value]));
  });
  FixedPoint fixed = fixed_point<T::kParts>(lane_max(most));
  unroll<kTileVecs>([&](auto v) HEARTH_LAMBDA {
    store_fixed<T::kParts>(weight_words(s, query, group) + v.value * kLanes, kTile,
                           vmul(scaled[v.value], vset(fixed.up)));
  });
  return fixed.down;
}

// As tile_weights: the weights of a query, relative to a power of two of this tile, as words.
template <class T>
inline void tile_word_weights(const AttendState& s, const T& tile, int query, Span span) {
  const float* scores = s.scores + query * kTile;
  Vec most = vload(scores);
  for (int v = 1; v < kTileVecs; v++) most = vmax(most, vload(scores + v * kLanes));
  float top = lane_max(most);
  top = top < kLeastScore ? kLeastScore : top;
  Vec own = vround(vset(top + 0.5f)), sum = vzero();  // no weight is larger than 1
  Vec weights[kTileVecs];
  unroll<kTileVecs>([&](auto v) HEARTH_LAMBDA {
    constexpr int first = v.value * kLanes;
    Vec weight = vexp2(vsub(vload(scores + first), own));
    if (!span.is_whole()) weight = vkeep(weight, vzero(), span.lo - first, span.hi - first);
    sum = vadd(sum, weight);
    weights[v.value] = weight;
  });
  float peak = first_lane(own), before = s.m[query], m = peak > before ? peak : before;
  if (m != before && before != kMinusInfinity) {
    float factor = power_of_two(before - m);
    s.l[query] *= factor;
    float* sums = s.segment + query * s.padded;
    for (int d = 0; d < s.padded; d += kLanes)
      vstore(sums + d, vmul(vload(sums + d), vset(factor)));
  }
  float now = power_of_two(peak - m);
  s.l[query] += lane_sum(sum) * now;
  s.m[query] = m;
  for (int g = 0; g < (T::kGrouped ? s.value_groups : 1); g++)
    s.weight_factors[query * s.value_groups + g] =
        store_weight_words(s, tile, query, g, weights, span) * now;
}

// segment[query] += weights · V, N vectors from `column` of a half on, which share their scales.
template <int Q, int N, int HALF, class T>
HEARTH_INLINE void add_word_columns(const AttendState& s, const T& tile, int query, int column,
                                    bool fetches) {
  constexpr int PARTS = T::kParts, taken = N * kLanes * 2;
  const int half = s.padded / T::kHalves, of_all = HALF * half + column;
  const int group = T::kGrouped ? of_all / kScaleColumns : 0;
  const int16_t* weights = weight_words(s, query, group);
  const int weights_step = s.value_groups * 2 * kTile;
  Int acc[Q * PARTS][N];
  unroll<Q * PARTS * N>([&](auto i) HEARTH_LAMBDA { acc[i.value / N][i.value % N] = izero(); });
  for (int key = 0; key < kTile; key += kKeyGroup) {
    const typename T::Code* v = tile.values[key / kKeyGroup] + column * 2;
    for (int of_group = 0; of_group < kKeyGroup; of_group += 2, v += 2 * half) {
      if (fetches) {  // what these columns have of the group, in the order of memory
        const typename T::Code* begin = tile.values[key / kKeyGroup] + column * kKeyGroup;
        unroll<(taken + kLine - 1) / kLine>([&](auto i) HEARTH_LAMBDA {
          fetch<true>(begin + of_group / 2 * taken + i.value * kLine,
                      tile.values_ahead[key / kKeyGroup]);
        });
      }
      Int values[N];
      unroll<N>([&](auto n) HEARTH_LAMBDA {
        values[n.value] = T::template load<HALF>(v + n.value * kLanes * 2);
      });
      unroll<Q * PARTS>([&](auto i) HEARTH_LAMBDA {
        const int16_t* of_query =
            weights + i.value / PARTS * weights_step + i.value % PARTS * kTile;
        Int weight = pair_in_all_lanes(of_query + key + of_group);
        unroll<N>([&](auto n) HEARTH_LAMBDA {
          acc[i.value][n.value] = dot_words(acc[i.value][n.value], values[n.value], weight);
        });
      });
    }
  }
  unroll<Q * N>([&](auto i) HEARTH_LAMBDA {
    constexpr int number = i.value / N, n = i.value % N;
    float* sums = s.segment + (query + number) * s.padded + of_all + n * kLanes;
    Vec sum = sum_of_parts<PARTS>(&acc[number * PARTS][n], N);
    Vec factor = vset(s.weight_factors[(query + number) * s.value_groups + group]);
    vstore(sums, vfma(sum, factor, vload(sums)));
  });
}

template <int Q, int HALF, class T>
void add_word_values(const AttendState& s, const T& tile, int query, bool fetches) {
  constexpr int sums = Q * T::kParts;
  constexpr int most = sums <= 2 && kAttendSums / sums >= 8 && !T::kGrouped ? 8 : 4;
  const int half = s.padded / T::kHalves;
  for (int column = 0; column < half;) {
    int of_group = T::kGrouped ? kScaleColumns - (HALF * half + column) % kScaleColumns : half;
    int vectors = static_cast<int>(smaller(half - column, of_group)) / kLanes;
    if (vectors >= most) {
      add_word_columns<Q, most, HALF>(s, tile, query, column, fetches);
      column += most * kLanes;
    } else if (vectors >= 2) {
      add_word_columns<Q, 2, HALF>(s, tile, query, column, fetches);
      column += 2 * kLanes;
    } else {
      add_word_columns<Q, 1, HALF>(s, tile, query, column, fetches);
      column += kLanes;
    }
  }
}

// As attend_tile; there are no edges. The first queries that look at a tile fetch the next one.
template <int Q, class T>
void attend_word_tile(const AttendArgs& a, const AttendState& s, T& tile, int query) {
  Span spans[Q];
  for (int i = 0; i < Q; i++) spans[i] = span_of(a, query + i, tile.base);
  bool fetches = tile.fetches;
  tile.fetches = false;
  tile_word_scores<Q>(a, s, tile, query, spans, fetches);
  for (int i = 0; i < Q; i++) tile_word_weights(s, tile, query + i, spans[i]);
  add_word_values<Q, 0>(s, tile, query, fetches);
  if constexpr (T::kHalves == 2) add_word_values<Q, 1>(s, tile, query, false);
}

}  // namespace
