// Where keys, values and their scales lie within the part of a block that one layer and key/value
// head has:
//
//   | K | scales of K [block_size] | V | scales of V [value_groups][block_size] |
//
// Floats have no scales. Codes of 8 bits have one bfloat16 scale a token for K and one for V; of 4
// bits V has one for each kScaleColumns columns. Tokens share none, and what belongs to a block
// lies within it, so that a copied block is whole. (Functions are static: a copy that was compiled
// for AVX-512 must not be the one that the linker keeps for all.)
#pragma once
#include <stdint.h>

#include "hearth.h"

namespace hearth {

constexpr int kScaleColumns = 64;   // of V in 4 bits
constexpr int kMostCodedDim = 512;  // elements of a head that is stored as codes

static inline bool is_coded(int storage) {
  return storage >= HEARTH_KV_INT8;
}

struct KvLayout {
  int64_t key_rows, padded;  // elements of a key, of a value, with what pads them
  int64_t key_scales, values, value_scales, bytes;  // from the begin of the part
  int value_groups;
};

static inline KvLayout kv_layout(int storage, int64_t block_size, int64_t head_dim) {
  auto up = [](int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; };
  // Bits an element, and elements that lie together.
  int bits = storage == HEARTH_F32 ? 32 : storage == HEARTH_BF16 ? 16 : 8;
  int together = storage == HEARTH_F32 ? 1 : 2;
  if (storage == HEARTH_KV_INT4) bits = 4, together = 4;
  KvLayout l;
  l.key_rows = up(head_dim, together);
  l.padded = up(head_dim, 16);
  l.value_groups =
      storage == HEARTH_KV_INT4 ? static_cast<int>(up(l.padded, kScaleColumns) / kScaleColumns) : 1;
  int64_t scale_bytes = is_coded(storage) ? 2 * block_size : 0;
  l.key_scales = block_size * l.key_rows * bits / 8;
  l.values = l.key_scales + scale_bytes;
  l.value_scales = l.values + block_size * l.padded * bits / 8;
  l.bytes = l.value_scales + l.value_groups * scale_bytes;
  return l;
}

}  // namespace hearth
