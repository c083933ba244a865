// Vector layer: any processor, by the compiler's vector extension. 4 float lanes, no fused
// multiply-add (a software one would cost a hundred times as much), so its bits differ from those
// of the other instruction sets. Included by isa_generic.cpp only.
#pragma once
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = 4;
constexpr int kLinearRows = 3;
constexpr int kLinearVectors = 4;
constexpr int kNarrowRows = 0;
constexpr int kAttendSums = 8;  // accumulators of attention
constexpr int kNarrowVectors = 4;

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));

inline Vec vset(float x) {
  return Vec{x, x, x, x};
}
inline Vec vzero() {
  return vset(0.0f);
}
inline Vec vload(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline Vec vload(const uint16_t* p) {  // bfloat16
  IntVec bits = {p[0] << 16, p[1] << 16, p[2] << 16, p[3] << 16};
  return reinterpret_cast<Vec>(bits);
}
// Exponent and fraction moved into place give 2^−112 of the value, subnormals too.
inline Vec vload(const hearth::Half* p) {
  IntVec h = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  IntVec size = h & 0x7fff, bits = size << 13;
  Vec value = reinterpret_cast<Vec>(bits) * 0x1p112f;
  IntVec finite = reinterpret_cast<IntVec>(value);
  IntVec is_special = size >= 0x7c00;  // infinity, NaN
  IntVec all = (is_special & (bits | 0x7f800000)) | (~is_special & finite);
  return reinterpret_cast<Vec>(all | (h & 0x8000) << 16);
}
// Of pairs of bfloat16 the first ones (0) or the second ones (1): of 4 pairs, or of one pair in all
// lanes.
template <int WHICH>
inline Vec vload_pair(const uint16_t* p) {
  IntVec pairs;
  memcpy(&pairs, p, sizeof pairs);
  return reinterpret_cast<Vec>(WHICH == 0 ? pairs << 16 : pairs & -0x10000);
}
template <int WHICH>
inline Vec vset_pair(const uint16_t* p) {
  int32_t bits = p[WHICH] << 16;
  return reinterpret_cast<Vec>(IntVec{bits, bits, bits, bits});
}
// Stores the nearest bfloat16, even of two, and returns it. NaN stays NaN.
inline Vec vstore_bf16(uint16_t* p, Vec v) {
  auto bits = reinterpret_cast<IntVec>(v);
  IntVec up = (bits + ((bits >> 16) & 1) + 0x7fff);
  up = (v == v ? up : bits | 0x400000) & -0x10000;
  for (int i = 0; i < 4; i++) p[i] = static_cast<uint16_t>(up[i] >> 16);
  return reinterpret_cast<Vec>(up);
}
inline void vstore(float* p, Vec v) {
  memcpy(p, &v, sizeof v);
}
inline Vec vadd(Vec a, Vec b) {
  return a + b;
}
inline Vec vsub(Vec a, Vec b) {
  return a - b;
}
inline Vec vmul(Vec a, Vec b) {
  return a * b;
}
inline Vec vdiv(Vec a, Vec b) {
  return a / b;
}
inline Vec vfma(Vec a, Vec b, Vec c) {
  return a * b + c;
}
inline Vec vmax(Vec a, Vec b) {
  return a > b ? a : b;
}
inline Vec vmin(Vec a, Vec b) {
  return a < b ? a : b;
}
// Over the lanes, half by half.
inline float lane_sum(Vec v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}
inline float lane_max(Vec v) {
  float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
// Nearest integer of |a| < 2^22: adding 1.5 · 2^23 leaves no fraction bits.
inline Vec vround(Vec a) {
  return (a + 12582912.0f) - 12582912.0f;
}
inline Vec vpow2(Vec n) {
  IntVec e = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return reinterpret_cast<Vec>(e);
}
inline Vec vless(Vec a, Vec b, Vec x, Vec y) {
  return a < b ? x : y;
}
inline Vec vkeep(Vec a, Vec b, int first, int last) {
  IntVec lane = {0, 1, 2, 3};
  IntVec mask = (lane >= first) & (lane < last);
  return mask ? a : b;
}

// Integers: 4 lanes of 32 bits, or 16 bytes.
using Int = IntVec;

inline Int izero() {
  return Int{0, 0, 0, 0};
}
inline Int iset(int32_t x) {
  return Int{x, x, x, x};
}
inline Int iload(const void* p) {
  Int v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void istore(void* p, Int v) {
  memcpy(p, &v, sizeof v);
}
inline Int iload_bytes(const uint8_t* p) {
  return Int{p[0], p[1], p[2], p[3]};
}
inline Int iload_signed_bytes(const uint8_t* p) {
  auto* s = reinterpret_cast<const int8_t*>(p);
  return Int{s[0], s[1], s[2], s[3]};
}
inline Vec vfrom_bits(Int v) {
  return reinterpret_cast<Vec>(v);
}
inline Int ito_bits(Vec v) {
  return reinterpret_cast<Int>(v);
}
// Stores values that bfloat16 holds exactly.
inline void vstore_high(uint16_t* p, Vec v) {
  auto bits = reinterpret_cast<IntVec>(v);
  for (int i = 0; i < 4; i++) p[i] = static_cast<uint16_t>(bits[i] >> 16);
}
inline Int imul(Int a, Int b) {
  return a * b;
}
template <int N>
inline Int ishift_left(Int a) {
  return a << N;
}
template <int N>
inline Int ishift_right(Int a) {  // zeros come in
  return (a >> N) & iset(static_cast<int32_t>(0xffffffffu >> N));
}
// (v & mask) | rest in each 32-bit lane.
inline Int imasked_or(Int v, int32_t mask, Int rest) {
  return (v & iset(mask)) | rest;
}
inline Int iadd(Int a, Int b) {
  return a + b;
}
inline Int low_codes(Int v) {
  return v & iset(0x0f0f0f0f);
}
inline Int high_codes(Int v) {
  return (v >> 4) & iset(0x0f0f0f0f);
}
inline Int ibits(Int v, int shift, int mask) {
  return (v >> shift) & iset(mask);
}
template <int BITS>
inline Int idot(Int acc, Int codes, Int x) {
  for (int byte = 0; byte < 32; byte += 8)
    acc += ibits(codes, byte, 255) * ((x << (24 - byte)) >> 24);
  return acc;
}
// Words: 8 of 16 bits, in pairs. Attention multiplies integer codes by them.
constexpr int kWordParts = 1;  // words of an operand up to which this beats float32
typedef int16_t WordVec __attribute__((vector_size(16)));
inline Int signed_words(const uint8_t* p) {
  WordVec words;
  for (int i = 0; i < 8; i++) words[i] = static_cast<int8_t>(p[i]);
  return reinterpret_cast<Int>(words);
}
// Of the low (0) or the high (1) halves of bytes, 8 for zero.
template <int HALF>
inline Int nibble_words(const uint8_t* p) {
  WordVec words;
  for (int i = 0; i < 8; i++)
    words[i] = static_cast<int16_t>((HALF == 0 ? p[i] & 15 : p[i] >> 4) - 8);
  return reinterpret_cast<Int>(words);
}
// acc + the products of both words of a lane.
inline Int dot_words(Int acc, Int x, Int y) {
  return acc + ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
}
inline Int imax(Int a, Int b) {
  return a > b ? a : b;
}
inline int32_t lane_max(Int v) {
  int32_t a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
template <int N>
inline Int ishift_right_signed(Int v) {
  return v >> N;
}
// A word of each lane: the nearest that there is, or the low bits.
inline void store_words(int16_t* p, Int v) {
  for (int i = 0; i < 4; i++)
    p[i] = static_cast<int16_t>(v[i] > 32767 ? 32767 : v[i] < -32768 ? -32768 : v[i]);
}
inline void store_low_words(int16_t* p, Int v) {
  for (int i = 0; i < 4; i++) p[i] = static_cast<int16_t>(v[i]);
}
inline Int iround(Vec v) {
  return __builtin_convertvector(vround(v), Int);
}
inline Vec vfloat(Int v) {
  return __builtin_convertvector(v, Vec);
}
inline Int istore_bytes(int8_t* p, Vec v) {
  Int n = __builtin_convertvector(vround(v), Int);
  for (int i = 0; i < 4; i++) p[i] = static_cast<int8_t>(n[i]);
  return n;
}

}  // namespace
