// KV cache and attention.
//
// Keys are reduced in tiles of 64 and segments of 512 at absolute positions: within a segment by
// online softmax, tile by tile; segments are merged in ascending order. Which keys a tile leaves
// out depends on the row's position and window alone, so prefill and decode give the same bits.
//
// A query is one head of one row. Some neighbouring rows of a sequence go through the keys
// together, several queries for each load of K and V; every query still sees its own keys alone, in
// order.
//
//   scratch: | total [queries][padded] | segment [queries][padded] | scores [queries][64] | m l M L
//   |
//
// One long sequence has few tiles of rows and heads, so segments may be shared out among threads:
// each leaves its sums, m and l among the partials, and whoever is last merges them, in the same
// order and by the same code as where one thread does it all.
//
//   partials: [segments] of | segment [queries][padded] | m | l |
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
  if (a.k)
    for (int d = 0; d < a.head_dim; d++) put(k + d * kKeyGroup, a.k[d]);
  if (!a.v) return;
  for (int d = 0; d < a.head_dim; d++) put(v + d, a.v[d]);
  for (int d = a.head_dim; d < padded; d++) put(v + d, 0.0f);
}

void kv_write(const KvWriteArgs& a) {
  if (a.bf16)
    kv_write_as<uint16_t>(a);
  else
    kv_write_as<float>(a);
}

constexpr int kTileVecs = kTile / kLanes;
constexpr int kScoreVecs = 4;  // vectors of keys at a time
constexpr int kMostQueries = kAttendSums / kScoreVecs;

struct AttendState {
  float *total, *segment, *scores;
  float *m, *l, *total_m, *total_l;
  int padded;
};

// The keys of a tile that a query sees: lanes lo … hi−1.
struct Span {
  int lo, hi;
  bool is_whole() const { return lo <= 0 && hi >= kTile; }
};

inline int64_t end_of(const AttendArgs& a, int query) {
  return a.keys > 0 ? a.keys : a.position + query / a.heads + 1;
}
inline int64_t first_of(const AttendArgs& a, int query) {
  if (a.keys > 0) return a.first_key;
  return a.window > 0 ? larger(0, end_of(a, query) - a.window) : 0;
}
inline Span span_of(const AttendArgs& a, int query, int64_t base) {
  return {static_cast<int>(larger(0, first_of(a, query) - base)),
          static_cast<int>(smaller(kTile, end_of(a, query) - base))};
}
inline const float* query_of(const AttendArgs& a, int query) {
  return a.q + query / a.heads * a.ldq + query % a.heads * a.head_dim;
}

inline const char* key_part(const AttendArgs& a, int64_t key) {
  int64_t block = a.blocks[key / a.block_size - a.first_block];
  return a.pool + block * a.block_stride + a.part_offset;
}

// K of the group of 16 keys with `key`; of the nearest group that any row sees where none does: its
// scores are masked, and blocks outside may be gone.
template <class E>
inline const E* group_of(const AttendArgs& a, int64_t key) {
  int64_t last = end_of(a, a.rows * a.heads - 1) - 1;
  key = smaller(larger(key, first_of(a, 0) / kKeyGroup * kKeyGroup), last);
  return reinterpret_cast<const E*>(key_part(a, key)) +
         key % a.block_size / kKeyGroup * (static_cast<int64_t>(a.head_dim) * kKeyGroup);
}

