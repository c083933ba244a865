// Vector layer: AVX2 with FMA. 8 float lanes. Included by isa_avx2.cpp only.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = 8;
constexpr int kLinearRows = 6;
constexpr int kLinearVectors = 2;
constexpr int kNarrowRows = 1;  // one row takes the whole panel at once: eight chains
constexpr int kAttendSums = 8;  // accumulators of attention
constexpr int kNarrowVectors = 8;

using Vec = __m256;

inline Vec vzero() {
  return _mm256_setzero_ps();
}
inline Vec vset(float x) {
  return _mm256_set1_ps(x);
}
inline Vec vload(const float* p) {
  return _mm256_loadu_ps(p);
}
inline Vec vload(const uint16_t* p) {  // bfloat16
  __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline Vec vload(const hearth::Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Of pairs of bfloat16 the first ones (0) or the second ones (1): of 8 pairs, or of one pair in all
// lanes.
template <int WHICH>
inline Vec pair_part(__m256i pairs) {
  return _mm256_castsi256_ps(WHICH == 0 ? _mm256_slli_epi32(pairs, 16)
                                        : _mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)));
}
template <int WHICH>
inline Vec vload_pair(const uint16_t* p) {
  return pair_part<WHICH>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <int WHICH>
inline Vec vset_pair(const uint16_t* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return pair_part<WHICH>(_mm256_set1_epi32(pair));
}
// Stores the nearest bfloat16, even of two, and returns it. NaN stays NaN.
inline Vec vstore_bf16(uint16_t* p, Vec v) {
  __m256i bits = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  up = _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  up = _mm256_and_si256(up, _mm256_set1_epi32(-0x10000));
  __m256i high = _mm256_srli_epi32(up, 16);
  __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
  return _mm256_castsi256_ps(up);
}
inline void vstore(float* p, Vec v) {
  _mm256_storeu_ps(p, v);
}
inline Vec vadd(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec vsub(Vec a, Vec b) {
  return _mm256_sub_ps(a, b);
}
inline Vec vmul(Vec a, Vec b) {
  return _mm256_mul_ps(a, b);
}
inline Vec vdiv(Vec a, Vec b) {
  return _mm256_div_ps(a, b);
}
inline Vec vfma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec vmax(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec vmin(Vec a, Vec b) {
  return _mm256_min_ps(a, b);
}
// Over the lanes, half by half.
inline float lane_sum(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float lane_max(Vec v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline Vec vround(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec vpow2(Vec n) {
  __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
inline Vec vless(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Vec vkeep(Vec a, Vec b, int first, int last) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane);  // lane < first
  __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane);  // lane < last
  __m256i mask = _mm256_andnot_si256(below, inside);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask));
}

// Integers: 8 lanes of 32 bits, or 32 bytes.
using Int = __m256i;

inline Int izero() {
  return _mm256_setzero_si256();
}
inline Int iset(int32_t x) {
  return _mm256_set1_epi32(x);
}
inline Int iload(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline void istore(void* p, Int v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
inline Int iload_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Int iload_signed_bytes(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Vec vfrom_bits(Int v) {
  return _mm256_castsi256_ps(v);
}
inline Int ito_bits(Vec v) {
  return _mm256_castps_si256(v);
}
// Stores values that bfloat16 holds exactly.
inline void vstore_high(uint16_t* p, Vec v) {
  __m256i high = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
  __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
}
inline Int imul(Int a, Int b) {
  return _mm256_mullo_epi32(a, b);
}
template <int N>
inline Int ishift_left(Int a) {
  return _mm256_slli_epi32(a, N);
}
template <int N>
inline Int ishift_right(Int a) {  // zeros come in
  return _mm256_srli_epi32(a, N);
}
// (v & mask) | rest in each 32-bit lane.
inline Int imasked_or(Int v, int32_t mask, Int rest) {
  return _mm256_or_si256(_mm256_and_si256(v, iset(mask)), rest);
}
inline Int iadd(Int a, Int b) {
  return _mm256_add_epi32(a, b);
}
inline Int low_codes(Int v) {
  return _mm256_and_si256(v, _mm256_set1_epi8(15));
}
inline Int high_codes(Int v) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}
inline Int ibits(Int v, int shift, int mask) {
  return _mm256_and_si256(_mm256_srli_epi32(v, shift), iset(mask));
}
// Pairs of products of 4-bit codes stay far below what 16 bits hold; those of 8-bit codes do not,
// and are multiplied as 16-bit numbers, even bytes and odd ones.
template <int BITS>
inline Int idot(Int acc, Int codes, Int x) {
  if constexpr (BITS == 4) {
    Int pairs = _mm256_maddubs_epi16(codes, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  } else {
    Int even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                 _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    Int odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
  }
}
// Words: 16 of 16 bits, in pairs. Attention multiplies integer codes by them.
constexpr int kWordParts = 1;  // words of an operand up to which this beats float32
inline Int signed_words(const uint8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Of the low (0) or the high (1) halves of bytes, 8 for zero.
template <int HALF>
inline Int nibble_words(const uint8_t* p) {
  Int both = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  Int code = HALF == 0 ? _mm256_and_si256(both, _mm256_set1_epi16(15)) : _mm256_srli_epi16(both, 4);
  return _mm256_sub_epi16(code, _mm256_set1_epi16(8));
}
// acc + the products of both words of a lane.
inline Int dot_words(Int acc, Int x, Int y) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(x, y));
}
inline Int imax(Int a, Int b) {
  return _mm256_max_epi32(a, b);
}
inline int32_t lane_max(Int v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
inline Int iround(Vec v) {
  return _mm256_cvtps_epi32(v);
}
template <int N>
inline Int ishift_right_signed(Int v) {
  return _mm256_srai_epi32(v, N);
}
// A word of each lane: the nearest that there is, or the low bits.
inline void store_words(int16_t* p, Int v) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v, v), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(words));
}
inline void store_low_words(int16_t* p, Int v) {
  store_words(p, _mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16));
}
inline Vec vfloat(Int v) {
  return _mm256_cvtepi32_ps(v);
}
inline Int istore_bytes(int8_t* p, Vec v) {
  Int n = _mm256_cvtps_epi32(v);
  Int words = _mm256_packs_epi32(n, n);
  Int bytes = _mm256_packs_epi16(words, words);
  int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
  memcpy(p, &low, 4);
  memcpy(p + 4, &high, 4);
  return n;
}

}  // namespace
