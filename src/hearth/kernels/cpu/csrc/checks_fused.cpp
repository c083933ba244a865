// Which operations may run in the same tiles: what kernels/fuse.py asks for is checked here, so
// that a wrong program is an error and not a race.
#include <algorithm>
#include <numeric>
#include <vector>

#include "model.h"

namespace hearth {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw Failure{HEARTH_E_ARGUMENT, message};
}

constexpr int kMostGroup = 4096;  // columns that a quantized tile may have

// Buffers that an operation reads or writes.
std::vector<int32_t> buffers_used(const hearth_op& op) {
  switch (op.kind) {
    case HEARTH_OP_EMBED:
    case HEARTH_OP_ANGLES:
    case HEARTH_OP_PATCHES:
      return {op.out};
    case HEARTH_OP_ROPE:
    case HEARTH_OP_ADD:
      return {op.x, op.y};
    case HEARTH_OP_HEAD_NORM:
    case HEARTH_OP_KV_WRITE:
    case HEARTH_OP_SOFT_CAP:
    case HEARTH_OP_SAMPLE:
    case HEARTH_OP_ACTIVATE:
    case HEARTH_OP_GRID_EMBED:
    case HEARTH_OP_EMIT:
      return {op.x};
    case HEARTH_OP_EXPERTS:
      if (op.gated_codes < 0) return {op.x, op.y, op.out, op.routes, op.gated};
      return {op.x, op.y, op.out, op.routes, op.gated, op.gated_codes};
    default:
      return {op.x, op.out};
  }
}

}  // namespace

// How the operations first … first + fused run. The last one must not write what other tiles read.
Form Model::form_of(int first) const {
  const hearth_op* ops = &ops_[first];
  int fused = ops[0].fused;
  require(fused >= 0 && first + fused < static_cast<int>(ops_.size()),
          "more operations are fused than there are");
  for (int i = 1; i <= fused; i++) require(ops[i].fused == 0, "fused operations are nested");
  const hearth_op& last = ops[fused];
  if (is_row_wise(ops[0].kind)) {
    int kind = buffers_[own_buffer(ops[0])].rows_kind;
    for (int i = 1; i <= fused; i++)
      require(is_row_wise(ops[i].kind) && buffers_[own_buffer(ops[i])].rows_kind == kind,
              "operations on other rows are fused");
    return Form::kRows;
  }
  if (ops[0].kind == HEARTH_OP_EXPERTS) {
    require(fused == 0, "experts are fused");
    return Form::kExperts;
  }
  if (ops[0].kind == HEARTH_OP_ATTEND) {
    if (fused == 0) return Form::kAttend;
    require(fused == 1 && last.kind == HEARTH_OP_QUANTIZE && last.x == ops[0].out &&
                ops[0].heads / ops[0].kv_heads * ops[0].head_dim % buffers_[last.out].group == 0,
            "attention and its codes do not fit");
    return Form::kAttend;
  }
  if (fused == 0) return Form::kLinear;
  if (ops[1].kind == HEARTH_OP_ADD) {
    require(fused == 1 && last.y == ops[0].out && last.x != ops[0].x && last.x != ops[0].out,
            "a linear layer and its sum do not fit");
    return Form::kLinear;
  }
  if (ops[1].kind == HEARTH_OP_GATE) {
    require(ops[1].x == ops[0].out && buffers_[ops[1].out].width % kPanel == 0 &&
                ops[1].out != ops[0].x && last.out != ops[0].x,
            "gate and up do not fit");
    if (fused == 1) return Form::kGated;
    require(fused == 2 && last.kind == HEARTH_OP_QUANTIZE && last.x == ops[1].out &&
                std::lcm(kPanel, buffers_[last.out].group) <= kMostGroup,
            "an activation and its codes do not fit");
    return Form::kGated;
  }
  const hearth_op& rope = ops[fused - 1];
  require(
      (fused == 2 || (fused == 3 && ops[1].kind == HEARTH_OP_HEAD_NORM && ops[1].x == ops[0].out &&
                      ops[1].heads == last.heads && ops[1].kv_heads == last.kv_heads)) &&
          rope.kind == HEARTH_OP_ROPE && rope.x == ops[0].out &&
          rope.heads == last.heads + last.kv_heads && rope.head_dim == last.head_dim &&
          last.kind == HEARTH_OP_KV_WRITE && last.x == ops[0].out,
      "query, key and value do not fit");
  return Form::kHeads;
}

// A buffer without memory is used only where it stays within a tile.
void Model::check_tile_buffers() const {
  for (const auto& step : steps_) {
    const hearth_op* ops = &ops_[step.op];
    bool keeps_first = step.fused > 0 && (step.form == Form::kLinear || step.form == Form::kGated ||
                                          step.form == Form::kAttend);
    bool keeps_second = step.form == Form::kGated && step.fused == 2;
    for (int i = 0; i <= step.fused; i++)
      for (int32_t b : buffers_used(ops[i]))
        require(!buffers_[b].is_tile || (keeps_first && b == ops[0].out) ||
                    (keeps_second && b == ops[1].out),
                "an operation uses a buffer without memory");
  }
}

}  // namespace hearth