// scores[query][64] of the tile at `base` for Q queries; lanes outside their spans are −infinity.
template <int Q, class E>
void tile_scores(const AttendArgs& a, const AttendState& s, int64_t base, int query) {
  const float* q[Q];
  unroll<Q>([&](auto i) HEARTH_LAMBDA { q[i.value] = query_of(a, query + i.value); });
  for (int lane = 0; lane < kTile; lane += kScoreVecs * kLanes) {
    const E* k[kScoreVecs];
    unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
      int first = lane + v.value * kLanes;
      k[v.value] = group_of<E>(a, base + first / kKeyGroup * kKeyGroup) + first % kKeyGroup;
    });
    Vec acc[Q][kScoreVecs];
    unroll<Q * kScoreVecs>(
        [&](auto i) HEARTH_LAMBDA { acc[i.value / kScoreVecs][i.value % kScoreVecs] = vzero(); });
    for (int d = 0; d < a.head_dim; d++) {
      Vec keys[kScoreVecs];
      unroll<kScoreVecs>([&](auto v)
                             HEARTH_LAMBDA { keys[v.value] = vload(k[v.value] + d * kKeyGroup); });
      unroll<Q>([&](auto i) HEARTH_LAMBDA {
        Vec qd = vset(q[i.value][d]);
        unroll<kScoreVecs>([&](auto v) HEARTH_LAMBDA {
          acc[i.value][v.value] = vfma(keys[v.value], qd, acc[i.value][v.value]);
        });
      });
    }
    unroll<Q * kScoreVecs>([&](auto i) HEARTH_LAMBDA {
      constexpr int number = i.value / kScoreVecs, v = i.value % kScoreVecs;
      Span span = span_of(a, query + number, base);
      int first = lane + v * kLanes;
      Vec scaled = vmul(acc[number][v], vset(a.scale));
      if (a.soft_cap > 0.0f) scaled = capped(scaled, a.soft_cap);
      if (!span.is_whole())
        scaled = vkeep(scaled, vset(kMinusInfinity), span.lo - first, span.hi - first);
      vstore(s.scores + (query + number) * kTile + first, scaled);
    });
  }
}

// Turns the scores of a query into weights, and brings what was summed before to their scale.
inline void tile_weights(const AttendState& s, int query, Span span) {
  float* scores = s.scores + query * kTile;
  Vec most = vload(scores);
  for (int v = 1; v < kTileVecs; v++) most = vmax(most, vload(scores + v * kLanes));
  float m = lane_max(most), before = s.m[query];
  if (!(m > before)) m = before;
  Vec sum = vzero();
  for (int v = 0; v < kTileVecs; v++) {
    Vec weight = vexp(vsub(vload(scores + v * kLanes), vset(m)));
    if (!span.is_whole())
      weight = vkeep(weight, vzero(), span.lo - v * kLanes, span.hi - v * kLanes);
    vstore(scores + v * kLanes, weight);
    sum = vadd(sum, weight);
  }
  if (m != before && before != kMinusInfinity) {  // else the factor is 1, or there is nothing yet
    float factor = exp_scalar(before - m);
    s.l[query] *= factor;
    float* sums = s.segment + query * s.padded;
    for (int d = 0; d < s.padded; d += kLanes)
      vstore(sums + d, vmul(vload(sums + d), vset(factor)));
  }
  s.l[query] += lane_sum(sum);
  s.m[query] = m;
}

// segment[query] += weights · V over keys first … last−1 of the tile, N vectors from `column`.
template <int Q, int N, class E>
HEARTH_INLINE void add_columns(const AttendArgs& a, const AttendState& s, int query, int column,
                               int64_t base, int first, int last) {
  float* sums = s.segment + query * s.padded + column;
  const float* weights = s.scores + query * kTile;
  Vec acc[Q][N];
  unroll<Q * N>([&](auto i) HEARTH_LAMBDA {
    constexpr int number = i.value / N, n = i.value % N;
    acc[number][n] = vload(sums + number * s.padded + n * kLanes);
  });
  for (int key = first; key < last;) {
    int end = static_cast<int>(smaller(last, key + kKeyGroup - key % kKeyGroup));
    const E* v = reinterpret_cast<const E*>(key_part(a, base + key) + a.value_offset) +
                 (base + key) % a.block_size * s.padded + column;
    for (; key < end; key++, v += s.padded) {
      Vec values[N];
      unroll<N>([&](auto n) HEARTH_LAMBDA { values[n.value] = vload(v + n.value * kLanes); });
      unroll<Q>([&](auto i) HEARTH_LAMBDA {
        Vec weight = vset(weights[i.value * kTile + key]);
        unroll<N>([&](auto n) HEARTH_LAMBDA {
          acc[i.value][n.value] = vfma(values[n.value], weight, acc[i.value][n.value]);
        });
      });
    }
  }
  unroll<Q * N>([&](auto i) HEARTH_LAMBDA {
    constexpr int number = i.value / N, n = i.value % N;
    vstore(sums + number * s.padded + n * kLanes, acc[number][n]);
  });
}

