// C ABI of the CPU kernel library: flat arrays and strides, no C++ types, nothing thrown across.
//
// A model handle owns scratch rows, the KV pools and a thread team; weights stay the caller's and
// must outlive it. All functions but hearth_pack_* and hearth_fill_* are for one thread at a time
// per handle. Codes: 0 success, otherwise an HEARTH_E_* value; hearth_last_error() then holds a
// message of the calling thread.
#pragma once
#include <stdint.h>

#if defined(__GNUC__)
#define HEARTH_API __attribute__((visibility("default")))
#else
#define HEARTH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define HEARTH_ABI_VERSION 15

enum {
  HEARTH_OK = 0,
  HEARTH_E_ARGUMENT = 1,
  HEARTH_E_MEMORY = 2,
  HEARTH_E_PLAN = 3,
  HEARTH_E_SYSTEM = 4
};
enum { HEARTH_F32 = 0, HEARTH_BF16 = 1, HEARTH_F16 = 2 };
// Keys and values may also be codes, with scales of each token and head; see kv_layout.h. FP8 is
// e4m3.
enum { HEARTH_KV_INT8 = 3, HEARTH_KV_INT4 = 4, HEARTH_KV_FP8 = 5 };
enum { HEARTH_LINEAR = 0, HEARTH_TABLE = 1, HEARTH_VECTOR = 2 };
// Of an encoder: IMAGE rows are all those of an image, and stay from run to run; MERGED ones are
// the run's rows joined by merge_rows.
enum {
  HEARTH_ROWS_TOKENS = 0,
  HEARTH_ROWS_LOGITS = 1,
  HEARTH_ROWS_IMAGE = 2,
  HEARTH_ROWS_MERGED = 3
};
enum { HEARTH_PAIR_HALF = 0, HEARTH_PAIR_INTERLEAVED = 1 };
enum {
  HEARTH_ACT_SILU = 0,
  HEARTH_ACT_GELU_TANH = 1,
  HEARTH_ACT_GELU = 2,
  HEARTH_ACT_QUICK_GELU = 3,
  HEARTH_NUM_ACTIVATIONS = 4
};
enum { HEARTH_SCORE_SOFTMAX = 0, HEARTH_SCORE_SIGMOID = 1 };
// Flags of ATTEND: not causal, all rows of an image see each other; queries and softmax weights are
// rounded to bfloat16 where keys and values are stored in it, or as codes.
enum { HEARTH_ATTEND_IMAGE = 1, HEARTH_ATTEND_ROUNDED = 2 };
enum { HEARTH_WANT_HASHES = 1, HEARTH_WANT_LOGITS = 2 };
// Whether the keys of a sequence are split among threads: as the step needs it; never; always.
enum { HEARTH_SPLIT_AUTO = 0, HEARTH_SPLIT_NEVER = 1, HEARTH_SPLIT_ALWAYS = 2 };

enum {
  HEARTH_OP_EMBED = 1,
  HEARTH_OP_ANGLES,
  HEARTH_OP_NORM,
  HEARTH_OP_LINEAR,
  HEARTH_OP_ROPE,
  HEARTH_OP_KV_WRITE,
  HEARTH_OP_ATTEND,
  HEARTH_OP_GATE,
  HEARTH_OP_ADD,
  HEARTH_OP_SELECT,
  HEARTH_OP_SAMPLE,
  HEARTH_OP_HEAD_NORM,
  HEARTH_OP_SOFT_CAP,
  HEARTH_OP_EXPERTS,
  HEARTH_OP_QUANTIZE,
  HEARTH_OP_ACTIVATE,
  HEARTH_OP_PATCHES,
  HEARTH_OP_GRID_EMBED,
  HEARTH_OP_REGROUP,
  HEARTH_OP_EMIT,
};

// One operation. x, y, out number buffers; weight and bias number weights, −1: none.
typedef struct hearth_op {
  int32_t kind;
  int32_t x, y, out;
  int32_t weight, bias;  // HEAD_NORM: weight of the query heads, of the key heads
  int32_t group, layer;
  int32_t heads, kv_heads, head_dim, window;
  int32_t rotary_dim, pairing, freq_offset;  // freq_offset: into hearth_model_desc.inv_freq
  int32_t sections[3];                       // frequencies that follow positions row 0, 1, 2
  int32_t activation;                        // HEARTH_ACT_*
  float eps, scale;
  float soft_cap;  // ATTEND: 0 is none
  // EXPERTS: x rows, y router logits, weight gate and up of each expert, bias of the router's
  // ranks, scale of the experts' weights; the rest is here.
  int32_t routes, gated;  // buffers
  int32_t down;           // weight
  int32_t experts, top_k;
  int32_t expert_groups, top_groups;
  int32_t scoring, normalize;  // HEARTH_SCORE_*; 0 or 1
  int32_t gated_codes;         // buffer of `gated` as int8 rows, or −1
  int32_t fused;               // so many of the following operations run in the same tiles
  int32_t flag;                // NORM: 1 centered; ATTEND: HEARTH_ATTEND_*; REGROUP: 1 interleaved
  int32_t count;  // GRID_EMBED: rows of a side of the table; REGROUP: rows that are joined
} hearth_op;

