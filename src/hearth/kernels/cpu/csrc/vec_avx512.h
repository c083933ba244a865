// Vector layer: AVX-512 with VNNI, and dot products of bfloat16 where the including unit is
// compiled for them. 16 float lanes. Included by isa_avx512*.cpp only.
#pragma once
// GCC 12 takes the undefined pass-through operand of its own AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = 16;
constexpr int kLinearRows = 6;  // rows × vectors of accumulators that fit the register file
constexpr int kLinearVectors = 4;
constexpr int kNarrowRows = 0;   // no second shape: one row already uses the whole panel
constexpr int kAttendSums = 24;  // accumulators of attention
constexpr int kNarrowVectors = 4;

using Vec = __m512;

inline Vec vzero() {
  return _mm512_setzero_ps();
}
inline Vec vset(float x) {
  return _mm512_set1_ps(x);
}
inline Vec vload(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Vec vload(const uint16_t* p) {  // bfloat16
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline Vec vload(const hearth::Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Of pairs of bfloat16 the first ones (0) or the second ones (1): of 16 pairs, or of one pair in
// all lanes.
template <int WHICH>
inline Vec pair_part(__m512i pairs) {
  return _mm512_castsi512_ps(WHICH == 0 ? _mm512_slli_epi32(pairs, 16)
                                        : _mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)));
}
template <int WHICH>
inline Vec vload_pair(const uint16_t* p) {
  return pair_part<WHICH>(_mm512_loadu_si512(p));
}
template <int WHICH>
inline Vec vset_pair(const uint16_t* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return pair_part<WHICH>(_mm512_set1_epi32(pair));
}
inline void vstore(float* p, Vec v) {
  _mm512_storeu_ps(p, v);
}
// Stores the nearest bfloat16, even of two, and returns it. NaN stays NaN.
inline Vec vstore_bf16(uint16_t* p, Vec v) {
#if defined(__AVX512BF16__)
  __m256i h = (__m256i)_mm512_cvtneps_pbh(v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
  __m512i bits = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, is_nan, bits, _mm512_set1_epi32(0x400000));
  up = _mm512_and_si512(up, _mm512_set1_epi32(-0x10000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
  return _mm512_castsi512_ps(up);
#endif
}
inline Vec vadd(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec vsub(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
inline Vec vmul(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
inline Vec vdiv(Vec a, Vec b) {
  return _mm512_div_ps(a, b);
}
inline Vec vfma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Vec vmax(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec vmin(Vec a, Vec b) {
  return _mm512_min_ps(a, b);
}
// Over the lanes, half by half.
inline float lane_sum(Vec v) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float lane_max(Vec v) {
  __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline Vec vround(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 2^n for integral n in the range of normal numbers.
inline Vec vpow2(Vec n) {
  __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
// Lanes where a < b take x, the others y.
inline Vec vless(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
// Lanes first … last−1 keep a, the others take b.
inline Vec vkeep(Vec a, Vec b, int first, int last) {
  int lo = first < 0 ? 0 : first, hi = last > 16 ? 16 : last;
  uint32_t mask = hi <= lo ? 0u : ((1u << hi) - 1u) & ~((1u << lo) - 1u);
  return _mm512_mask_blend_ps(static_cast<__mmask16>(mask), b, a);
}

// Integers: 16 lanes of 32 bits, or 64 bytes.
using Int = __m512i;

inline Int izero() {
  return _mm512_setzero_si512();
}
inline Int iset(int32_t x) {
  return _mm512_set1_epi32(x);
}
inline Int iload(const void* p) {
  return _mm512_loadu_si512(p);
}
inline void istore(void* p, Int v) {
  _mm512_storeu_si512(p, v);
}
inline Int iload_bytes(const uint8_t* p) {  // one unsigned byte a lane
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Int iload_signed_bytes(const uint8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec vfrom_bits(Int v) {
  return _mm512_castsi512_ps(v);
}
inline Int ito_bits(Vec v) {
  return _mm512_castps_si512(v);
}
// Stores values that bfloat16 holds exactly.
inline void vstore_high(uint16_t* p, Vec v) {
  __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
}
inline Int imul(Int a, Int b) {
  return _mm512_mullo_epi32(a, b);
}
template <int N>
inline Int ishift_left(Int a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
inline Int ishift_right(Int a) {  // zeros come in
  return _mm512_srli_epi32(a, N);
}
// (v & mask) | rest in each 32-bit lane.
inline Int imasked_or(Int v, int32_t mask, Int rest) {
  return _mm512_ternarylogic_epi32(v, iset(mask), rest, 0xea);
}
inline Int low_codes(Int v) {
  return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
inline Int high_codes(Int v) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
// (v >> shift) & mask in each 32-bit lane.
inline Int ibits(Int v, int shift, int mask) {
  return _mm512_and_si512(_mm512_srli_epi32(v, static_cast<unsigned>(shift)), iset(mask));
}
// acc + Σ code · x over the four bytes of a lane; codes unsigned, x signed. Assembly, since the
// compiler would spill the accumulators of an unrolled tile.
template <int BITS>
inline Int idot(Int acc, Int codes, Int x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));
  return acc;
}
// Words: 32 of 16 bits, in pairs. Attention multiplies integer codes by them.
constexpr int kWordParts = 2;  // words of an operand up to which this beats float32
inline Int signed_words(const uint8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Of the low (0) or the high (1) halves of bytes, 8 for zero.
template <int HALF>
inline Int nibble_words(const uint8_t* p) {
  Int both = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  Int code = HALF == 0 ? _mm512_and_si512(both, _mm512_set1_epi16(15)) : _mm512_srli_epi16(both, 4);
  return _mm512_sub_epi16(code, _mm512_set1_epi16(8));
}
// acc + the products of both words of a lane.
inline Int dot_words(Int acc, Int x, Int y) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y));
  return acc;
}
inline Int imax(Int a, Int b) {
  return _mm512_max_epi32(a, b);
}
inline int32_t lane_max(Int v) {
  return _mm512_reduce_max_epi32(v);
}
inline Int iround(Vec v) {
  return _mm512_cvtps_epi32(v);
}
template <int N>
inline Int ishift_right_signed(Int v) {
  return _mm512_srai_epi32(v, N);
}
// A word of each lane: the nearest that there is, or the low bits.
inline void store_words(int16_t* p, Int v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(v));
}
inline void store_low_words(int16_t* p, Int v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}
#if defined(__AVX512BF16__)
#define HEARTH_PAIR_DOTS
// acc + the products of both bfloat16 values of a lane.
inline Vec dot_pairs(Vec acc, Int x, Int y) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y));
  return acc;
}
#endif
// Of 32 codes of keys or values the bfloat16 that each stands for, in their order: signed bytes;
// e4m3; the low and the high halves of bytes, 8 for zero.
#define HEARTH_WORD_DECODERS
inline Int words_of(const uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void decode_int8_words(const uint8_t* p, uint16_t* out) {
  Vec a = _mm512_cvtepi32_ps(iload_signed_bytes(p));
  Vec b = _mm512_cvtepi32_ps(iload_signed_bytes(p + 16));
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(b, a));
#else
  vstore_high(out, a);
  vstore_high(out + 16, b);
#endif
}
inline void decode_e4m3_words(const uint8_t* p, uint16_t* out) {
  // Multiples of 2^−9 below 2^−6, by the low bits of the code.
  const Int small = _mm512_broadcast_i32x4(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  Int code = words_of(p), size = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
  Int value = _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(0x3c00));
  __mmask32 is_small = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8));
  value = _mm512_mask_permutexvar_epi16(value, is_small, code, small);
  Int sign = _mm512_and_si512(_mm512_slli_epi16(code, 8), _mm512_set1_epi16(-0x8000));
  _mm512_storeu_si512(out, _mm512_or_si512(value, sign));
}
inline void decode_int4_words(const uint8_t* p, uint16_t* low, uint16_t* high) {
  // −8 … 7 twice: an index counts by its low five bits, of which the fifth is the neighbour's.
  const Int numbers = _mm512_broadcast_i64x4(_mm256_setr_epi16(
      static_cast<int16_t>(0xc100), static_cast<int16_t>(0xc0e0), static_cast<int16_t>(0xc0c0),
      static_cast<int16_t>(0xc0a0), static_cast<int16_t>(0xc080), static_cast<int16_t>(0xc040),
      static_cast<int16_t>(0xc000), static_cast<int16_t>(0xbf80), 0, 0x3f80, 0x4000, 0x4040, 0x4080,
      0x40a0, 0x40c0, 0x40e0));
  Int both = words_of(p);
  _mm512_storeu_si512(low, _mm512_permutexvar_epi16(both, numbers));
  _mm512_storeu_si512(high, _mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), numbers));
}
inline Vec vfloat(Int v) {
  return _mm512_cvtepi32_ps(v);
}
// Nearest integers as signed bytes; returns the sum of the lanes. |v| ≤ 127.
inline Int istore_bytes(int8_t* p, Vec v) {
  Int n = _mm512_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(n));
  return n;
}
inline Int iadd(Int a, Int b) {
  return _mm512_add_epi32(a, b);
}

}  // namespace
