// Keys and values as codes: how floats become codes and a scale, and how a tile of codes becomes
// bfloat16, which holds every code exactly.
//
// A value is scale · code. The scale is bfloat16, of one token's key or value in one head (V in 4
// bits: of kScaleColumns columns): most / 127 and most / 448 (e4m3) of the largest magnitude, in 4
// bits the value of largest magnitude gets the code −8. What is not finite makes the scale NaN; all
// zero (or below kLeastCoded) makes it 0. Codes are round(x / scale), nearest even.
//
// 8-bit codes lie as bfloat16 would, a byte for each of its elements. In 4 bits a byte holds two
// elements of one token, so that threads that write neighbouring tokens never share a byte: of K
// elements d (low) and d + key_rows / 2, of V columns c (low) and c + padded / 2.
// Included by kernels_kv.h only.
#pragma once

namespace {

using hearth::kMostCodedDim;
using hearth::kScaleColumns;

constexpr float kLeastCoded = 1e-30f;
constexpr float kNaN = __builtin_nanf("");

template <int HALF>
inline void butterflies(float* x, int count) {
  for (int i = 0; i < count; i += 2 * HALF)
    for (int j = 0; j < HALF; j++) {
      float a = x[i + j], b = x[i + j + HALF];
      x[i + j] = a + b;
      x[i + j + HALF] = a - b;
    }
}

// x = H x / √n for each n neighbours, H the Walsh-Hadamard matrix and n the largest power of two
// that divides `count`: orthogonal, so that scores of rotated queries and keys are those of plain
// ones, but an outlier is spread over the head and 4 bits suffice. (QuaRot, arXiv 2404.00456.)
inline void rotate(float* x, int count) {
  int n = count & -count;
  if (n >= 2) butterflies<1>(x, count);
  if (n >= 4) butterflies<2>(x, count);
  if (n >= 8) butterflies<4>(x, count);
  if (n >= 16) butterflies<8>(x, count);
  for (int half = 16; half < n; half *= 2)
    for (int i = 0; i < count; i += 2 * half)
      for (int j = i; j < i + half; j += kLanes) {
        Vec a = vload(x + j), b = vload(x + j + half);
        vstore(x + j, vadd(a, b));
        vstore(x + j + half, vsub(a, b));
      }
  float factor = 1.0f / __builtin_sqrtf(static_cast<float>(n));
  for (int i = 0; i < count; i++) x[i] *= factor;
}

// The value of largest magnitude (of equal ones the positive one), NaN where any is not finite.
inline float largest(const float* x, int count) {
  float low = 0.0f, high = 0.0f;
  bool is_finite = true;
  for (int i = 0; i < count; i++) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    is_finite &= __builtin_fabsf(x[i]) <= 3.402823466e38f;
  }
  if (!is_finite) return kNaN;
  return -low > high ? low : high;
}

inline float from_bf16(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

struct CodeRange {
  float of_largest, low, high;
};
inline CodeRange code_range(int storage) {
  if (storage == HEARTH_KV_INT4) return {-8.0f, -8.0f, 7.0f};
  return storage == HEARTH_KV_FP8 ? CodeRange{448.0f, -448.0f, 448.0f}
                                  : CodeRange{127.0f, -127.0f, 127.0f};
}

// x becomes x / scale, within the range of codes (of integers rounded to them); returns the scale.
// `x` is readable to whole vectors.
inline uint16_t to_codes(float* x, int count, int storage) {
  CodeRange range = code_range(storage);
  float most = largest(x, count), size = __builtin_fabsf(most);
  if (storage != HEARTH_KV_INT4) most = size;
  bool is_plain = size >= kLeastCoded;
  uint16_t bits = to_bf16(is_plain ? most / range.of_largest : most != most ? kNaN : 0.0f);
  if (!is_plain) {
    memset(x, 0, sizeof(float) * static_cast<size_t>(count));
    return bits;
  }
  Vec inverse = vset(1.0f / from_bf16(bits));
  for (int i = 0; i < count; i += kLanes) {
    Vec code = vmul(vload(x + i), inverse);
    if (storage != HEARTH_KV_FP8) code = vround(code);
    vstore(x + i, vmin(vset(range.high), vmax(vset(range.low), code)));
  }
  return bits;
}

// Nearest e4m3 (OCP 8-bit floating point: no infinity, 448 the largest), even of two; |x| ≤ 448.
inline uint8_t to_e4m3(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t sign = bits >> 24 & 0x80, size = bits & 0x7fffffffu;
  if (size < 0x3c800000u) {  // below 2^−6: a multiple of 2^−9
    float steps = __builtin_fabsf(x) * 512.0f + 8388608.0f;
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(steps - 8388608.0f));
  }
  size += 0x7ffffu + (size >> 20 & 1);
  return static_cast<uint8_t>(sign | ((size >> 20) - (120u << 3)));
}

