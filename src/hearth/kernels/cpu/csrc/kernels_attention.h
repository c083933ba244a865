// Attention over the keys of one tile, by products of floats; kernels_segments.h goes through the
// tiles.
//
// Keys are reduced in tiles of 64 and segments of 512 at absolute positions: within a segment by
// online softmax, tile by tile; segments are merged in ascending order. Which keys a tile leaves
// out depends on the row's position and window alone, so prefill and decode give the same bits.
//
// A query is one head of one row. Some neighbouring rows of a sequence go through the keys
// together, several queries for each load of K and V; every query still sees its own keys alone, in
// order.
//
//   scratch: | of codes: the tile as bfloat16 or words, and slack |
//            | total [queries][padded] | segment [queries][padded] | queries [queries][padded] |
//            | scores, then weights [queries][64] | m l M L |
//            | of codes: powers of two of queries [queries] and of weights [queries][groups of
//              columns], weights [queries][groups][64] |
//
// Weights are powers of two: 2^(t − m) with t = score · log₂ e and an integer m near the largest t
// so far. So bringing earlier sums to a new m, and merging segments, multiplies by a power of two,
// which is exact.
//
// `rounded`: queries and weights are rounded to bfloat16, as keys and values are stored, so that
// products need no conversion, and where the processor has dot products of pairs half as many
// instructions. Sums stay float32. Powers of two make this rounding independent of m.
//
// Codes: products are taken with codes; a key's scale multiplies its scores, a value's scale its
// weights, before they are rounded. What weights sum to is what they were without it. Integer codes
// have a way of their own, kernels_attention_words.h.
// Included by kernels_impl.h only.
#pragma once
#include "kernels_kv.h"

namespace {

constexpr int kTileVecs = kTile / kLanes;
constexpr int kScoreVecs = 4;  // vectors of keys at a time
constexpr int kMostQueries = kAttendSums / kScoreVecs;

struct AttendState {
  float *total, *segment, *queries, *scores;
  float *m, *l, *total_m, *total_l;
  float *weights, *weight_factors, *query_factors;  // of codes
  uint16_t* decoded;                                // likewise
  int padded, value_groups;
};

// Queries and weights as products want them (O), in the memory of a float32 array.
template <class O>
inline O* as_operands(float* p) {
  return reinterpret_cast<O*>(p);
}

// The keys of a tile that a query sees: lanes lo … hi−1.
struct Span {
  int lo, hi;
  bool is_whole() const { return lo <= 0 && hi >= kTile; }
};

inline Span span_of(const AttendArgs& a, int query, int64_t base) {
  return {static_cast<int>(larger(0, first_of(a, query) - base)),
          static_cast<int>(smaller(kTile, end_of(a, query) - base))};
}
inline const float* query_of(const AttendArgs& a, int query) {
  return a.q + query / a.heads * a.ldq + query % a.heads * a.head_dim;
}

template <class O>
void copy_queries(const AttendArgs& a, const AttendState& s) {
  for (int i = 0; i < a.rows * a.heads; i++) {
    const float* q = query_of(a, i);
    O* out = as_operands<O>(s.queries) + i * s.padded;
    float turned[kMostCodedDim + kPanel];
    if (a.rotated) {
      memcpy(turned, q, sizeof(float) * static_cast<size_t>(a.head_dim));
      rotate(turned, a.head_dim);
      q = turned;
    }
    int d = 0;
    for (; d + kLanes <= a.head_dim; d += kLanes) store_operands(out + d, vload(q + d));
    for (; d < s.padded; d++) put(out + d, d < a.head_dim ? q[d] : 0.0f);
  }
}

// scores[query][64] of the tile at `base` for Q queries, times log₂ e; lanes outside their spans
// are −infinity.
template <int Q, class T, class O>
void tile_scores(const AttendArgs& a, const AttendState& s, const T& tile, int query,
                 const Span* spans) {
  using E = typename T::Element;
  using P = Products<E, O>;
  constexpr int together = kTogether<E>;
  const O* q = as_operands<O>(s.queries) + query * s.padded;
  for (int lane = 0; lane < kTile; lane += kScoreVecs * kLanes) {
    const E* k[kScoreVecs];
    unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
      int first = lane + v.value * kLanes;
      k[v.value] = tile.keys[first / kKeyGroup] + first % kKeyGroup * together;
    });
    Vec acc[Q][kScoreVecs];
    unroll<Q * kScoreVecs>(
        [&](auto i) HEARTH_LAMBDA { acc[i.value / kScoreVecs][i.value % kScoreVecs] = vzero(); });
    for (int d = 0; d < a.head_dim; d += together)
      unroll<P::kParts>([&](auto part) HEARTH_LAMBDA {
        typename P::Factor keys[kScoreVecs];
        unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
          keys[v.value] = P::template load<part.value>(k[v.value] + d * kKeyGroup);
        });
        unroll<Q>([&](auto i) HEARTH_LAMBDA {
          auto qd = P::template all<part.value>(q + i.value * s.padded + d);
          unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
            acc[i.value][v.value] = P::add(acc[i.value][v.value], keys[v.value], qd);
          });
        });
      });
    unroll<Q * kScoreVecs>([&](auto i) HEARTH_LAMBDA {
      constexpr int number = i.value / kScoreVecs, v = i.value % kScoreVecs;
      Span span = spans[number];
      int first = lane + v * kLanes;
      Vec scaled = acc[number][v];
      if constexpr (T::kScaled)
        scaled = vmul(scaled, vload(tile.key_scales[first / kKeyGroup] + first % kKeyGroup));
      if (a.soft_cap > 0.0f)
        scaled = vmul(capped(vmul(scaled, vset(a.scale)), a.soft_cap), vset(kLog2E));
      else
        scaled = vmul(scaled, vset(a.scale * kLog2E));
      if (!span.is_whole())
        scaled = vkeep(scaled, vset(kMinusInfinity), span.lo - first, span.hi - first);
      vstore(s.scores + (query + number) * kTile + first, scaled);
    });
  }
}

