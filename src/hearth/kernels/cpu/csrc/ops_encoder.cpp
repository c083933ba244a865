// Operations of vision encoders: patches in, the grid of positions, joining rows, the output.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"

namespace hearth {
namespace {

// Four neighbours of a place on one axis of a grid, and their weights (cubic convolution, A =
// -0.75, as torch has it). Beyond the border its last row counts.
struct Taps {
  int index[4];
  float weight[4];
};

float near_weight(float d) {  // |d| <= 1
  return ((-0.75f + 2.0f) * d - (-0.75f + 3.0f)) * d * d + 1.0f;
}
float far_weight(float d) {  // 1 < |d| < 2
  return ((-0.75f * d - 5.0f * -0.75f) * d + 8.0f * -0.75f) * d - 4.0f * -0.75f;
}

// The place of cell `cell` of `cells` on a grid of `size`, in torch's steps: to -1 ... 1 and back.
Taps taps_of(int cell, int cells, int size) {
  cell = std::clamp(cell, 0, cells - 1);
  float norm = (static_cast<float>(cell) + 0.5f) / static_cast<float>(cells) * 2.0f - 1.0f;
  float place = ((norm + 1.0f) * static_cast<float>(size) - 1.0f) / 2.0f;
  float begin = std::floor(place), d = place - begin;
  Taps taps;
  for (int i = 0; i < 4; i++)
    taps.index[i] = std::clamp(static_cast<int>(begin) - 1 + i, 0, size - 1);
  taps.weight[0] = far_weight(d + 1.0f);
  taps.weight[1] = near_weight(d);
  taps.weight[2] = near_weight(1.0f - d);
  taps.weight[3] = far_weight(2.0f - d);
  return taps;
}

}  // namespace

void Model::activate(const hearth_op& op, Rows rows) {
  kernels_.activate(row(op.x, rows.first), rows.count * buffers_[op.x].stride, op.activation);
}

void Model::patches(const hearth_op& op, Rows rows) {
  auto width = static_cast<size_t>(buffers_[op.out].width);
  for (int r = rows.first; r < rows.first + rows.count; r++)
    std::memcpy(row(op.out, r), plan_->patches + static_cast<size_t>(r) * width,
                width * sizeof(float));
}

void Model::grid_embed(const hearth_op& op, int index) {
  const hearth_weight& table = weights_[op.weight];
  int64_t stride = (table.layout.cols + 15) / 16 * 16;
  const int32_t *down = plan_->positions + plan_->num_tokens, *across = down + plan_->num_tokens;
  Taps y = taps_of(down[index], plan_->grid_height, op.count);
  Taps x = taps_of(across[index], plan_->grid_width, op.count);
  float* out = row(op.x, index);
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) {
      int64_t cell = static_cast<int64_t>(y.index[i]) * op.count + x.index[j];
      kernels_.add_scaled(out, static_cast<const float*>(table.data) + cell * stride,
                          y.weight[i] * x.weight[j], stride);
    }
}

void Model::regroup(const hearth_op& op, int index) {
  int64_t width = buffers_[op.x].width;
  float* out = row(op.out, index);
  for (int j = 0; j < op.count; j++) {
    const float* x = row(op.x, int64_t{index} * op.count + j);
    if (!op.flag)
      std::copy(x, x + width, out + j * width);
    else
      for (int64_t k = 0; k < width; k++) out[k * op.count + j] = x[k];
  }
}

void Model::emit(const hearth_op& op, int index) {
  int64_t width = buffers_[op.x].width, first = image_row_ / limits_.merge_rows;
  const float* x = row(op.x, index);
  std::copy(x, x + width, result_->features + (first + index) * width);
}

}  // namespace hearth
