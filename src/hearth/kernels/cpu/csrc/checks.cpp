// Checks of programs and plans before anything is computed: no index leaves its array, so that no
// kernel has to look.
#include <algorithm>

#include "model.h"
#include "quant.h"

namespace hearth {
namespace {

[[noreturn]] void fail(int32_t code, std::string message) {
  throw Failure{code, std::move(message)};
}

void require(bool condition, const char* message) {
  if (!condition) fail(HEARTH_E_ARGUMENT, message);
}

std::string at(const char* array, int64_t index, int64_t value) {
  return std::string(array) + "[" + std::to_string(index) + "] is " + std::to_string(value);
}

// Every value of an index array must lie in [low, high).
void check_range(const char* name, const int32_t* values, int64_t count, int64_t low,
                 int64_t high) {
  for (int64_t i = 0; i < count; i++)
    if (values[i] < low || values[i] >= high)
      fail(HEARTH_E_PLAN, at(name, i, values[i]) + ", permitted is " + std::to_string(low) +
                              " to " + std::to_string(high - 1));
}

void check_offsets(const char* name, const int32_t* offsets, int64_t count, int64_t first,
                   int64_t last) {
  if (offsets[0] != first || offsets[count] > last)
    fail(HEARTH_E_PLAN, std::string(name) + " does not fit");
  for (int64_t i = 0; i < count; i++)
    if (offsets[i + 1] < offsets[i])
      fail(HEARTH_E_PLAN, at(name, i + 1, offsets[i + 1]) + ": descending");
}

}  // namespace

void Model::check_program() const {
  for (const auto& weight : weights_) {
    const hearth_layout& w = weight.layout;
    require(weight.data && w.rows > 0 && w.cols > 0, "a weight is empty");
    require(reinterpret_cast<uintptr_t>(weight.data) % 64 == 0,
            "a weight is not aligned to 64 bytes");
    require(w.dtype == HEARTH_F32 || w.dtype == HEARTH_BF16 || w.dtype == HEARTH_F16 || w.bits,
            "a weight has an unknown type");
    require(w.stack > 0 && (w.stack == 1 || w.kind == HEARTH_LINEAR),
            "only linear weights are stacked");
    require(w.bits == 0 || ((w.bits == 4 || w.bits == 8) && w.group > 0 && w.group % 32 == 0 &&
                            w.group * kPanel * 2 <= kUnpackBytes && w.kind != HEARTH_VECTOR),
            "a weight is quantized in an unknown way");
    require(!w.fp8 || (w.bits == 8 && !w.zeros), "a weight of FP8 has another form than 8 bits");
  }
  for (const auto& op : ops_) check_op(op);
}

const hearth_layout& Model::checked_weight(int32_t index, int32_t kind, int64_t rows,
                                           int64_t stack) const {
  require(index >= 0 && index < static_cast<int32_t>(weights_.size()),
          "an operation names no weight");
  const hearth_layout& weight = weights_[index].layout;
  require(weight.kind == kind && weight.rows == rows && weight.stack == stack,
          "a weight has another shape than its use");
  return weight;
}

void Model::check_experts(const hearth_op& op) const {
  for (int32_t i : {op.x, op.y, op.out, op.routes, op.gated})
    require(i >= 0 && i < static_cast<int32_t>(buffers_.size()), "experts name no buffer");
  for (int32_t i : {op.x, op.y, op.out, op.routes, op.gated})
    require(buffers_[i].rows_kind == buffers_[op.out].rows_kind &&
                buffers_[i].rows_kind <= HEARTH_ROWS_LOGITS,
            "experts have buffers of different rows");
  require(op.experts > 0 && op.experts < 1 << 24 && op.top_k > 0 && op.expert_groups > 0 &&
              op.top_groups > 0 && op.top_groups <= op.expert_groups &&
              op.experts % op.expert_groups == 0 &&
              op.top_k <= op.experts / op.expert_groups * op.top_groups,
          "a router has fewer experts than it chooses");
  require(op.scoring == HEARTH_SCORE_SOFTMAX || op.scoring == HEARTH_SCORE_SIGMOID,
          "a router has an unknown scoring");
  require(op.activation >= 0 && op.activation < HEARTH_NUM_ACTIVATIONS,
          "experts have an unknown activation");
  const Buffer &x = buffers_[op.x], &gated = buffers_[op.gated], &out = buffers_[op.out];
  require(buffers_[op.y].width == op.experts && buffers_[op.routes].width == 2 * op.top_k &&
              gated.width % op.top_k == 0,
          "experts do not fit their buffers");
  require(op.x != op.out && op.x != op.gated && op.out != op.gated && op.routes != op.x &&
              op.routes != op.y && op.routes != op.gated && op.routes != op.out &&
              op.gated != op.y && op.out != op.y,
          "experts work in place");
  int64_t size = gated.width / op.top_k;
  const auto& gate_up = checked_weight(op.weight, HEARTH_LINEAR, size, 2 * op.experts);
  const auto& down = checked_weight(op.down, HEARTH_LINEAR, out.width, op.experts);
  require(gate_up.cols == x.width && down.cols == size,
          "experts: the columns are not the input's width");
  check_expert_codes(op, gate_up, down);
  if (op.bias >= 0) checked_weight(op.bias, HEARTH_VECTOR, op.experts);
}

// Int8 rows of x go with int8 rows of what `down` reads, and with codes in both matrices.
void Model::check_expert_codes(const hearth_op& op, const hearth_layout& gate_up,
                               const hearth_layout& down) const {
  int group = buffers_[op.x].group;
  require((group > 0) == (op.gated_codes >= 0) &&
              (!group ||
               (gate_up.bits && down.bits && gate_up.group == group && !gate_up.fp8 && !down.fp8)),
          "experts: rows and weights are not quantized alike");
  if (!group) return;
  require(op.gated_codes < static_cast<int32_t>(buffers_.size()), "experts name no buffer");
  require(buffers_[op.gated_codes].rows_kind == buffers_[op.out].rows_kind,
          "experts have buffers of different rows");
  require(!buffers_[op.gated_codes].group &&
              buffers_[op.gated_codes].width * 4 ==
                  op.top_k * row_bytes(down.cols, down.group, buffers_[op.x].residual),
          "experts do not fit their buffers");
  for (int32_t other : {op.x, op.y, op.out, op.routes, op.gated})
    require(op.gated_codes != other, "experts work in place");
}

// Indices and widths of one operation, so that no kernel can leave its buffers.
void Model::check_op(const hearth_op& op) const {
  auto buffer = [&](int32_t i) {
    require(i >= 0 && i < static_cast<int32_t>(buffers_.size()), "an operation names no buffer");
    return buffers_[i];
  };
  auto weight = [&](int32_t i, int32_t kind, int64_t rows) {
    return checked_weight(i, kind, rows);
  };
  // Rows of the step, or of its image: as many. Those of logits and joined ones are fewer.
  auto rows_alike = [&](int32_t a, int32_t b) {
    auto kind = [&](int32_t i) {
      int of = buffer(i).rows_kind;
      return of == HEARTH_ROWS_IMAGE ? HEARTH_ROWS_TOKENS : of;
    };
    require(kind(a) == kind(b), "an operation reads other rows than it writes");
  };
  switch (op.kind) {
    case HEARTH_OP_EMBED:
      require(op.weight >= 0 && op.weight < static_cast<int32_t>(weights_.size()),
              "embed names no weight");
      require(weights_[op.weight].layout.kind != HEARTH_VECTOR &&
                  weights_[op.weight].layout.stack == 1 &&
                  weights_[op.weight].layout.rows == limits_.vocab_size &&
                  weights_[op.weight].layout.cols == buffer(op.out).width,
              "the embedding has another shape than its use");
      break;
    case HEARTH_OP_ANGLES:
      require(op.freq_offset >= 0 && op.rotary_dim > 0 && op.rotary_dim % 2 == 0 &&
                  op.freq_offset + op.rotary_dim / 2 <= static_cast<int64_t>(inv_freq_.size()) &&
                  op.sections[0] + op.sections[1] + op.sections[2] == op.rotary_dim / 2 &&
                  buffer(op.out).width == op.rotary_dim,
              "angles do not fit");
      break;
    case HEARTH_OP_NORM:
      weight(op.weight, HEARTH_VECTOR, buffer(op.x).width);
      if (op.bias >= 0) weight(op.bias, HEARTH_VECTOR, buffer(op.x).width);
      require(buffer(op.out).stride == buffer(op.x).stride, "norm changes the width");
      rows_alike(op.x, op.out);
      break;
    case HEARTH_OP_LINEAR: {
      auto w = weight(op.weight, HEARTH_LINEAR, buffer(op.out).width);
      require(w.cols == buffer(op.x).width && op.x != op.out,
              "linear: the columns are not the input's width");
      require(!buffer(op.x).group || (w.bits && !w.fp8 && w.group == buffer(op.x).group),
              "linear: rows and weight are not quantized alike");
      if (op.bias >= 0) weight(op.bias, HEARTH_VECTOR, w.rows);
      rows_alike(op.x, op.out);
      break;
    }
    case HEARTH_OP_QUANTIZE:
      require(
          buffer(op.x).width == buffer(op.out).width && buffer(op.out).group && !buffer(op.x).group,
          "quantize does not fit");
      rows_alike(op.x, op.out);
      break;
    case HEARTH_OP_HEAD_NORM:
      require(op.heads > 0 && op.kv_heads > 0 && op.head_dim > 0 &&
                  buffer(op.x).width == (op.heads + 2 * op.kv_heads) * op.head_dim,
              "head norm does not fit");
      weight(op.weight, HEARTH_VECTOR, op.head_dim);
      weight(op.bias, HEARTH_VECTOR, op.head_dim);
      break;
    case HEARTH_OP_ROPE:
      require(op.heads * op.head_dim <= buffer(op.x).width && op.rotary_dim <= op.head_dim &&
                  buffer(op.y).width == op.rotary_dim,
              "rope does not fit");
      rows_alike(op.x, op.y);
      break;
    case HEARTH_OP_KV_WRITE:
    case HEARTH_OP_ATTEND: {
      require(op.group >= 0 && op.group < static_cast<int32_t>(groups_.size()), "no such KV group");
      const auto& g = groups_[op.group].shape;
      bool attends = op.kind == HEARTH_OP_ATTEND, is_image = op.flag & HEARTH_ATTEND_IMAGE;
      int64_t width = op.heads * op.head_dim, kv_width = 2 * op.kv_heads * op.head_dim;
      require(
          op.layer >= 0 && op.layer < g.layers && op.kv_heads == g.kv_heads &&
              op.head_dim == g.head_dim && op.kv_heads > 0 && op.heads >= attends &&
              op.heads % op.kv_heads == 0 &&
              (buffer(op.x).width == width + kv_width || (attends && buffer(op.x).width == width)),
          "attention does not fit its KV group");
      rows_alike(op.x, attends ? op.out : op.x);
      require(buffer(op.x).rows_kind != HEARTH_ROWS_MERGED &&
                  (buffer(op.x).rows_kind != HEARTH_ROWS_LOGITS || (attends && !is_image)),
              "attention, or its keys, of rows that are no tokens");
      if (attends)
        require(buffer(op.out).width == width && op.soft_cap >= 0.0f && op.window == g.window &&
                    is_image == (limits_.max_image_rows > 0) && op.window >= -is_image,
                "attention has another width than its output");
      break;
    }
    case HEARTH_OP_GATE:
      require(buffer(op.x).width == 2 * buffer(op.out).width, "gate needs twice its width");
      require(op.activation >= 0 && op.activation < HEARTH_NUM_ACTIVATIONS,
              "gate has an unknown activation");
      rows_alike(op.x, op.out);
      break;
    case HEARTH_OP_EXPERTS:
      check_experts(op);
      break;
    case HEARTH_OP_ADD:
      require(buffer(op.x).stride == buffer(op.y).stride, "add of different widths");
      rows_alike(op.x, op.y);
      break;
    case HEARTH_OP_SELECT:
      require(buffer(op.x).stride == buffer(op.out).stride &&
                  buffer(op.x).group == buffer(op.out).group &&
                  buffer(op.x).residual == buffer(op.out).residual &&
                  buffer(op.x).rows_kind == HEARTH_ROWS_TOKENS &&
                  buffer(op.out).rows_kind == HEARTH_ROWS_LOGITS,
              "select does not fit");
      break;
    case HEARTH_OP_SOFT_CAP:
      buffer(op.x);
      require(op.soft_cap > 0.0f, "a soft cap must be positive");
      break;
    case HEARTH_OP_SAMPLE:
      require(
          buffer(op.x).width == limits_.vocab_size && buffer(op.x).rows_kind == HEARTH_ROWS_LOGITS,
          "sample does not fit");
      break;
    default:
      check_encoder_op(op);
  }
}

// Operations that encoders alone have.
void Model::check_encoder_op(const hearth_op& op) const {
  auto buffer = [&](int32_t i) {
    require(i >= 0 && i < static_cast<int32_t>(buffers_.size()), "an operation names no buffer");
    return buffers_[i];
  };
  require(op.kind == HEARTH_OP_ACTIVATE || limits_.max_image_rows > 0,
          "an operation of encoders in another program");
  switch (op.kind) {
    case HEARTH_OP_ACTIVATE:
      require(!buffer(op.x).group && op.activation >= 0 && op.activation < HEARTH_NUM_ACTIVATIONS,
              "an activation is unknown");
      break;
    case HEARTH_OP_PATCHES:
      require(!buffer(op.out).group && buffer(op.out).rows_kind == HEARTH_ROWS_TOKENS,
              "patches do not fit");
      break;
    case HEARTH_OP_GRID_EMBED: {
      int64_t side = op.count;
      require(side > 0 && side < 1 << 12 && !buffer(op.x).group, "a grid does not fit");
      const auto& w = checked_weight(op.weight, HEARTH_TABLE, side * side);
      require(w.cols == buffer(op.x).width && !w.bits && w.dtype == HEARTH_F32,
              "a grid is no table of floats of this width");
      break;
    }
    case HEARTH_OP_REGROUP:
      require(op.count == limits_.merge_rows && !buffer(op.x).group &&
                  buffer(op.out).width == op.count * buffer(op.x).width &&
                  buffer(op.out).rows_kind == HEARTH_ROWS_MERGED &&
                  buffer(op.x).rows_kind != HEARTH_ROWS_MERGED,
              "rows that are joined do not fit");
      break;
    case HEARTH_OP_EMIT:
      require(!buffer(op.x).group && buffer(op.x).rows_kind == HEARTH_ROWS_MERGED,
              "an output does not fit");
      break;
    default:
      fail(HEARTH_E_ARGUMENT, "unknown operation " + std::to_string(op.kind));
  }
}

// Of an encoder: which rows of which image, and where what it reads and writes lies.
void Model::check_image(const hearth_plan& p, const hearth_result& result) const {
  if (limits_.max_image_rows == 0) {
    if (p.image_rows != 0) fail(HEARTH_E_PLAN, "image_rows, and this model encodes none");
    return;
  }
  int64_t merge = limits_.merge_rows;
  if (p.num_sequences != 1 || p.image_rows < 1 || p.image_rows > limits_.max_image_rows ||
      int64_t{p.context[0]} + p.num_tokens > p.image_rows || p.context[0] % merge ||
      p.num_tokens % merge || p.image_rows % merge || p.grid_height < 1 || p.grid_width < 1)
    fail(HEARTH_E_PLAN, "rows " + std::to_string(p.context[0]) + " to " +
                            std::to_string(p.context[0] + p.num_tokens) + " of an image of " +
                            std::to_string(p.image_rows) + "; at most " +
                            std::to_string(limits_.max_image_rows));
  if (!p.patches || !result.features) fail(HEARTH_E_PLAN, "an image without patches or features");
  for (size_t g = 0; g < groups_.size(); g++) {
    int64_t listed = p.block_start[2 * g + 1] - p.block_start[2 * g];
    if (listed * limits_.block_size < p.image_rows || p.first_block[g] != 0)
      fail(HEARTH_E_PLAN, "an image has too few blocks");
    if (groups_[g].shape.window < 0 && p.num_windows < 1)
      fail(HEARTH_E_PLAN, "an image without its windows");
  }
  if (p.num_windows < 1) return;
  if (!p.window_start) fail(HEARTH_E_PLAN, "an image without its windows");
  check_offsets("window_start", p.window_start, p.num_windows, 0, p.image_rows);
  if (p.window_start[p.num_windows] != p.image_rows)
    fail(HEARTH_E_PLAN, "window_start does not cover the rows");
}

void Model::check_plan(const hearth_plan& p) const {
  if (p.num_tokens < 1 || p.num_tokens > limits_.max_tokens || p.num_sequences < 1 ||
      p.num_sequences > limits_.max_sequences || p.num_logit_rows < 0 ||
      p.num_logit_rows > limits_.max_logit_rows)
    fail(HEARTH_E_PLAN, "the step has " + std::to_string(p.num_tokens) + " tokens of " +
                            std::to_string(p.num_sequences) + " sequences and " +
                            std::to_string(p.num_logit_rows) + " logits rows; at most " +
                            std::to_string(limits_.max_tokens) + ", " +
                            std::to_string(limits_.max_sequences) + " and " +
                            std::to_string(limits_.max_logit_rows));
  check_range("tokens", p.tokens, p.num_tokens, -num_previous_tokens_, limits_.vocab_size);
  check_range("logit_rows", p.logit_rows, p.num_logit_rows, 0, p.num_tokens);
  check_offsets("row_start", p.row_start, p.num_sequences, 0, p.num_tokens);
  if (p.row_start[p.num_sequences] != p.num_tokens)
    fail(HEARTH_E_PLAN, "row_start does not cover the rows");
  for (int s = 0; s < p.num_sequences; s++) {
    int64_t length = static_cast<int64_t>(p.context[s]) + p.row_start[s + 1] - p.row_start[s];
    if (p.context[s] < 0 || length > limits_.max_model_len)
      fail(HEARTH_E_PLAN, at("context", s, p.context[s]) + ": beyond max_model_len");
  }
  check_blocks(p);
}

void Model::check_blocks(const hearth_plan& p) const {
  for (size_t g = 0; g < groups_.size(); g++) {
    int64_t blocks = groups_[g].shape.blocks;
    const int32_t* start = p.block_start + g * static_cast<size_t>(p.num_sequences + 1);
    const int32_t* first = p.first_block + g * static_cast<size_t>(p.num_sequences);
    check_range("slots", p.slots + g * static_cast<size_t>(p.num_tokens), p.num_tokens, 0,
                blocks * limits_.block_size);
    check_range("block_start", start, 1, 0, static_cast<int64_t>(p.num_blocks) + 1);
    check_offsets("block_start", start, p.num_sequences, start[0], p.num_blocks);
    check_range("blocks", p.blocks + start[0], start[p.num_sequences] - start[0], 0, blocks);
    for (int s = 0; s < p.num_sequences; s++) {
      int64_t length = static_cast<int64_t>(p.context[s]) + p.row_start[s + 1] - p.row_start[s];
      int64_t needed = (length + limits_.block_size - 1) / limits_.block_size;
      if (first[s] < 0 || first[s] + start[s + 1] - start[s] < needed)
        fail(HEARTH_E_PLAN, "sequence " + std::to_string(s) + " has too few blocks");
      int64_t window = groups_[g].shape.window;
      int64_t oldest = window > 0 ? std::max<int64_t>(0, p.context[s] + 1 - window) : 0;
      if (first[s] > oldest / limits_.block_size)
        fail(HEARTH_E_PLAN,
             at("first_block", s, first[s]) + ": keys that are still visible have no block");
    }
  }
  for (int i = 0; i < p.num_copies; i++) {
    check_range("copies", p.copies + 3 * i, 1, 0, static_cast<int64_t>(groups_.size()));
    check_range("copies", p.copies + 3 * i + 1, 2, 0, groups_[p.copies[3 * i]].shape.blocks);
  }
}

// What a row lists of `tokens`: no more than the vocabulary has, and only what it has.
void Model::check_sampling(const hearth_plan& p, const hearth_result& result) const {
  if (p.num_top < 0 ||
      (p.num_top > 0 && !(p.num_logprobs && result.top_tokens && result.top_logprobs)))
    fail(HEARTH_E_PLAN, "num_top without num_logprobs or a place for the best tokens");
  if (p.num_logprobs)
    check_range("num_logprobs", p.num_logprobs, p.num_logit_rows, -1, p.num_top + 1);
  if (p.given) {
    if (!result.ranks) fail(HEARTH_E_PLAN, "given tokens without a place for their ranks");
    check_range("given", p.given, p.num_logit_rows, -1, limits_.vocab_size);
  }
  if (!p.repetition) return;
  auto check_ragged = [&](const char* name, const int32_t* start, const int32_t* tokens) {
    check_offsets(name, start, p.num_logit_rows, 0, INT32_MAX);
    for (int r = 0; r < p.num_logit_rows; r++)
      if (start[r + 1] - start[r] > limits_.vocab_size)
        fail(HEARTH_E_PLAN, at(name, r + 1, start[r + 1]) + ": more than the vocabulary");
    check_range(name, tokens, start[p.num_logit_rows], 0, limits_.vocab_size);
  };
  check_ragged("count_tokens", p.count_start, p.count_tokens);
  check_ragged("bias_tokens", p.bias_start, p.bias_tokens);
}

}  // namespace hearth