// Where the weights of a query lie, for the columns from `column` on.
template <class T, class O>
inline O* weights_of(const AttendState& s, int query, int column) {
  if constexpr (T::kGrouped)
    return as_operands<O>(s.weights + (query * s.value_groups + column / kScaleColumns) * kTile);
  else
    return as_operands<O>(s.scores + query * kTile);
}

// Weights of the lanes first … of a tile, times the values' scales; whatever scale a key has that
// is not seen, its weight is zero.
template <class T, class O>
inline void store_scaled(const AttendState& s, const T& tile, int query, int first, Vec weight,
                         Span span) {
  const uint16_t* scales = tile.value_scales[first / kKeyGroup] + first % kKeyGroup;
  for (int g = 0; g < (T::kGrouped ? s.value_groups : 1); g++) {
    Vec scaled = vmul(weight, vload(scales + g * tile.group_step));
    if (!span.is_whole()) scaled = vkeep(scaled, vzero(), span.lo - first, span.hi - first);
    store_operands(weights_of<T, O>(s, query, g * kScaleColumns) + first, scaled);
  }
}

// Turns the scores of a query into weights, which take their place, and brings what was summed
// before to their scale.
template <class T, class O>
inline void tile_weights(const AttendState& s, const T& tile, int query, Span span) {
  float* scores = s.scores + query * kTile;
  Vec most = vload(scores);
  for (int v = 1; v < kTileVecs; v++) most = vmax(most, vload(scores + v * kLanes));
  float m = round_scalar(lane_max(most)), before = s.m[query];
  if (!(m > before)) m = before;
  Vec sum = vzero();
  for (int v = 0; v < kTileVecs; v++) {
    Vec weight = vexp2(vsub(vload(scores + v * kLanes), vset(m)));
    if (!span.is_whole())
      weight = vkeep(weight, vzero(), span.lo - v * kLanes, span.hi - v * kLanes);
    if constexpr (T::kScaled) {
      store_scaled<T, O>(s, tile, query, v * kLanes, weight, span);
      sum = vadd(sum, weight);
    } else {
      sum = vadd(sum, store_operands(as_operands<O>(scores) + v * kLanes, weight));
    }
  }
  if (m != before && before != kMinusInfinity) {  // else the factor is 1, or there is nothing yet
    float factor = exp2_scalar(before - m);
    s.l[query] *= factor;
    float* sums = s.segment + query * s.padded;
    for (int d = 0; d < s.padded; d += kLanes)
      vstore(sums + d, vmul(vload(sums + d), vset(factor)));
  }
  s.l[query] += lane_sum(sum);
  s.m[query] = m;
}