template <int Q, class E>
void add_values(const AttendArgs& a, const AttendState& s, int query, int64_t base, int first,
                int last) {
  if (first >= last) return;
  constexpr int most = Q <= 2 && kAttendSums / Q >= 8 ? 8 : 4;
  int column = 0;
  for (; column + most * kLanes <= s.padded; column += most * kLanes)
    add_columns<Q, most, E>(a, s, query, column, base, first, last);
  for (; column + 2 * kLanes <= s.padded; column += 2 * kLanes)
    add_columns<Q, 2, E>(a, s, query, column, base, first, last);
  for (; column < s.padded; column += kLanes)
    add_columns<Q, 1, E>(a, s, query, column, base, first, last);
}

// One tile for Q neighbouring queries. The keys that all of them see are added for all at once;
// those before and behind, at the edge of a window and at the diagonal, for each alone: a key
// that a query does not see is not even multiplied by zero, since it may be anybody's.
template <int Q, class E>
void attend_tile(const AttendArgs& a, const AttendState& s, int64_t base, int query) {
  tile_scores<Q, E>(a, s, base, query);
  int lo = 0, hi = kTile;
  for (int i = query; i < query + Q; i++) {
    Span span = span_of(a, i, base);
    lo = span.lo > lo ? span.lo : lo;
    hi = span.hi < hi ? span.hi : hi;
    tile_weights(s, i, span);
  }
  hi = hi < lo ? lo : hi;
  for (int i = query; i < query + Q; i++) {
    Span span = span_of(a, i, base);
    add_values<1, E>(a, s, i, base, span.lo, span.hi < lo ? span.hi : lo);
  }
  add_values<Q, E>(a, s, query, base, lo, hi);
  for (int i = query; i < query + Q; i++) {
    Span span = span_of(a, i, base);
    add_values<1, E>(a, s, i, base, span.lo > hi ? span.lo : hi, span.hi);
  }
}

template <int Q, class E>
void attend_rest(const AttendArgs& a, const AttendState& s, int64_t base, int query, int last) {
  if constexpr (Q > 0) {
    if (last - query == Q) return attend_tile<Q, E>(a, s, base, query);
    attend_rest<Q - 1, E>(a, s, base, query, last);
  }
}

// total = total merged with segment.
inline void merge_segment(const AttendState& s, int query) {
  float m = s.m[query] > s.total_m[query] ? s.m[query] : s.total_m[query];
  float before = s.total_m[query] == kMinusInfinity ? 0.0f : exp_scalar(s.total_m[query] - m);
  float now = exp_scalar(s.m[query] - m);
  for (int d = 0; d < s.padded; d += kLanes) {
    float* total = s.total + query * s.padded + d;
    Vec old = vmul(vload(total), vset(before));
    vstore(total, vfma(vload(s.segment + query * s.padded + d), vset(now), old));
  }
  s.total_l[query] = s.total_l[query] * before + s.l[query] * now;
  s.total_m[query] = m;
}

inline void clear(float* sums, float* m, float* l, int query, int padded) {
  memset(sums + query * padded, 0, sizeof(float) * static_cast<size_t>(padded));
  m[query] = kMinusInfinity;
  l[query] = 0.0f;
}

// Queries first … last−1 see a key of [begin, end): rows follow each other, so they are neighbours.
inline void seeing(const AttendArgs& a, int64_t begin, int64_t end, int& first, int& last) {
  last = a.rows * a.heads;
  for (first = 0; first < last && end_of(a, first) <= begin;) first += a.heads;
  while (last > first && first_of(a, last - 1) >= end) last -= a.heads;
}

