// How a step is cut into tiles, and the operations that go row by row; the others are in
// ops_linear.cpp, ops_attention.cpp and ops_experts.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"
#include "quant.h"

namespace hearth {
namespace {

constexpr int kMostTileRows = 8;  // of operations on rows

float bf16_to_float(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

float half_to_float(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, size = h & 0x7fffu;
  uint32_t bits = size >= 0x7c00u ? size << 13 | 0x7f800000u : size << 13;
  float x;
  std::memcpy(&x, &bits, 4);
  if (size < 0x7c00u) x *= 0x1p112f;
  return sign ? -x : x;
}

float scale_at(const hearth_layout& w, const uint8_t* bytes) {
  if (!w.wide) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    return bf16_to_float(half);
  }
  float scale;
  std::memcpy(&scale, bytes, 4);
  return scale;
}

float e4m3_to_float(uint8_t code) {
  int exponent = code >> 3 & 15;
  auto fraction = static_cast<float>(code & 7);
  float size = exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(fraction, -9);
  return code & 0x80 ? -size : size;
}

// One element of a quantized table or panel.
float quantized_element(const hearth_weight& weight, int64_t row, int64_t k) {
  const hearth_layout& w = weight.layout;
  const auto* bytes = static_cast<const uint8_t*>(weight.data);
  int64_t group = k / w.group, column = row % kPanel, within = k % w.group;
  const uint8_t* scale;
  int zero = middle_code(w.bits), code;
  if (w.kind == HEARTH_TABLE) {
    bytes += row * table_row_bytes(w);
    code = bytes[k];
    scale = bytes + num_groups(w.cols, w.group) * w.group + group * scale_bytes(w);
  } else {
    bytes += row / kPanel * quant_panel_bytes(w) + group * group_block_bytes(w);
    scale = bytes + column * scale_bytes(w);
    if (w.zeros) zero = bytes[kPanel * scale_bytes(w) + column];
    code = bytes[group_head_bytes(w) + code_offset(w.bits, within, column)];
    if (w.bits == 4) code = within % 8 < 4 ? code & 15 : code >> 4;
  }
  if (w.fp8) return scale_at(w, scale) * e4m3_to_float(static_cast<uint8_t>(code));
  return scale_at(w, scale) * static_cast<float>(code - zero);
}

float element(const hearth_weight& weight, int64_t row, int64_t k) {
  const hearth_layout& w = weight.layout;
  if (w.bits) return quantized_element(weight, row, k);
  int64_t index = w.kind == HEARTH_LINEAR
                      ? row / kPanel * kPanel * w.cols + k * kPanel + row % kPanel
                      : row * ((w.cols + 15) / 16 * 16) + k;
  if (w.dtype == HEARTH_F16) return half_to_float(static_cast<const uint16_t*>(weight.data)[index]);
  return w.dtype == HEARTH_BF16 ? bf16_to_float(static_cast<const uint16_t*>(weight.data)[index])
                                : static_cast<const float*>(weight.data)[index];
}

}  // namespace

int Model::rows_of(const Buffer& buffer) const {
  if (buffer.rows_kind == HEARTH_ROWS_LOGITS) return plan_->num_logit_rows;
  return buffer.rows_kind == HEARTH_ROWS_MERGED ? plan_->num_tokens / limits_.merge_rows
                                                : plan_->num_tokens;
}

// The buffer whose rows an operation goes through.
int own_buffer(const hearth_op& op) {
  bool in_place = op.kind == HEARTH_OP_ADD || op.kind == HEARTH_OP_ROPE ||
                  op.kind == HEARTH_OP_HEAD_NORM || op.kind == HEARTH_OP_SOFT_CAP ||
                  op.kind == HEARTH_OP_KV_WRITE || op.kind == HEARTH_OP_SAMPLE ||
                  op.kind == HEARTH_OP_ACTIVATE || op.kind == HEARTH_OP_GRID_EMBED ||
                  op.kind == HEARTH_OP_EMIT;
  return in_place ? op.x : op.out;
}

int Model::rows_of(const hearth_op& op) const {
  return rows_of(buffers_[own_buffer(op)]);
}

int Model::tiles_of(const Step& step) const {
  switch (step.form) {
    case Form::kRows:
      return row_tiles(step);
    case Form::kAttend:
      return attend_tiles(ops_[step.op]);
    case Form::kExperts:
      return expert_tiles(ops_[step.op], step.part);
    default:
      return linear_tiles(step);
  }
}

void Model::run_tile(void* self, int stage, int tile, int thread) {
  auto* model = static_cast<Model*>(self);
  const Stage& s = model->stages_[stage];
  for (int i = s.first_step; i < s.last_step; i++) model->run_step(model->steps_[i], tile, thread);
}

void Model::run_step(const Step& step, int tile, int thread) {
  switch (step.form) {
    case Form::kRows:
      return row_tile(step, tile, thread);
    case Form::kAttend:
      return attend_tile(step, tile, thread);
    case Form::kExperts:
      return experts(ops_[step.op], step.part, tile, thread);
    default:
      return linear_tile(step, tile, thread);
  }
}

bool is_row_wise(int32_t kind) {
  return kind != HEARTH_OP_LINEAR && kind != HEARTH_OP_ATTEND && kind != HEARTH_OP_EXPERTS;
}

// Some tiles a thread, so that one that is held up leaves the others something to do.
int Model::rows_a_tile(const Step& step) const {
  if (ops_[step.op + step.fused].kind == HEARTH_OP_SAMPLE) return 1;
  return std::clamp(rows_of(ops_[step.op]) / (4 * limits_.num_threads), 1, kMostTileRows);
}

int Model::row_tiles(const Step& step) const {
  int rows = rows_a_tile(step);
  return (rows_of(ops_[step.op]) + rows - 1) / rows;
}

void Model::row_tile(const Step& step, int tile, int thread) {
  int size = rows_a_tile(step), first = tile * size;
  Rows rows{first, std::min(size, rows_of(ops_[step.op]) - first)};
  for (int i = step.op; i <= step.op + step.fused; i++) run_rows(ops_[i], rows, thread);
}

void Model::run_rows(const hearth_op& op, Rows rows, int thread) {
  auto each = [&](auto&& f) {
    for (int r = rows.first; r < rows.first + rows.count; r++) f(r);
  };
  switch (op.kind) {
    case HEARTH_OP_EMBED:
      return each([&](int r) { embed(op, r); });
    case HEARTH_OP_ANGLES:
      return each([&](int r) { angles(op, r); });
    case HEARTH_OP_NORM:
      return norm(op, rows);
    case HEARTH_OP_QUANTIZE:
      return each([&](int r) { quantize(op, r); });
    case HEARTH_OP_HEAD_NORM:
      return each([&](int r) { head_norm(op, r, 0, op.heads + op.kv_heads); });
    case HEARTH_OP_ROPE:
      return each([&](int r) { rope(op, r, 0, op.heads); });
    case HEARTH_OP_KV_WRITE:
      return each([&](int r) { kv_write(op, r, op.heads, op.heads + 2 * op.kv_heads); });
    case HEARTH_OP_GATE:
      return gate(op, rows);
    case HEARTH_OP_ADD:
      return add(op, rows);
    case HEARTH_OP_SELECT:
      return each([&](int r) { select(op, r); });
    case HEARTH_OP_SOFT_CAP:
      return soft_cap(op, rows);
    case HEARTH_OP_SAMPLE:
      return each([&](int r) { sample(op, r, thread); });
    case HEARTH_OP_ACTIVATE:
      return activate(op, rows);
    case HEARTH_OP_PATCHES:
      return patches(op, rows);
    case HEARTH_OP_GRID_EMBED:
      return each([&](int r) { grid_embed(op, r); });
    case HEARTH_OP_REGROUP:
      return each([&](int r) { regroup(op, r); });
    case HEARTH_OP_EMIT:
      return each([&](int r) { emit(op, r); });
  }
}

// A tied embedding lies in panels of the head: its row is a column of one panel.
void Model::embed(const hearth_op& op, int index) {
  int32_t token = plan_->tokens[index];
  if (token < 0) token = previous_tokens_[static_cast<size_t>(-1 - token)];
  const hearth_weight& table = weights_[op.weight];
  const hearth_layout& w = table.layout;
  float* out = row(op.out, index);
  const float* feature = plan_->features ? plan_->features[index] : nullptr;
  if (feature)
    std::copy(feature, feature + w.cols, out);
  else
    for (int64_t k = 0; k < w.cols; k++) out[k] = op.scale * element(table, token, k);
  // Later operations add to whole rows: what a value that is not finite left behind the width by
  // an earlier step must not reach this one.
  std::fill(out + w.cols, out + buffers_[op.out].stride, 0.0f);
}

// The angle is rounded to float before the cosine is taken, as transformers does.
void Model::angles(const hearth_op& op, int index) {
  int half = op.rotary_dim / 2, k = 0;
  float* out = row(op.out, index);
  for (int section = 0; section < 3; section++) {
    auto position = static_cast<float>(plan_->positions[section * plan_->num_tokens + index]);
    for (int last = k + op.sections[section]; k < last; k++) {
      double angle =
          static_cast<double>(position * inv_freq_[static_cast<size_t>(op.freq_offset + k)]);
      out[k] = static_cast<float>(std::cos(angle)) * op.scale;
      out[half + k] = static_cast<float>(std::sin(angle)) * op.scale;
    }
  }
}

void Model::norm(const hearth_op& op, Rows rows) {
  const Buffer& x = buffers_[op.x];
  NormArgs args{row(op.x, rows.first),
                static_cast<const float*>(weights_[op.weight].data),
                row(op.out, rows.first),
                x.stride,
                x.width,
                x.stride,
                op.eps,
                rows.count};
  if (op.bias >= 0) args.bias = static_cast<const float*>(weights_[op.bias].data);
  args.centered = op.flag != 0;
  kernels_.norm(args);
}

void Model::quantize(const hearth_op& op, int index) {
  quantize_columns(op, index, 0, buffers_[op.out].width, row(op.x, index));
}

void Model::gate(const hearth_op& op, Rows rows) {
  const Buffer &x = buffers_[op.x], &out = buffers_[op.out];
  kernels_.gate({row(op.x, rows.first), x.stride, row(op.out, rows.first), out.stride, out.width,
                 rows.count, op.activation});
}

void Model::add(const hearth_op& op, Rows rows) {
  const Buffer& x = buffers_[op.x];
  kernels_.add(row(op.x, rows.first), row(op.y, rows.first), rows.count * x.stride);
}

void Model::select(const hearth_op& op, int index) {
  std::memcpy(row(op.out, index), row(op.x, plan_->logit_rows[index]),
              static_cast<size_t>(buffers_[op.x].stride) * sizeof(float));
}

void Model::soft_cap(const hearth_op& op, Rows rows) {
  const Buffer& x = buffers_[op.x];
  kernels_.soft_cap(row(op.x, rows.first), op.soft_cap, rows.count * x.stride);
}

// The edits of a row; false where it has none.
static bool row_edits(const hearth_plan& p, int index, RowEdits& out) {
  int32_t count = p.count_start[index], bias = p.bias_start[index];
  out = {p.repetition[index],    p.frequency[index], p.presence[index],
         p.count_tokens + count, p.counts + count,   p.count_start[index + 1] - count,
         p.bias_tokens + bias,   p.biases + bias,    p.bias_start[index + 1] - bias};
  return out.num_counts > 0 || out.num_biases > 0;
}

void Model::sample(const hearth_op& op, int index, int thread) {
  const hearth_plan& p = *plan_;
  float* logits = row(op.x, index);
  RowEdits edits{};
  bool has_edits = p.repetition && row_edits(p, index, edits);
  SamplingRow params{p.temperature[index],
                     p.top_p[index],
                     p.min_p[index],
                     p.top_k[index],
                     p.seed[index],
                     p.position[index],
                     p.choice[index],
                     has_edits ? &edits : nullptr,
                     p.given ? p.given[index] : -1};
  int64_t best = static_cast<int64_t>(index) * p.num_top;
  LogprobsWanted wanted{p.num_logprobs ? p.num_logprobs[index] : 0,
                        result_->top_tokens ? result_->top_tokens + best : nullptr,
                        result_->top_logprobs ? result_->top_logprobs + best : nullptr};
  Sampled sampled = sample_row(kernels_, logits, limits_.vocab_size, params, wanted,
                               sample_scratch_[static_cast<size_t>(thread)]);
  result_->tokens[index] = sampled.token;
  result_->logprobs[index] = sampled.logprob;
  if (result_->ranks) result_->ranks[index] = sampled.rank;
  if (plan_->flags & HEARTH_WANT_HASHES)
    result_->hashes[index] = hash_row(logits, limits_.vocab_size);
  if (plan_->flags & HEARTH_WANT_LOGITS)
    std::memcpy(result_->logits + static_cast<int64_t>(index) * limits_.vocab_size, logits,
                static_cast<size_t>(limits_.vocab_size) * sizeof(float));
}

}  // namespace hearth
