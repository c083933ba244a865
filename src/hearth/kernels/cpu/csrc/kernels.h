// The table of kernels of one instruction set, and the arguments of each kernel.
//
// A kernel computes one output tile, on one thread, without allocation. Rows are float32 with a
// stride that is a multiple of kRowPad floats; the lanes behind a row's width are zero and stay
// zero. No kernel's reduction order depends on the number of rows, on threads or on other rows.
#pragma once
#include <stdint.h>

#include "kv_layout.h"

namespace hearth {

constexpr int kPanel = 64;           // output columns a weight panel
constexpr int kRowPad = 64;          // floats to which a row is padded
constexpr int kKeyGroup = 16;        // neighbouring keys that lie in one vector of the K part
constexpr int kLinearTileRows = 96;  // rows that a linear tile takes at a time: with 512 columns of
                                     // K they stay in the second-level cache
constexpr int kTile = 64;            // keys a softmax tile, at absolute positions
constexpr int kAttendRows = 8;       // rows of a sequence that go through their keys together, or
                                     // more where a key/value head has few query heads
constexpr int kTileSlack = 16;       // floats behind a tile of codes that may be written
constexpr int kSegment = 512;  // keys a segment that is reduced on its own, at absolute positions

// An IEEE half, by its bits; bfloat16 are plain uint16_t.
struct Half {
  uint16_t bits;
};

// Row i of x is at x + i · ldx, or at x + x_offsets[i] where there are offsets; likewise of out.
struct LinearArgs {
  const float* x;  // [rows, ldx]
  int64_t ldx;
  const void* weight;  // one panel, [cols][64]
  int dtype;           // of its elements: HEARTH_*
  int64_t cols;
  const float* bias;  // [64] or null
  float* out;         // [rows, ldo], first column of the panel
  int64_t ldo;
  int rows;
  const int64_t* x_offsets = nullptr;    // [rows] or null
  const int64_t* out_offsets = nullptr;  // [rows], all different, or null
  bool accumulate = false;               // sums begin with what stands in `out`
};

// A panel of a quantized weight against quantized rows, or against float rows.
struct QuantLinearArgs {
  const char* x;  // rows; float* in the exact mode
  int64_t ldx;    // bytes
  const uint8_t* panel;
  int64_t cols;
  int bits, group;
  bool zeros, wide, fp8;
  bool residual;      // the rows have residuals
  const float* bias;  // [64] or null
  float* out;         // [rows, ldo]
  int64_t ldo;
  int rows;
  uint8_t* scratch;  // kQuantScratchBytes
};

struct QuantizeArgs {
  const float* x;  // one row, readable to a multiple of 64
  int64_t cols;
  int group;
  char* out;
  char* residuals;  // of the same groups, or null: none are kept
};

// The codes of one group of one row of a weight.
struct FitArgs {
  const float* x;  // [count], readable and zero to a multiple of 32
  int count;
  int bits;
  bool zeros, fp8;
  int candidates;
  uint8_t* codes;  // [count padded to 32]
  uint16_t scale;  // bfloat16
  uint8_t zero;
  bool is_finite;
};

// Scratch of a linear tile on quantized weights: its sums, and unpacked codes of some groups.
constexpr int64_t kQuantSumBytes = int64_t{kLinearTileRows} * kPanel * 4;
constexpr int64_t kUnpackBytes = 64 * 1024;
constexpr int64_t kQuantScratchBytes = kQuantSumBytes + kUnpackBytes;

struct NormArgs {
  const float* x;
  const float* weight;
  float* out;
  int64_t stride;  // of x and out
  int64_t width, padded;
  float eps;
  int rows;
  const float* bias = nullptr;
  bool centered = false;  // the mean is taken off first
};

struct HeadNormArgs {
  float* x;             // [heads, head_dim] of one row, normalized in place
  const float* weight;  // [head_dim], readable to a multiple of 64
  int heads, head_dim;
  float eps;
};

struct GateArgs {
  const float* x;
  int64_t ldx;
  float* out;
  int64_t ldo;
  int64_t width;
  int rows;
  int activation;  // HEARTH_ACT_*
};

// Neighbouring rows of a sequence, and the query heads that share a key/value head.
struct AttendArgs {
  const float* q;  // [rows, ldq], of each row [heads, head_dim]
  float* out;      // [rows, ldo], of each row [heads, head_dim]
  int64_t ldq, ldo;
  int rows, heads, head_dim;
  int64_t position;  // absolute index of the first row; a row sees the keys up to its own
  int window;        // the last so many of them; 0: all
  float scale;
  float soft_cap;         // 0: none
  int storage;            // HEARTH_F32, HEARTH_BF16, HEARTH_KV_*
  bool rotated;           // queries are rotated as stored keys are
  bool rounded;           // but with F32: queries and weights are rounded to bfloat16
  const int32_t* blocks;  // ids; blocks[0] holds the keys from first_block · block_size on
  int64_t first_block;
  int block_size;
  const char* pool;      // of the group
  int64_t block_stride;  // bytes a block
  int64_t part_offset;   // bytes from a block's begin to this (layer, kv head)
  KvLayout layout;
  float* scratch;  // attend_scratch_floats(rows · heads, head_dim, storage)
  // Null: all keys that the rows see are reduced, and `out` is written. Else those of segments
  // first_segment … last_segment−1 (absolute), whose results go to their places among
  // attend_partial_floats(rows · heads, head_dim) for each segment that any row sees.
  float* partials;
  int64_t first_segment, last_segment;
  int64_t first_key, keys;  // keys > 0: every row sees first_key … keys − 1, whatever its position
};

struct KvWriteArgs {
  const float* k;  // [head_dim]; null: the token's key is left as it is
  const float* v;  // likewise
  int head_dim;
  int storage;
  bool rotated;
  char* part;  // of (block, layer, kv head)
  KvLayout layout;
  int block_size;
  int offset;  // of the token within the block
};

struct SampleArgs {
  const float* logits;  // [padded], lanes behind vocab_size zero
  int64_t vocab_size;
  float maximum;  // of the logits
};

struct Kernels {
  const char* name;
  void (*linear)(const LinearArgs&);
  void (*quant_linear)(const QuantLinearArgs&);
  void (*quant_linear_exact)(const QuantLinearArgs&);
  void (*quantize)(const QuantizeArgs&);
  void (*fit)(FitArgs&);
  void (*norm)(const NormArgs&);
  void (*head_norm)(const HeadNormArgs&);
  void (*gate)(const GateArgs&);
  void (*attend)(const AttendArgs&);
  void (*attend_merge)(const AttendArgs&);  // partials of all segments → out
  void (*kv_write)(const KvWriteArgs&);
  void (*add)(float* x, const float* y, int64_t count);
  void (*activate)(float* x, int64_t count, int activation);  // count is a multiple of 16
  // x += weight · y, `count` values, a multiple of 16.
  void (*add_scaled)(float* x, const float* y, float weight, int64_t count);
  // x = cap · tanh(x / cap); count is a multiple of 16.
  void (*soft_cap)(float* x, float cap, int64_t count);
  // Largest value; count > 0.
  float (*maximum)(const float* x, int64_t count);
  // sum over i of exp((x[i] − maximum) · inv_temperature); `out` takes the terms when not null.
  double (*exp_sum)(const float* x, int64_t count, float maximum, float inv_temperature,
                    float* out);
};

// Of codes there is a tile as bfloat16 or words, softmax weights for each group of columns that
// shares a scale, and powers of two of those and of the queries.
inline int64_t attend_scratch_floats(int64_t queries, int head_dim, int storage) {
  KvLayout l = kv_layout(storage, kTile, head_dim);
  int64_t floats = queries * (3 * l.padded + kTile + 4);
  if (is_coded(storage))
    floats += kTile * (l.key_rows + l.padded) / 2 + kTileSlack +
              queries * (l.value_groups * (kTile + 1) + 1);
  return floats;
}

// The results of one segment: sums of values, largest scores, sums of weights.
inline int64_t attend_partial_floats(int64_t queries, int64_t head_dim) {
  return queries * ((head_dim + 15) / 16 * 16 + 2);
}

extern const Kernels kKernelsGeneric;
#if !defined(HEARTH_ONLY_GENERIC)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx512Bf16;
#endif

}  // namespace hearth
