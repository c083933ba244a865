// Attention over the segments of a sequence, and which products a tile is taken with.
//
// One long sequence has few tiles of rows and heads, so segments may be shared out among threads:
// each leaves its sums, m and l among the partials, and whoever is last merges them, in the same
// order and by the same code as where one thread does it all.
//
//   partials: [segments] of | segment [queries][padded] | m | l |
// Included by kernels_impl.h only.
#pragma once
#include "kernels_attention.h"
#include "kernels_attention_words.h"

namespace {

template <class T>
constexpr int most_together() {
  if constexpr (T::kInWords)
    return kMostQueries / T::kParts;
  else
    return kMostQueries;
}

template <int Q, class T, class O>
void attend_queries(const AttendArgs& a, const AttendState& s, T& tile, int query) {
  if constexpr (T::kInWords)
    attend_word_tile<Q>(a, s, tile, query);
  else
    attend_tile<Q, T, O>(a, s, tile, query);
}

template <int Q, class T, class O>
void attend_rest(const AttendArgs& a, const AttendState& s, T& tile, int query, int last) {
  if constexpr (Q > 0) {
    if (last - query == Q) return attend_queries<Q, T, O>(a, s, tile, query);
    attend_rest<Q - 1, T, O>(a, s, tile, query, last);
  }
}

// total = total merged with segment.
inline void merge_segment(const AttendState& s, int query) {
  float m = s.m[query] > s.total_m[query] ? s.m[query] : s.total_m[query];
  float before = s.total_m[query] == kMinusInfinity ? 0.0f : exp2_scalar(s.total_m[query] - m);
  float now = exp2_scalar(s.m[query] - m);
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

template <class T, class O>
void attend_segment(const AttendArgs& a, const AttendState& s, int64_t begin) {
  int64_t end = smaller(begin + kSegment, end_of(a, a.rows * a.heads - 1));
  for (int64_t base = larger(begin, first_of(a, 0) / kTile * kTile); base < end; base += kTile) {
    T tile(a, base, s.decoded);
    int query, last;
    seeing(a, base, base + kTile, query, last);
    constexpr int most = most_together<T>();
    for (; query + most <= last; query += most) attend_queries<most, T, O>(a, s, tile, query);
    attend_rest<most - 1, T, O>(a, s, tile, query, last);
  }
}

inline AttendState state_of(const AttendArgs& a) {
  AttendState s;
  int64_t queries = int64_t{a.rows} * a.heads;
  s.padded = static_cast<int>(a.layout.padded);
  s.value_groups = a.layout.value_groups;
  s.decoded = reinterpret_cast<uint16_t*>(a.scratch);
  int64_t of_tile = hearth::is_coded(a.storage)
                        ? kTile * (a.layout.key_rows + a.layout.padded) / 2 + hearth::kTileSlack
                        : 0;
  s.total = a.scratch + of_tile;
  s.segment = s.total + queries * s.padded;
  s.queries = s.segment + queries * s.padded;
  s.scores = s.queries + queries * s.padded;
  s.m = s.scores + queries * kTile;
  s.l = s.m + queries;
  s.total_m = s.l + queries;
  s.total_l = s.total_m + queries;
  s.query_factors = s.total_l + queries;
  s.weight_factors = s.query_factors + queries;
  s.weights = s.weight_factors + queries * s.value_groups;
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

template <class T, class O>
void reduce_segment(const AttendArgs& a, const AttendState& s, int64_t begin) {
  int first, last;
  seeing(a, begin, begin + kSegment, first, last);
  for (int i = first; i < last; i++) clear(s.segment, s.m, s.l, i, s.padded);
  attend_segment<T, O>(a, s, begin);
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

template <class T, class O>
void attend_as(const AttendArgs& a) {
  AttendState s = state_of(a);
  if constexpr (T::kInWords)
    copy_query_words<T::kParts>(a, s);
  else
    copy_queries<O>(a, s);
  if (a.partials) {
    for (int64_t segment = a.first_segment; segment < a.last_segment; segment++) {
      use_partial(a, s, segment);
      reduce_segment<T, O>(a, s, segment * kSegment);
    }
    return;
  }
  clear_totals(a, s);
  int64_t end = end_of(a, a.rows * a.heads - 1);
  for (int64_t begin = first_of(a, 0) / kSegment * kSegment; begin < end; begin += kSegment) {
    reduce_segment<T, O>(a, s, begin);
    merge_segments(a, s, begin);
  }
  write_totals(a, s);
}

template <class T>
void attend_stored(const AttendArgs& a) {
  a.rounded ? attend_as<T, uint16_t>(a) : attend_as<T, float>(a);
}

// Integer codes by integer products, where float32 ones are not as fast. Which way is taken depends
// on what is stored and on the operation, never on the rows.
template <int BITS, int PARTS>
void attend_words_of(const AttendArgs& a) {
  if (expands_words(a, kMostQueries / PARTS))
    attend_as<WordTile<BITS, PARTS, true>, int16_t>(a);
  else
    attend_as<WordTile<BITS, PARTS, false>, int16_t>(a);
}
template <int PARTS>
bool attend_words_in(const AttendArgs& a) {
  if constexpr (PARTS > kWordParts) {
    return false;
  } else {
    a.storage == HEARTH_KV_INT4 ? attend_words_of<4, PARTS>(a) : attend_words_of<8, PARTS>(a);
    return true;
  }
}
bool attend_words(const AttendArgs& a) {
  if (a.storage != HEARTH_KV_INT8 && a.storage != HEARTH_KV_INT4) return false;
  return a.rounded ? attend_words_in<1>(a) : attend_words_in<2>(a);
}

void attend(const AttendArgs& a) {
  if (a.storage == HEARTH_F32) return attend_as<Tile<float>, float>(a);
  if (a.storage == HEARTH_BF16) return attend_stored<Tile<uint16_t>>(a);
  if (attend_words(a)) return;
  if (a.storage == HEARTH_KV_INT4) return attend_stored<CodeTile<true>>(a);
  attend_stored<CodeTile<false>>(a);
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
