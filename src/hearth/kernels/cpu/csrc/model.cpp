// Creation, checks and the run loop of a model; the operations are in ops.cpp.
#include "model.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "quant.h"

namespace hearth {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

[[noreturn]] void fail(int32_t code, std::string message) {
  throw Failure{code, std::move(message)};
}

void require(bool condition, const char* message) {
  if (!condition) fail(HEARTH_E_ARGUMENT, message);
}

float row_element(const void* row, int64_t at, int group, int64_t k) {
  auto* codes = static_cast<const int8_t*>(row) + at * row_group_bytes(group);
  float scale;
  std::memcpy(&scale, codes + group, sizeof(scale));
  return scale == 0.0f ? 0.0f : static_cast<float>(codes[k]) * scale;
}

void read_quantized_row(const void* row, int64_t width, int group, bool residual, float* out) {
  int64_t groups = num_groups(width, group);
  for (int64_t k = 0; k < width; k++) {
    out[k] = row_element(row, k / group, group, k % group);
    if (residual) out[k] += row_element(row, groups + k / group, group, k % group);
  }
}

}  // namespace

Arena::Arena(size_t bytes) : bytes_(std::max<size_t>(bytes, 64)) {
  void* data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) fail(HEARTH_E_MEMORY, "cannot map " + std::to_string(bytes_) + " bytes");
  if (bytes_ >= (2u << 20)) madvise(data, bytes_, MADV_HUGEPAGE);
  data_ = static_cast<char*>(data);
}

Arena::~Arena() {
  munmap(data_, bytes_);
}

Model::Model(const hearth_model_desc& desc)
    : ops_(desc.ops, desc.ops + desc.num_ops),
      weights_(desc.weights, desc.weights + desc.num_weights),
      inv_freq_(desc.inv_freq, desc.inv_freq + desc.num_inv_freq),
      limits_(desc),
      kernels_(choose_kernels(desc.isa)) {
  require(desc.max_tokens > 0 && desc.max_sequences > 0 && desc.max_logit_rows > 0,
          "limits must be positive");
  require(desc.num_threads > 0 && desc.num_threads <= 1024, "num_threads must be 1 to 1024");
  require(desc.block_size > 0 && desc.block_size % kKeyGroup == 0,
          "block_size must be a multiple of 16");
  require(desc.max_image_rows >= 0 && desc.merge_rows > 0 && desc.merge_rows <= desc.max_tokens,
          "merge_rows must be 1 to max_tokens");
  create_buffers(desc);
  create_groups(desc);
  check_program();
  create_steps();
  check_tile_buffers();
  create_scratch();
  create_attend_scratch();
  create_tile_scratch();
  create_expert_scratch();
  stages_.reserve(steps_.size());
  stage_tiles_.reserve(steps_.size());
  team_ = std::make_unique<Team>(desc.num_threads);
}

int64_t Model::most_rows(int kind) const {
  switch (kind) {
    case HEARTH_ROWS_LOGITS:
      return limits_.max_logit_rows;
    case HEARTH_ROWS_IMAGE:
      return limits_.max_image_rows;
    case HEARTH_ROWS_MERGED:
      return limits_.max_tokens / limits_.merge_rows;
    default:
      return limits_.max_tokens;
  }
}

void Model::create_buffers(const hearth_model_desc& desc) {
  int64_t floats = 0;
  for (int i = 0; i < desc.num_buffers; i++) {
    const hearth_buffer& b = desc.buffers[i];
    bool is_tile = b.is_tile != 0, residual = b.residual != 0;
    require(!residual || b.group, "only rows of codes have residuals");
    int64_t floats_a_row = b.group ? (row_bytes(b.width, b.group, residual) + 3) / 4 : b.width;
    buffers_.push_back(
        {nullptr, b.width, round_up(floats_a_row, kRowPad), b.rows, b.group, is_tile, residual});
    if (!is_tile) floats += buffers_.back().stride * most_rows(b.rows);
  }
  rows_ = std::make_unique<Arena>(static_cast<size_t>(floats) * sizeof(float));
  float* next = reinterpret_cast<float*>(rows_->data());
  for (auto& buffer : buffers_) {
    if (buffer.is_tile) continue;
    buffer.data = next;
    next += buffer.stride * most_rows(buffer.rows_kind);
  }
}

void Model::create_groups(const hearth_model_desc& desc) {
  int storage = desc.kv_dtype;
  require(storage == HEARTH_F32 || storage == HEARTH_BF16 ||
              (storage >= HEARTH_KV_INT8 && storage <= HEARTH_KV_FP8),
          "kv_dtype is none of those that keys and values may have");
  for (int i = 0; i < desc.num_groups; i++) {
    Group g;
    g.shape = desc.groups[i];
    require(!is_coded(storage) || g.shape.head_dim <= kMostCodedDim,
            "keys and values of so wide heads cannot be codes");
    require(storage != HEARTH_KV_INT4 || g.shape.head_dim % 2 == 0,
            "keys and values of an odd width cannot be 4-bit codes");
    g.layout = kv_layout(storage, desc.block_size, g.shape.head_dim);
    g.block_bytes = g.layout.bytes * g.shape.kv_heads * g.shape.layers;
    g.pool = std::make_unique<Arena>(static_cast<size_t>(g.block_bytes * g.shape.blocks));
    groups_.push_back(std::move(g));
  }
}

void Model::create_steps() {
  for (int i = 0; i < static_cast<int>(ops_.size()); i++) {
    Form form = form_of(i);
    first_step_.push_back(static_cast<int>(steps_.size()));
    for (int part = 0; part < num_parts(ops_[i]); part++)
      steps_.push_back({form, i, part, ops_[i].fused});
    for (int last = i + ops_[i].fused; i < last; i++) first_step_.push_back(-1);
  }
  first_step_.push_back(static_cast<int>(steps_.size()));
}