inline uint8_t to_byte(float code, int storage) {
  if (storage == HEARTH_KV_FP8) return to_e4m3(code);
  return static_cast<uint8_t>(static_cast<int8_t>(code));
}
// Two 4-bit codes, −8 as 0.
inline uint8_t to_nibbles(float low, float high) {
  return static_cast<uint8_t>((static_cast<int>(low) + 8) | (static_cast<int>(high) + 8) << 4);
}

inline void put_scale(char* p, uint16_t scale) {
  memcpy(p, &scale, sizeof scale);
}

// `x` [kMostCodedDim] is overwritten; zero behind the head's width.
inline void write_key_codes(const KvWriteArgs& a, float* x) {
  const auto& l = a.layout;
  int rows = static_cast<int>(l.key_rows), lane = a.offset % kKeyGroup;
  if (a.rotated) rotate(x, a.head_dim);
  put_scale(a.part + l.key_scales + 2 * a.offset, to_codes(x, a.head_dim, a.storage));
  bool is_int4 = a.storage == HEARTH_KV_INT4;
  int bytes = is_int4 ? rows / 2 : rows;  // a token
  auto* out = reinterpret_cast<uint8_t*>(a.part) + a.offset / kKeyGroup * bytes * kKeyGroup;
  for (int d = 0; d < bytes; d++)
    out[d / 2 * (2 * kKeyGroup) + lane * 2 + d % 2] =
        is_int4 ? to_nibbles(x[d], x[d + bytes]) : to_byte(x[d], a.storage);
}

inline void write_value_codes(const KvWriteArgs& a, float* x) {
  const auto& l = a.layout;
  bool is_int4 = a.storage == HEARTH_KV_INT4;
  int columns = is_int4 ? kScaleColumns : a.head_dim;
  for (int g = 0; g < l.value_groups; g++) {
    int first = g * columns, count = static_cast<int>(smaller(columns, a.head_dim - first));
    put_scale(a.part + l.value_scales + 2 * (g * a.block_size + a.offset),
              to_codes(x + first, count, a.storage));
  }
  int padded = static_cast<int>(l.padded), bytes = is_int4 ? padded / 2 : padded;
  auto* out =
      reinterpret_cast<uint8_t*>(a.part + l.values) + a.offset / 2 * bytes * 2 + a.offset % 2;
  for (int d = 0; d < bytes; d++)
    out[2 * d] = is_int4 ? to_nibbles(x[d], x[d + bytes]) : to_byte(x[d], a.storage);
}

inline void kv_write_codes(const KvWriteArgs& a) {
  float x[kMostCodedDim + kPanel];
  auto fill = [&](const float* from) {
    memcpy(x, from, sizeof(float) * static_cast<size_t>(a.head_dim));
    memset(x + a.head_dim, 0, sizeof(float) * kPanel);
  };
  if (a.k) {
    fill(a.k);
    write_key_codes(a, x);
  }
  if (!a.v) return;
  fill(a.v);
  write_value_codes(a, x);
}