typedef struct hearth_buffer {
  int32_t width;     // floats a row that mean something; rows are padded to a multiple of 64
  int32_t rows;      // HEARTH_ROWS_*
  int32_t group;     // 0: float rows; else `width` int8 values a row, scaled in groups of so many
  int32_t is_tile;   // 1: has no memory, since fused operations keep it within their tiles
  int32_t residual;  // 1: int8 rows keep what rounding left, where it is much; see quant.h
} hearth_buffer;

// How a weight is packed; kernels/packing.py and quant.h say where its elements lie.
typedef struct hearth_layout {
  int32_t kind, dtype;  // dtype where bits is 0
  int64_t rows, cols;
  int64_t stack;  // matrices of this shape behind each other, each padded to whole panels
  int32_t bits;   // 0, 4 or 8
  int32_t group;  // columns that share a scale; a multiple of 32
  int32_t zeros;  // 1: zero points stand beside the scales
  int32_t wide;   // 1: scales are float, else bfloat16
  int32_t fp8;    // 1: codes of 8 bits are e4m3 numbers, without a zero point
} hearth_layout;

typedef struct hearth_weight {
  const void* data;  // 64-byte aligned
  hearth_layout layout;
} hearth_weight;

typedef struct hearth_group {
  int32_t layers, kv_heads, head_dim;
  int32_t window;  // tokens that a row sees; 0: all; −1, of an encoder: those of its own window
  int64_t blocks;
} hearth_group;

typedef struct hearth_model_desc {
  int32_t abi_version;
  int32_t num_ops, num_buffers, num_weights, num_groups, num_inv_freq;
  const hearth_op* ops;
  const hearth_buffer* buffers;
  const hearth_weight* weights;
  const hearth_group* groups;
  const float* inv_freq;
  int32_t vocab_size;
  int32_t max_tokens, max_sequences, max_logit_rows, max_model_len;
  int32_t block_size;
  int32_t kv_dtype;    // HEARTH_F32, HEARTH_BF16 or HEARTH_KV_*
  int32_t kv_rotated;  // of HEARTH_KV_INT4, 1: keys are rotated before they become codes
  int32_t max_image_rows, merge_rows;  // of an encoder; 0 and 1: there are no such buffers
  int32_t num_threads;
  int32_t attend_split;  // HEARTH_SPLIT_*
  const char* isa;       // "auto" or a name of hearth_isas()
} hearth_model_desc;

// The arrays of core/step.py; shapes there. T tokens, S sequences, R logits rows, G groups.
typedef struct hearth_plan {
  int32_t num_tokens, num_sequences, num_logit_rows, num_copies, num_blocks, flags;
  int32_t num_top;  // K; most best tokens that a row wants
  const int32_t* tokens;
  const int32_t* positions;
  const int32_t* row_start;
  const int32_t* context;
  const int32_t* slots;
  const int32_t* blocks;
  const int32_t* block_start;
  const int32_t* first_block;
  const int32_t* logit_rows;
  const int32_t* copies;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const uint64_t* seed;
  const int32_t* position;
  const int32_t* choice;
  const int32_t* num_logprobs;  // [R]; −1 none, 0 the token's own, k ≤ K of the k best too; or null
  const int32_t* given;         // [R]; ≥ 0: this token is scored, none is sampled; or null
  // LogitEdits; all null where no row has any. Offsets of row r: start[r] … start[r+1]−1.
  const float* repetition;  // [R]
  const float* frequency;
  const float* presence;
  const int32_t* count_start;  // [R+1]
  const int32_t* count_tokens;
  const int32_t* counts;
  const int32_t* bias_start;  // [R+1]
  const int32_t* bias_tokens;
  const float* biases;
  const float* const*
      features;  // [T]; a row of an encoder's output instead of the token's, or null
  // Of an encoder: one sequence, whose rows context[0] … of image_rows are computed.
  int32_t image_rows;
  int32_t grid_height, grid_width;  // patches
  const float* patches;             // [T, width of the buffer that takes them]; or null
  // Windows of an image: rows window_start[i] … window_start[i + 1] − 1, all of its rows in order.
  int32_t num_windows;
  const int32_t* window_start;  // [num_windows + 1]; null where no group has windows of its own
} hearth_plan;