// segment[query] += weights · V over keys first … last−1 of the tile, N vectors from `column`.
template <int Q, int N, class T, class O>
HEARTH_INLINE void add_columns(const AttendState& s, const T& tile, int query, int column,
                               int first, int last) {
  using E = typename T::Element;
  using P = Products<E, O>;
  constexpr int together = kTogether<E>;
  float* sums = s.segment + query * s.padded + column;
  const O* weights = weights_of<T, O>(s, query, column);
  constexpr int of_scale = kTile * static_cast<int>(sizeof(float) / sizeof(O));
  const int weights_row = T::kGrouped ? s.value_groups * of_scale : of_scale;
  // Vectors that share weights: all, or those of the columns that share a scale.
  constexpr int sharing = T::kGrouped && kScaleColumns / kLanes < N ? kScaleColumns / kLanes : N;
  Vec acc[Q][N];
  unroll<Q * N>([&](auto i) HEARTH_LAMBDA {
    constexpr int number = i.value / N, n = i.value % N;
    acc[number][n] = vload(sums + number * s.padded + n * kLanes);
  });
  auto add = [&](auto part, const auto& values, int key) HEARTH_LAMBDA {
    unroll<Q>([&](auto i) HEARTH_LAMBDA {
      unroll<N / sharing>([&](auto g) HEARTH_LAMBDA {
        const O* of_query = weights + i.value * weights_row + g.value * of_scale;
        auto weight = P::template all<part.value>(of_query + key);
        unroll<sharing>([&](auto v) HEARTH_LAMBDA {
          constexpr int n = g.value * sharing + v.value;
          acc[i.value][n] = P::add(acc[i.value][n], values[n], weight);
        });
      });
    });
  };
  // Of two keys that lie together the one that counts; the other may be anybody's.
  auto add_one = [&](auto which, const E* v, int key) HEARTH_LAMBDA {
    constexpr int part = P::kParts == together ? which.value : 0;
    typename P::Factor values[N];
    unroll<N>([&](auto n) HEARTH_LAMBDA {
      values[n.value] = P::template load_one<which.value>(v + n.value * kLanes * together);
    });
    add(Index<part>{}, values, key);
  };
  for (int key = first / together * together; key < last;) {
    int end = static_cast<int>(smaller(last, key + kKeyGroup - key % kKeyGroup));
    int row = key % kKeyGroup / together;
    const E* v = tile.values[key / kKeyGroup] + (row * s.padded + column) * together;
    auto next = [&]() HEARTH_LAMBDA { key += together, v += s.padded * together; };
    if (key < first) {
      add_one(Index<together - 1>{}, v, key);
      next();
    }
    for (; key + together <= end; next())
      unroll<P::kParts>([&](auto part) HEARTH_LAMBDA {
        typename P::Factor values[N];
        unroll<N>([&](auto n) HEARTH_LAMBDA {
          values[n.value] = P::template load<part.value>(v + n.value * kLanes * together);
        });
        add(part, values, key);
      });
    if (key < end) {
      add_one(Index<0>{}, v, key);
      next();
    }
  }
  unroll<Q * N>([&](auto i) HEARTH_LAMBDA {
    constexpr int number = i.value / N, n = i.value % N;
    vstore(sums + number * s.padded + n * kLanes, acc[number][n]);
  });
}

template <int Q, class T, class O>
void add_values(const AttendState& s, const T& tile, int query, int first, int last) {
  if (first >= last) return;
  constexpr int most = Q <= 2 && kAttendSums / Q >= 8 ? 8 : 4;
  int column = 0;
  for (; column + most * kLanes <= s.padded; column += most * kLanes)
    add_columns<Q, most, T, O>(s, tile, query, column, first, last);
  for (; column + 2 * kLanes <= s.padded; column += 2 * kLanes)
    add_columns<Q, 2, T, O>(s, tile, query, column, first, last);
  for (; column < s.padded; column += kLanes)
    add_columns<Q, 1, T, O>(s, tile, query, column, first, last);
}

// One tile for Q neighbouring queries. The keys that all of them see are added for all at once;
// those before and behind, at the edge of a window and at the diagonal, for each alone: a key
// that a query does not see is not even multiplied by zero, since it may be anybody's. Keys that
// lie together stay together, whoever else is there.
template <int Q, class T, class O>
void attend_tile(const AttendArgs& a, const AttendState& s, const T& tile, int query) {
  using E = typename T::Element;
  Span spans[Q];
  for (int i = 0; i < Q; i++) spans[i] = span_of(a, query + i, tile.base);
  tile_scores<Q, T, O>(a, s, tile, query, spans);
  int lo = 0, hi = kTile;
  for (int i = 0; i < Q; i++) {
    lo = spans[i].lo > lo ? spans[i].lo : lo;
    hi = spans[i].hi < hi ? spans[i].hi : hi;
    tile_weights<T, O>(s, tile, query + i, spans[i]);
  }
  lo = (lo + kTogether<E> - 1) / kTogether<E> * kTogether<E>;
  hi = hi / kTogether<E> * kTogether<E>;
  hi = hi < lo ? lo : hi;
  for (int i = 0; i < Q; i++)
    add_values<1, T, O>(s, tile, query + i, spans[i].lo, spans[i].hi < lo ? spans[i].hi : lo);
  add_values<Q, T, O>(s, tile, query, lo, hi);
  for (int i = 0; i < Q; i++)
    add_values<1, T, O>(s, tile, query + i, spans[i].lo > hi ? spans[i].lo : hi, spans[i].hi);
}

}  // namespace