// e4m3 in each lane; 0x7f and 0xff, which are never written, are as good as any.
inline Vec from_e4m3(Int code) {
  Int size = ibits(code, 0, 0x7f), sign = ishift_left<24>(ibits(code, 0, 0x80));
  Vec steps = vfloat(size);
  Vec normal = vfrom_bits(iadd(ishift_left<20>(size), iset(120 << 23)));
  Vec value = vless(steps, vset(8.0f), vmul(steps, vset(0.001953125f)), normal);
  return vfrom_bits(iadd(ito_bits(value), sign));
}

// Asks for what is read a tile later, `ahead` bytes from `p`, where that begins a cache line of its
// own. One line with every few products: of a burst of requests the processor drops most (measured
// on Zen 5, codes of 64 keys at once: no faster than without; so spread: 2.4 times as fast), and
// what fetches ahead by itself does not cross pages.
constexpr int kLine = 64;
template <bool TO_FIRST_LEVEL>
HEARTH_INLINE void fetch(const void* p, int64_t ahead) {
  __builtin_prefetch(static_cast<const char*>(p) + ahead, 0, TO_FIRST_LEVEL ? 3 : 2);
}

// `count` bytes, a multiple of 16, as bfloat16 in the same order; in 4 bits the low codes of all,
// then the high ones.
HEARTH_INLINE void decode_int4(const uint8_t* codes, int count, uint16_t* out) {
  int i = 0;
#if defined(HEARTH_WORD_DECODERS)
  for (; i + 32 <= count; i += 32) decode_int4_words(codes + i, out + i, out + count + i);
#endif
  for (; i < count; i += kLanes) {
    Int both = iload_bytes(codes + i);
    vstore_high(out + i, vsub(vfloat(ibits(both, 0, 15)), vset(8.0f)));
    vstore_high(out + count + i, vsub(vfloat(ibits(both, 4, 15)), vset(8.0f)));
  }
}
HEARTH_INLINE void decode_fp8(const uint8_t* codes, int count, uint16_t* out) {
  int i = 0;
#if defined(HEARTH_WORD_DECODERS)
  for (; i + 32 <= count; i += 32) decode_e4m3_words(codes + i, out + i);
#endif
  for (; i < count; i += kLanes) vstore_high(out + i, from_e4m3(iload_bytes(codes + i)));
}
HEARTH_INLINE void decode_int8(const uint8_t* codes, int count, uint16_t* out) {
  int i = 0;
#if defined(HEARTH_WORD_DECODERS)
  for (; i + 32 <= count; i += 32) decode_int8_words(codes + i, out + i);
#endif
  for (; i < count; i += kLanes) vstore_high(out + i, vfloat(iload_signed_bytes(codes + i)));
}
inline void decode(const uint8_t* codes, int count, int storage, uint16_t* out, int64_t ahead) {
  for (int i = 0; i < count; i += 2 * kLine, codes += 2 * kLine) {
    int some = static_cast<int>(smaller(count - i, 2 * kLine));
    fetch<false>(codes, ahead);
    fetch<false>(codes + kLine, ahead);
    storage == HEARTH_KV_FP8 ? decode_fp8(codes, some, out + i) : decode_int8(codes, some, out + i);
  }
}

// K and V of 16 neighbouring keys as bfloat16, laid out as stored bfloat16 is.
inline void decode_keys(const AttendArgs& a, const uint8_t* codes, int64_t ahead, uint16_t* out) {
  int rows = static_cast<int>(a.layout.key_rows);
  if (a.storage != HEARTH_KV_INT4) return decode(codes, rows * kKeyGroup, a.storage, out, ahead);
  decode_int4(codes, rows / 2 * kKeyGroup, out);
}
inline void decode_values(const AttendArgs& a, const uint8_t* codes, int64_t ahead, uint16_t* out) {
  int padded = static_cast<int>(a.layout.padded);
  if (a.storage != HEARTH_KV_INT4) return decode(codes, kKeyGroup * padded, a.storage, out, ahead);
  for (int pair = 0; pair < kKeyGroup / 2; pair++)
    decode_int4(codes + pair * padded, padded, out + pair * 2 * padded);
}