// What fused operations keep within a tile; none of it where nothing is fused.
void Model::create_tile_scratch() {
  int64_t floats = 0;
  for (const auto& step : steps_) {
    if (step.fused == 0 || step.form == Form::kRows || step.form == Form::kHeads) continue;
    int64_t rows = kLinearTileRows, columns = columns_a_tile(step);
    if (step.form == Form::kGated) columns *= 2;
    if (step.form == Form::kAttend) {
      const hearth_op& attend = ops_[step.op];
      rows = attend_rows_;
      columns = round_up(attend.heads / attend.kv_heads * attend.head_dim, kRowPad);
    }
    floats = std::max(floats, rows * columns);
  }
  tile_floats_ = floats;
  auto threads = static_cast<size_t>(limits_.num_threads);
  tile_scratch_ = std::make_unique<Arena>(static_cast<size_t>(floats) * sizeof(float) * threads);
}

float* Model::tile_scratch(int thread) const {
  return reinterpret_cast<float*>(tile_scratch_->data()) + tile_floats_ * thread;
}

// What a thread needs beside its tile, and what a step keeps: sized once.
void Model::create_scratch() {
  auto threads = static_cast<size_t>(limits_.num_threads);
  bool is_quantized = std::any_of(weights_.begin(), weights_.end(),
                                  [](const hearth_weight& w) { return w.layout.bits > 0; });
  if (is_quantized) quant_scratch_ = std::make_unique<Arena>(kQuantScratchBytes * threads);
  for (size_t i = 0; i < threads; i++) sample_scratch_.emplace_back(limits_.vocab_size);
  previous_tokens_.resize(static_cast<size_t>(limits_.max_logit_rows));
}

void Model::copy_blocks(const hearth_plan& plan) {
  for (int i = 0; i < plan.num_copies; i++) {
    const Group& group = groups_[plan.copies[3 * i]];
    std::memmove(group.pool->data() + plan.copies[3 * i + 2] * group.block_bytes,
                 group.pool->data() + plan.copies[3 * i + 1] * group.block_bytes,
                 static_cast<size_t>(group.block_bytes));
  }
}

// Steps with one tile each that follow each other are one stage: a decode step of one sequence
// then has half as many barriers.
void Model::prepare(int first, int last, const hearth_plan& plan, const hearth_result& result) {
  plan_ = &plan;
  result_ = &result;
  plan_attention();
  stages_.clear();
  stage_tiles_.clear();
  for (int i = first_step_[first]; i < first_step_[last]; i++) {
    int tiles = tiles_of(steps_[i]);
    if (tiles > kMostTiles) fail(HEARTH_E_PLAN, "a step has too many tiles");
    if (tiles == 1 && !stages_.empty() && stages_.back().tiles == 1) {
      stages_.back().last_step = i + 1;
      continue;
    }
    stages_.push_back({i, i + 1, tiles});
    stage_tiles_.push_back(tiles);
  }
}

void Model::run(int first, int last, const hearth_plan& plan, const hearth_result& result) {
  if (last < 0) last = static_cast<int>(ops_.size());
  if (first < 0 || first > last || last > static_cast<int>(ops_.size()))
    fail(HEARTH_E_ARGUMENT, "no such range of operations");
  if (first_step_[first] < 0 || first_step_[last] < 0)
    fail(HEARTH_E_ARGUMENT, "the range cuts operations that run in the same tiles");
  check_plan(plan);
  check_image(plan, result);
  check_sampling(plan, result);
  image_row_ = plan.image_rows > 0 ? plan.context[0] : 0;
  if (first == 0) copy_blocks(plan);
  prepare(first, last, plan, result);
  team_->run({run_tile, this, stage_tiles_.data(), static_cast<int>(stages_.size())});
  if (last == static_cast<int>(ops_.size())) keep_results(plan, result);
}

void Model::keep_results(const hearth_plan& plan, const hearth_result& result) {
  std::copy(result.tokens, result.tokens + plan.num_logit_rows, previous_tokens_.begin());
  num_previous_tokens_ = plan.num_logit_rows;
}

const Model::Buffer& Model::whole_buffer(int buffer, int rows) const {
  if (buffer < 0 || buffer >= static_cast<int>(buffers_.size()))
    fail(HEARTH_E_ARGUMENT, "no such buffer");
  const Buffer& b = buffers_[buffer];
  if (rows < 0 || rows > most_rows(b.rows_kind)) fail(HEARTH_E_ARGUMENT, "no so many rows");
  if (b.is_tile) fail(HEARTH_E_ARGUMENT, "a buffer that stays within tiles has no rows to copy");
  return b;
}

void Model::write_buffer(int buffer, int rows, const float* in) {
  const Buffer& b = whole_buffer(buffer, rows);
  if (b.group) fail(HEARTH_E_ARGUMENT, "rows of codes cannot be written");
  for (int r = 0; r < rows; r++)
    std::memcpy(b.data + r * b.stride, in + r * b.width,
                static_cast<size_t>(b.width) * sizeof(float));
}

void Model::read_buffer(int buffer, int rows, float* out) const {
  const Buffer& b = whole_buffer(buffer, rows);
  for (int r = 0; r < rows; r++) {
    const float* row = b.data + r * b.stride;
    if (b.group)
      read_quantized_row(row, b.width, b.group, b.residual, out + r * b.width);
    else
      std::memcpy(out + r * b.width, row, static_cast<size_t>(b.width) * sizeof(float));
  }
}

}  // namespace hearth
