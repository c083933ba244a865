// The operations of a program: how each is cut into tiles, and which kernel computes a tile.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"
#include "quant.h"

namespace hearth {
namespace {

constexpr int kSimpleTileRows = 8;  // rows a tile of cheap operations

float bf16_to_float(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// One element of a quantized table or panel.
float quantized_element(const hearth_weight& weight, int64_t row, int64_t k) {
  const hearth_layout& w = weight.layout;
  const auto* bytes = static_cast<const uint8_t*>(weight.data);
  int64_t group = k / w.group, column = row % kPanel, within = k % w.group;
  uint16_t scale;
  int zero = middle_code(w.bits), code;
  if (w.kind == HEARTH_TABLE) {
    bytes += row * table_row_bytes(w);
    code = bytes[k];
    std::memcpy(&scale, bytes + num_groups(w.cols, w.group) * w.group + group * kScaleBytes, 2);
  } else {
    bytes += row / kPanel * quant_panel_bytes(w) + group * group_block_bytes(w);
    std::memcpy(&scale, bytes + column * kScaleBytes, 2);
    if (w.zeros) zero = bytes[kPanel * kScaleBytes + column];
    code = bytes[group_head_bytes(w) + code_offset(w.bits, within, column)];
    if (w.bits == 4) code = within % 8 < 4 ? code & 15 : code >> 4;
  }
  return bf16_to_float(scale) * static_cast<float>(code - zero);
}

float element(const hearth_weight& weight, int64_t row, int64_t k) {
  const hearth_layout& w = weight.layout;
  if (w.bits) return quantized_element(weight, row, k);
  int64_t index = w.kind == HEARTH_LINEAR
                      ? row / kPanel * kPanel * w.cols + k * kPanel + row % kPanel
                      : row * ((w.cols + 15) / 16 * 16) + k;
  return w.dtype == HEARTH_BF16 ? bf16_to_float(static_cast<const uint16_t*>(weight.data)[index])
                                : static_cast<const float*>(weight.data)[index];
}

// Rotates elements a and b by one angle; products and sums are rounded one by one.
void rotate(float& a, float& b, float cosine, float sine) {
  float x = a, y = b;
  a = x * cosine - y * sine;
  b = y * cosine + x * sine;
}

}  // namespace

int Model::rows_of(const Buffer& buffer) const {
  return buffer.rows_kind == HEARTH_ROWS_LOGITS ? plan_->num_logit_rows : plan_->num_tokens;
}

int Model::row_tiles(const hearth_op& op, int rows_a_tile) const {
  bool in_place = op.kind == HEARTH_OP_ADD || op.kind == HEARTH_OP_ROPE ||
                  op.kind == HEARTH_OP_HEAD_NORM || op.kind == HEARTH_OP_SOFT_CAP;
  int buffer = in_place ? op.x : op.out;
  return (rows_of(buffers_[buffer]) + rows_a_tile - 1) / rows_a_tile;
}

int Model::tiles_of(const hearth_op& op, int part) const {
  switch (op.kind) {
    case HEARTH_OP_EXPERTS:
      return expert_tiles(op, part);
    case HEARTH_OP_LINEAR:
      return static_cast<int>((weights_[op.weight].layout.rows + kPanel - 1) / kPanel) *
             row_tiles(op, kLinearTileRows);
    case HEARTH_OP_ATTEND:
      return static_cast<int>(attend_tiles_.size()) * op.kv_heads;
    case HEARTH_OP_KV_WRITE:
      return plan_->num_tokens;
    case HEARTH_OP_SAMPLE:
      return plan_->num_logit_rows;
    case HEARTH_OP_NORM:
    case HEARTH_OP_GATE:
    case HEARTH_OP_ADD:
    case HEARTH_OP_SOFT_CAP:
      return row_tiles(op, kSimpleTileRows);
    default:
      return row_tiles(op, 1);
  }
}

void Model::run_tile(void* self, int stage, int tile, int thread) {
  auto* model = static_cast<Model*>(self);
  const Stage& s = model->stages_[stage];
  for (int i = s.first_step; i < s.last_step; i++) {
    const Step& step = model->steps_[i];
    model->run_op(model->ops_[step.op], step.part, tile, thread);
  }
}

void Model::run_op(const hearth_op& op, int part, int tile, int thread) {
  switch (op.kind) {
    case HEARTH_OP_EMBED:
      return embed(op, tile);
    case HEARTH_OP_ANGLES:
      return angles(op, tile);
    case HEARTH_OP_NORM:
      return norm(op, tile);
    case HEARTH_OP_LINEAR:
      return linear(op, tile, thread);
    case HEARTH_OP_QUANTIZE:
      return quantize(op, tile);
    case HEARTH_OP_HEAD_NORM:
      return head_norm(op, tile);
    case HEARTH_OP_ROPE:
      return rope(op, tile);
    case HEARTH_OP_KV_WRITE:
      return kv_write(op, tile);
    case HEARTH_OP_ATTEND:
      return attend(op, tile, thread);
    case HEARTH_OP_GATE:
      return gate(op, tile);
    case HEARTH_OP_EXPERTS:
      return experts(op, part, tile, thread);
    case HEARTH_OP_ADD:
      return add(op, tile);
    case HEARTH_OP_SELECT:
      return select(op, tile);
    case HEARTH_OP_SOFT_CAP:
      return soft_cap(op, tile);
    case HEARTH_OP_SAMPLE:
      return sample(op, tile, thread);
  }
}

// A tied embedding lies in panels of the head: its row is a column of one panel.
void Model::embed(const hearth_op& op, int index) {
  int32_t token = plan_->tokens[index];
  if (token < 0) token = previous_tokens_[static_cast<size_t>(-1 - token)];
  const hearth_weight& table = weights_[op.weight];
  const hearth_layout& w = table.layout;
  float* out = row(op.out, index);
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

void Model::norm(const hearth_op& op, int tile) {
  const Buffer& x = buffers_[op.x];
  int first = tile * kSimpleTileRows, rows = std::min(kSimpleTileRows, rows_of(x) - first);
  kernels_.norm({row(op.x, first), static_cast<const float*>(weights_[op.weight].data),
                 row(op.out, first), x.stride, x.width, x.stride, op.eps, rows});
}

void Model::linear(const hearth_op& op, int tile, int thread) {
  const hearth_layout& w = weights_[op.weight].layout;
  int row_tiles_now = row_tiles(op, kLinearTileRows);
  int64_t panel =
      tile / row_tiles_now;  // row tiles of one panel follow each other: it stays in cache
  int first = tile % row_tiles_now * kLinearTileRows;
  if (w.bits) return quant_linear(op, panel, first, thread);
  int64_t element_bytes = w.dtype == HEARTH_BF16 ? 2 : 4;
  LinearArgs args;
  args.x = row(op.x, first);
  args.ldx = buffers_[op.x].stride;
  args.weight =
      static_cast<const char*>(weights_[op.weight].data) + panel * kPanel * w.cols * element_bytes;
  args.bf16 = w.dtype == HEARTH_BF16;
  args.cols = w.cols;
  args.bias = panel_bias(op, panel);
  args.out = row(op.out, first) + panel * kPanel;
  args.ldo = buffers_[op.out].stride;
  args.rows = std::min(kLinearTileRows, rows_of(buffers_[op.out]) - first);
  kernels_.linear(args);
}

const float* Model::panel_bias(const hearth_op& op, int64_t panel) const {
  if (op.bias < 0) return nullptr;
  return static_cast<const float*>(weights_[op.bias].data) + panel * kPanel;
}

void Model::quant_linear(const hearth_op& op, int64_t panel, int first, int thread) {
  const hearth_layout& w = weights_[op.weight].layout;
  QuantLinearArgs args;
  args.x = reinterpret_cast<const char*>(row(op.x, first));
  args.ldx = buffers_[op.x].stride * static_cast<int64_t>(sizeof(float));
  args.panel = static_cast<const uint8_t*>(weights_[op.weight].data) + panel * quant_panel_bytes(w);
  args.cols = w.cols;
  args.bits = w.bits;
  args.group = w.group;
  args.zeros = w.zeros != 0;
  args.bias = panel_bias(op, panel);
  args.out = row(op.out, first) + panel * kPanel;
  args.ldo = buffers_[op.out].stride;
  args.rows = std::min(kLinearTileRows, rows_of(buffers_[op.out]) - first);
  args.scratch = reinterpret_cast<uint8_t*>(quant_scratch_->data()) + kQuantScratchBytes * thread;
  buffers_[op.x].group ? kernels_.quant_linear(args) : kernels_.quant_linear_exact(args);
}

void Model::quantize(const hearth_op& op, int index) {
  const Buffer& out = buffers_[op.out];
  kernels_.quantize(
      {row(op.x, index), out.width, out.group, reinterpret_cast<char*>(row(op.out, index))});
}

void Model::head_norm(const hearth_op& op, int index) {
  float* q = row(op.x, index);
  auto weight = [&](int32_t i) { return static_cast<const float*>(weights_[i].data); };
  kernels_.head_norm({q, weight(op.weight), op.heads, op.head_dim, op.eps});
  kernels_.head_norm(
      {q + op.heads * op.head_dim, weight(op.bias), op.kv_heads, op.head_dim, op.eps});
}

void Model::rope(const hearth_op& op, int index) {
  const float* cosine = row(op.y, index);
  int half = op.rotary_dim / 2;
  const float* sine = cosine + half;
  for (int h = 0; h < op.heads; h++) {
    float* x = row(op.x, index) + h * op.head_dim;
    if (op.pairing == HEARTH_PAIR_INTERLEAVED)
      for (int i = 0; i < half; i++) rotate(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
    else
      for (int i = 0; i < half; i++) rotate(x[i], x[i + half], cosine[i], sine[i]);
  }
}

void Model::kv_write(const hearth_op& op, int index) {
  const Group& g = groups_[op.group];
  int32_t slot = plan_->slots[op.group * plan_->num_tokens + index];
  const float* k = row(op.x, index) + op.heads * op.head_dim;
  const float* v = k + op.kv_heads * op.head_dim;
  char* layer = g.pool->data() + slot / limits_.block_size * g.block_bytes +
                op.layer * op.kv_heads * g.head_bytes;
  for (int h = 0; h < op.kv_heads; h++)
    kernels_.kv_write({k + h * op.head_dim, v + h * op.head_dim, op.head_dim,
                       limits_.kv_dtype == HEARTH_BF16, layer + h * g.head_bytes, g.value_offset,
                       slot % limits_.block_size});
}

void Model::attend(const hearth_op& op, int tile, int thread) {
  const Group& g = groups_[op.group];
  const RowTile& rows = attend_tiles_[static_cast<size_t>(tile / op.kv_heads)];
  int kv_head = tile % op.kv_heads, heads = op.heads / op.kv_heads, sequence = rows.sequence;
  int64_t of_group = static_cast<int64_t>(op.group) * (plan_->num_sequences + 1) + sequence;
  AttendArgs args;
  args.q = row(op.x, rows.first) + kv_head * heads * op.head_dim;
  args.out = row(op.out, rows.first) + kv_head * heads * op.head_dim;
  args.ldq = buffers_[op.x].stride;
  args.ldo = buffers_[op.out].stride;
  args.rows = rows.rows;
  args.heads = heads;
  args.head_dim = op.head_dim;
  args.position =
      static_cast<int64_t>(plan_->context[sequence]) + rows.first - plan_->row_start[sequence];
  args.window = op.window;
  args.scale = op.scale;
  args.soft_cap = op.soft_cap;
  args.bf16 = limits_.kv_dtype == HEARTH_BF16;
  args.blocks = plan_->blocks + plan_->block_start[of_group];
  args.first_block = plan_->first_block[op.group * plan_->num_sequences + sequence];
  args.block_size = limits_.block_size;
  args.pool = g.pool->data();
  args.block_stride = g.block_bytes;
  args.part_offset = (static_cast<int64_t>(op.layer) * op.kv_heads + kv_head) * g.head_bytes;
  args.value_offset = g.value_offset;
  args.scratch =
      reinterpret_cast<float*>(attend_scratch_->data()) + thread * attend_scratch_floats_;
  kernels_.attend(args);
}

void Model::gate(const hearth_op& op, int tile) {
  const Buffer &x = buffers_[op.x], &out = buffers_[op.out];
  int first = tile * kSimpleTileRows, rows = std::min(kSimpleTileRows, rows_of(out) - first);
  kernels_.gate({row(op.x, first), x.stride, row(op.out, first), out.stride, out.width, rows,
                 op.activation == HEARTH_ACT_GELU_TANH});
}

void Model::add(const hearth_op& op, int tile) {
  const Buffer& x = buffers_[op.x];
  int first = tile * kSimpleTileRows, rows = std::min(kSimpleTileRows, rows_of(x) - first);
  kernels_.add(row(op.x, first), row(op.y, first), rows * x.stride);
}

void Model::select(const hearth_op& op, int index) {
  std::memcpy(row(op.out, index), row(op.x, plan_->logit_rows[index]),
              static_cast<size_t>(buffers_[op.x].stride) * sizeof(float));
}

void Model::soft_cap(const hearth_op& op, int tile) {
  const Buffer& x = buffers_[op.x];
  int first = tile * kSimpleTileRows, rows = std::min(kSimpleTileRows, rows_of(x) - first);
  kernels_.soft_cap(row(op.x, first), op.soft_cap, rows * x.stride);
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