// Where codes and scales of a tile lie, by groups of 16 keys; of a group that no row sees, where
// the nearest one lies that a row does.
struct CodePlaces {
  int64_t base;
  const uint8_t* key_codes[kTile / kKeyGroup];
  const uint8_t* value_codes[kTile / kKeyGroup];
  const uint16_t* key_scales[kTile / kKeyGroup];    // [16]
  const uint16_t* value_scales[kTile / kKeyGroup];  // [groups][16], `group_step` between them
  int group_step;
  // Bytes from codes to those of a tile later; 0 behind the last one.
  int64_t keys_ahead[kTile / kKeyGroup], values_ahead[kTile / kKeyGroup];
  bool is_repeated[kTile / kKeyGroup];  // the group is the one before

  CodePlaces(const AttendArgs& a, int64_t base) : base(base), group_step(a.block_size) {
    int64_t first = first_of(a, 0), last = end_of(a, a.rows * a.heads - 1) - 1, before = -1;
    for (int g = 0; g < kTile / kKeyGroup; g++) {
      int64_t key = smaller(larger(base + g * kKeyGroup, first), last) / kKeyGroup * kKeyGroup;
      is_repeated[g] = key == before;
      before = key;
      place(a, g, key);
      const uint8_t *keys = key_codes[g], *values = value_codes[g];
      int64_t later = key + kTile <= last ? key + kTile : key;
      keys_ahead[g] = codes_of(a, later) - keys;
      values_ahead[g] = codes_of(a, later, true) - values;
    }
  }

  void place(const AttendArgs& a, int g, int64_t key) {
    const char* part = key_part(a, key);
    int64_t offset = key % a.block_size;
    key_codes[g] = codes_of(a, key);
    value_codes[g] = codes_of(a, key, true);
    key_scales[g] = reinterpret_cast<const uint16_t*>(part + a.layout.key_scales) + offset;
    value_scales[g] = reinterpret_cast<const uint16_t*>(part + a.layout.value_scales) + offset;
  }

  // Of the group of 16 keys with `key`.
  static const uint8_t* codes_of(const AttendArgs& a, int64_t key, bool is_value = false) {
    const auto& l = a.layout;
    int64_t of_all = is_value ? l.value_scales - l.values : l.key_scales;  // of a block
    int64_t of_group = of_all * kKeyGroup / a.block_size;
    const char* p = key_part(a, key) + (is_value ? l.values : 0);
    return reinterpret_cast<const uint8_t*>(p) + key % a.block_size / kKeyGroup * of_group;
  }
};

// As Tile, of codes: 64 keys are taken apart once for all queries that look at them, into memory.
template <bool GROUPED>
struct CodeTile : CodePlaces {
  using Element = uint16_t;
  static constexpr bool kScaled = true, kGrouped = GROUPED, kInWords = false;
  const uint16_t* keys[kTile / kKeyGroup];
  const uint16_t* values[kTile / kKeyGroup];

  CodeTile(const AttendArgs& a, int64_t base, uint16_t* decoded) : CodePlaces(a, base) {
    int key_size = static_cast<int>(a.layout.key_rows) * kKeyGroup;
    int value_size = static_cast<int>(a.layout.padded) * kKeyGroup;
    uint16_t* decoded_values = decoded + kTile / kKeyGroup * key_size;
    for (int g = 0; g < kTile / kKeyGroup; g++) {
      if (is_repeated[g]) {
        keys[g] = keys[g - 1], values[g] = values[g - 1];
        continue;
      }
      keys[g] = decoded + g * key_size;
      values[g] = decoded_values + g * value_size;
      decode_keys(a, key_codes[g], keys_ahead[g], decoded + g * key_size);
      decode_values(a, value_codes[g], values_ahead[g], decoded_values + g * value_size);
    }
  }
};

}  // namespace