template <class E>
void attend_segment(const AttendArgs& a, const AttendState& s, int64_t begin) {
  int64_t end = smaller(begin + kSegment, end_of(a, a.rows * a.heads - 1));
  for (int64_t base = larger(begin, first_of(a, 0) / kTile * kTile); base < end; base += kTile) {
    int query, last;
    seeing(a, base, base + kTile, query, last);
    for (; query + kMostQueries <= last; query += kMostQueries)
      attend_tile<kMostQueries, E>(a, s, base, query);
    attend_rest<kMostQueries - 1, E>(a, s, base, query, last);
  }
}

inline AttendState state_of(const AttendArgs& a) {
  AttendState s;
  int64_t queries = int64_t{a.rows} * a.heads;
  s.padded = (a.head_dim + kKeyGroup - 1) / kKeyGroup * kKeyGroup;
  s.total = a.scratch;
  s.segment = s.total + queries * s.padded;
  s.scores = s.segment + queries * s.padded;
  s.m = s.scores + queries * kTile;
  s.l = s.m + queries;
  s.total_m = s.l + queries;
  s.total_l = s.total_m + queries;
  return s;
}

// Where a segment's results are kept for the merge.
inline void use_partial(const AttendArgs& a, AttendState& s, int64_t segment) {
  int64_t queries = int64_t{a.rows} * a.heads;
  int64_t place = segment - first_of(a, 0) / kSegment;
  s.segment = a.partials + place * hearth::attend_partial_floats(queries, a.head_dim);
  s.m = s.segment + queries * s.padded;
  s.l = s.m + queries;
}

template <class E>
void reduce_segment(const AttendArgs& a, const AttendState& s, int64_t begin) {
  int first, last;
  seeing(a, begin, begin + kSegment, first, last);
  for (int i = first; i < last; i++) clear(s.segment, s.m, s.l, i, s.padded);
  attend_segment<E>(a, s, begin);
}

inline void clear_totals(const AttendArgs& a, const AttendState& s) {
  for (int i = 0; i < a.rows * a.heads; i++) clear(s.total, s.total_m, s.total_l, i, s.padded);
}

inline void merge_segments(const AttendArgs& a, const AttendState& s, int64_t begin) {
  int first, last;
  seeing(a, begin, begin + kSegment, first, last);
  for (int i = first; i < last; i++) merge_segment(s, i);
}

inline void write_totals(const AttendArgs& a, const AttendState& s) {
  for (int i = 0; i < a.rows * a.heads; i++) {
    Vec inverse = vset(1.0f / s.total_l[i]);
    float* total = s.total + i * s.padded;
    for (int d = 0; d < s.padded; d += kLanes) vstore(total + d, vmul(vload(total + d), inverse));
    memcpy(a.out + i / a.heads * a.ldo + i % a.heads * a.head_dim, total,
           sizeof(float) * static_cast<size_t>(a.head_dim));
  }
}

template <class E>
void attend_as(const AttendArgs& a) {
  AttendState s = state_of(a);
  if (a.partials) {
    for (int64_t segment = a.first_segment; segment < a.last_segment; segment++) {
      use_partial(a, s, segment);
      reduce_segment<E>(a, s, segment * kSegment);
    }
    return;
  }
  clear_totals(a, s);
  int64_t end = end_of(a, a.rows * a.heads - 1);
  for (int64_t begin = first_of(a, 0) / kSegment * kSegment; begin < end; begin += kSegment) {
    reduce_segment<E>(a, s, begin);
    merge_segments(a, s, begin);
  }
  write_totals(a, s);
}

void attend(const AttendArgs& a) {
  if (a.bf16)
    attend_as<uint16_t>(a);
  else
    attend_as<float>(a);
}

void attend_merge(const AttendArgs& a) {
  AttendState s = state_of(a);
  clear_totals(a, s);
  int64_t end = end_of(a, a.rows * a.heads - 1);
  for (int64_t segment = first_of(a, 0) / kSegment; segment * kSegment < end; segment++) {
    use_partial(a, s, segment);
    merge_segments(a, s, segment * kSegment);
  }
  write_totals(a, s);
}

}  // namespace
