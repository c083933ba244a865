// How keys and values lie in a block, and the products that attention takes with them.
//
// Of 16 neighbouring keys the same element lies in one vector: K is [block_size /
// 16][head_dim][16], V is [block_size][head_dim padded to 16]. In bfloat16 two neighbours lie
// together, so that one instruction can multiply both: elements 2i and 2i + 1 of a key, K
// [block_size / 16][head_dim / 2] [16][2] (a last odd element has a zero beside it), and one
// element of keys 2i and 2i + 1, V [block_size / 2][padded][2]. Included by kernels_impl.h only.
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

// A vector of queries or weights, as products want them; returns what they then stand for.
inline Vec store_operands(float* p, Vec v) {
  vstore(p, v);
  return v;
}
inline Vec store_operands(uint16_t* p, Vec v) {
  return vstore_bf16(p, v);
}

// Elements that lie together.
template <class E>
constexpr int kTogether = sizeof(E) == 2 ? 2 : 1;

// Products of stored elements (E) with queries or weights (O): `kParts` instructions take what lies
// together. A part is loaded for a vector of keys or columns (`load`), or is that of one query in
// all lanes (`all`).
template <class E, class O>
struct Products {  // float32 operands
  static constexpr int kParts = kTogether<E>;
  using Factor = Vec;
  template <int PART>
  static Vec load(const E* p) {
    if constexpr (sizeof(E) == 2)
      return vload_pair<PART>(p);
    else
      return vload(p);
  }
  template <int WHICH>  // of two that lie together this one alone
  static Vec load_one(const E* p) {
    return load<WHICH>(p);
  }
  template <int PART>
  static Vec all(const O* p) {
    if constexpr (sizeof(O) == 2)
      return vset_pair<PART>(p);
    else
      return vset(p[PART]);
  }
  static Vec add(Vec acc, Vec x, Vec y) { return vfma(x, y, acc); }
};

#if defined(HEARTH_PAIR_DOTS)
template <>
struct Products<uint16_t, uint16_t> {
  static constexpr int kParts = 1;
  using Factor = Int;
  template <int>
  static Int load(const uint16_t* p) {
    return iload(p);
  }
  template <int WHICH>
  static Int load_one(const uint16_t* p) {
    return ibits(iload(p), 0, WHICH == 0 ? 0xffff : -0x10000);
  }
  template <int>
  static Int all(const uint16_t* p) {
    int32_t both;
    memcpy(&both, p, 4);
    return iset(both);
  }
  static Vec add(Vec acc, Int x, Int y) { return dot_pairs(acc, x, y); }
};
#endif

template <class E>
void kv_write_as(const KvWriteArgs& a) {
  constexpr int together = kTogether<E>;
  int group = a.offset / kKeyGroup, lane = a.offset % kKeyGroup;
  int padded = (a.head_dim + kKeyGroup - 1) / kKeyGroup * kKeyGroup;
  int key_rows = (a.head_dim + together - 1) / together * together;
  E* k = reinterpret_cast<E*>(a.part) + static_cast<int64_t>(group) * key_rows * kKeyGroup +
         lane * together;
  E* v = reinterpret_cast<E*>(a.part + a.layout.values) +
         static_cast<int64_t>(a.offset / together) * padded * together + a.offset % together;
  if (a.k)
    for (int d = 0; d < key_rows; d++)
      put(k + d / together * together * kKeyGroup + d % together, d < a.head_dim ? a.k[d] : 0.0f);
  if (!a.v) return;
  for (int d = 0; d < padded; d++) put(v + d * together, d < a.head_dim ? a.v[d] : 0.0f);
}

inline const char* key_part(const AttendArgs& a, int64_t key) {
  int64_t block = a.blocks[key / a.block_size - a.first_block];
  return a.pool + block * a.block_stride + a.part_offset;
}

// K of the group of 16 keys with `key`.
template <class E>
inline const E* key_group(const AttendArgs& a, int64_t key) {
  int64_t rows = (a.head_dim + kTogether<E> - 1) / kTogether<E> * kTogether<E>;
  return reinterpret_cast<const E*>(key_part(a, key)) +
         key % a.block_size / kKeyGroup * (rows * kKeyGroup);
}

// V of `key` and of those that lie together with it.
template <class E>
inline const E* values_of(const AttendArgs& a, int64_t key, int padded) {
  return reinterpret_cast<const E*>(key_part(a, key) + a.layout.values) +
         key % a.block_size / kTogether<E> * padded * kTogether<E>;
}

// The keys that a query sees: first_of … end_of − 1.
inline int64_t end_of(const AttendArgs& a, int query) {
  return a.keys > 0 ? a.keys : a.position + query / a.heads + 1;
}
inline int64_t first_of(const AttendArgs& a, int query) {
  if (a.keys > 0) return a.first_key;
  return a.window > 0 ? larger(0, end_of(a, query) - a.window) : 0;
}

// Where the keys of a tile lie, by groups of 16; of a group that no row sees, where the nearest one
// lies that a row does: its scores are masked, and blocks outside may be gone.
template <class E>
struct Tile {
  using Element = E;
  static constexpr bool kScaled = false, kGrouped = false, kInWords = false;
  int64_t base;
  const E* keys[kTile / kKeyGroup];
  const E* values[kTile / kKeyGroup];

  Tile(const AttendArgs& a, int64_t base, uint16_t*) : base(base) {
    int padded = static_cast<int>(a.layout.padded);
    int64_t first = first_of(a, 0), last = end_of(a, a.rows * a.heads - 1) - 1;
    for (int g = 0; g < kTile / kKeyGroup; g++) {
      int64_t key = smaller(larger(base + g * kKeyGroup, first), last) / kKeyGroup * kKeyGroup;
      keys[g] = key_group<E>(a, key);
      values[g] = values_of<E>(a, key, padded);
    }
  }
};

}  // namespace

#include "kernels_kv_codes.h"

namespace {

void kv_write(const KvWriteArgs& a) {
  if (hearth::is_coded(a.storage))
    kv_write_codes(a);
  else if (a.storage == HEARTH_BF16)
    kv_write_as<uint16_t>(a);
  else
    kv_write_as<float>(a);
}

}  // namespace