// Written by hearth_run; hashes and logits only when the plan's flags ask for them, the best tokens
// when num_top > 0: row r has num_logprobs[r] of them.
typedef struct hearth_result {
  int32_t* tokens;      // [R]
  float* logprobs;      // [R]; NaN where num_logprobs is −1
  uint64_t* hashes;     // [R] or null
  float* logits;        // [R, vocab_size] or null
  int32_t* top_tokens;  // [R, K] or null
  float* top_logprobs;  // [R, K] or null
  int32_t* ranks;   // [R]; of given tokens, 1 the best; 0 where one is sampled; null: no `given`
  float* features;  // [image_rows / merge_rows, width of the emitted buffer], or null
} hearth_result;

typedef struct hearth_model hearth_model;

HEARTH_API int32_t hearth_abi_version(void);
HEARTH_API const char* hearth_last_error(void);

// Names of the instruction sets that this processor and this build share, the best first, with
// blanks between them.
HEARTH_API const char* hearth_isas(void);

HEARTH_API int32_t hearth_model_create(const hearth_model_desc* desc, hearth_model** out);
HEARTH_API void hearth_model_destroy(hearth_model* model);

// Binds thread i of the model to the logical CPU cpus[i] [num_threads], once and for good; the
// caller of hearth_run is bound while it is there. A thread whose core another process takes then
// finishes what it has begun on the core of one that waits for it. HEARTH_E_SYSTEM where Linux
// refuses.
HEARTH_API int32_t hearth_model_bind(hearth_model* model, const int32_t* cpus);

// Runs operations first … last−1 of the program on a plan (last < 0: to the end).
HEARTH_API int32_t hearth_run(hearth_model* model, int32_t first, int32_t last,
                              const hearth_plan* plan, const hearth_result* result);

// Copies the rows of a buffer as they stand after the last run, [rows, width], of quantized rows
// what they stand for; for tests.
HEARTH_API int32_t hearth_read_buffer(hearth_model* model, int32_t buffer, int32_t rows,
                                      float* out);

// Sets rows of a buffer of float32, [rows, width], for the next run; for measuring single
// operations.
HEARTH_API int32_t hearth_write_buffer(hearth_model* model, int32_t buffer, int32_t rows,
                                       const float* in);

// Packs `num_rows` rows of a row-major source, [num_rows, cols], into rows first_row … of `dst`.
// Any source type among F32, BF16, F16 → the same (vectors: F32) or codes. `candidates`: scales
// that are tried for each group of codes beside the plain one; which one wins may differ between
// instruction sets in the last bit of an error, so `isa` (null: the best) is part of what is
// packed. Padding is not written: `dst` is zeroed memory. HEARTH_E_ARGUMENT also for codes of
// values that are not finite, and for values that F16 does not hold.
HEARTH_API int32_t hearth_pack(void* dst, const hearth_layout* layout, const void* src,
                               int32_t src_dtype, int64_t first_row, int64_t num_rows,
                               int32_t candidates, const char* isa);

// What hearth_pack makes of `num_rows` rows of the source, plainly: codes [num_rows, cols padded to
// whole groups], and for each group of a row a scale (bfloat16) and a zero point, [num_rows,
// groups].
HEARTH_API int32_t hearth_quantize(const hearth_layout* layout, const void* src, int32_t src_dtype,
                                   int64_t num_rows, int32_t candidates, const char* isa,
                                   uint8_t* codes, uint16_t* scales, uint8_t* zeros);

// Packs rows that are codes already, as hearth_quantize lays them out but with scales as float;
// they are rounded where the layout's are not wide. `zeros` null: there are none. HEARTH_E_ARGUMENT
// also for a code that the bits do not hold, and for a scale that is not finite.
HEARTH_API int32_t hearth_pack_codes(void* dst, const hearth_layout* layout, const uint8_t* codes,
                                     const float* scales, const uint8_t* zeros, int64_t first_row,
                                     int64_t num_rows);

// Fills rows first_row … of a packed weight with base + amplitude · u, u uniform in [−1, 1), a pure
// function of (seed, row, column); codes are uniform, with scales that give the amplitude.
HEARTH_API int32_t hearth_fill_random(void* dst, const hearth_layout* layout, int64_t first_row,
                                      int64_t num_rows, uint64_t seed, float base, float amplitude);

#ifdef __cplusplus
}
#endif
