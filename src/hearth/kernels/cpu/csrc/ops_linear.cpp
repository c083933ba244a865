// Linear layers, and what is computed while their outputs are still in the cache: the residual,
// the heads of query, key and value, the activation and the codes of its result.
//
// A tile is some rows times one panel of 64 outputs, or the fewest panels that the operations
// behind need together. Whatever follows a panel is done by the kernels that do it alone, on the
// same numbers in the same order: with operations fused or not, every bit is the same.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "model.h"
#include "quant.h"

namespace hearth {
namespace {

constexpr int64_t kPrefetchBytes = 4096;
constexpr int kBlockTiles = 4;

int row_tiles_of(int rows) {
  return (rows + kLinearTileRows - 1) / kLinearTileRows;
}

// Tiles of nearly equal size, so that threads with rows of their own have equally many; of six,
// which is what the widest kernel takes at a time.
int rows_a_linear_tile(int rows) {
  int size = (rows + row_tiles_of(rows) - 1) / row_tiles_of(rows);
  return std::min(kLinearTileRows, (size + 5) / 6 * 6);
}

int panels(int64_t columns) {
  return static_cast<int>((columns + kPanel - 1) / kPanel);
}

int64_t panel_bytes(const hearth_layout& w) {
  return w.bits ? quant_panel_bytes(w) : kPanel * w.cols * element_bytes(w.dtype);
}

// The begin of a panel that comes after one that is not its neighbour: the processor looks ahead
// only as long as addresses go on. (Past the last panel it asks for nothing that matters.)
void prefetch_panel(const hearth_weight& weight, int64_t panel) {
  const auto* begin = static_cast<const char*>(weight.data) + panel * panel_bytes(weight.layout);
  for (int64_t byte = 0; byte < kPrefetchBytes; byte += 64) __builtin_prefetch(begin + byte, 0, 2);
}

// Rotates elements a and b by one angle; products and sums are rounded one by one.
void rotate(float& a, float& b, float cosine, float sine) {
  float x = a, y = b;
  a = x * cosine - y * sine;
  b = y * cosine + x * sine;
}

}  // namespace

// Outputs of a tile: whole heads, or whole groups of codes (of gate, and as many of up).
int Model::columns_a_tile(const Step& step) const {
  const hearth_op* ops = &ops_[step.op];
  if (step.form == Form::kHeads) return std::lcm(kPanel, ops[step.fused].head_dim);
  if (step.form != Form::kGated || step.fused < 2) return kPanel;
  return std::lcm(kPanel, buffers_[ops[2].out].group);
}

int Model::linear_tiles(const Step& step) const {
  const hearth_op& op = ops_[step.op];
  int64_t columns = step.form == Form::kGated ? buffers_[ops_[step.op + 1].out].width
                                              : weights_[op.weight].layout.rows;
  int size = columns_a_tile(step);
  return static_cast<int>((columns + size - 1) / size) * row_tiles_of(rows_of(op));
}

// Where two threads share many rows, each takes rows of its own, as it does in operations that go
// row by row: what it has written lies in its cache, and the threads' caches may be far apart. The
// price is that both read the weight.
int Model::row_parts(int row_tiles) const {
  return limits_.num_threads == 2 ? std::min(row_tiles, 2) : 1;
}

// Some neighbouring panels go by a row tile, then by the next one: so both are read from a near
// cache but for their first time. A thread's share are neighbours: it reads its part of a weight
// straight through (one row, two threads: 14.4 ms a step where every other panel took 13.2).
void Model::linear_tile(const Step& step, int tile, int thread) {
  const hearth_op& op = ops_[step.op];
  int all_rows = rows_of(op), row_tiles = row_tiles_of(all_rows);
  int columns = linear_tiles(step) / row_tiles, parts = row_parts(row_tiles);
  int begin = 0, count = row_tiles / parts;  // row tiles of the part that the tile is in
  for (int part = 0; tile >= columns * count; part++) {
    tile -= columns * count;
    begin += count;
    count = (part + 2) * row_tiles / parts - begin;
  }
  int first = tile / count / kBlockTiles * kBlockTiles, in_block = tile - first * count;
  int width = std::min(kBlockTiles, columns - first);
  int size = rows_a_linear_tile(all_rows), first_row = (begin + in_block / width) * size;
  Rows rows{first_row, std::min(size, all_rows - first_row)};
  int64_t panel = int64_t{first + in_block % width} * (columns_a_tile(step) / kPanel);
  if (step.form == Form::kHeads) return heads_tile(step, panel, rows, thread);
  if (step.form == Form::kGated) return gated_tile(step, panel, rows, thread);
  if (step.fused) return added_tile(&op, panel, rows, thread);
  float* out = row(op.out, rows.first) + panel * kPanel;
  linear_panel(op, panel, rows, out, buffers_[op.out].stride, thread);
}

// out: first column of the panel in the first of the rows.
void Model::linear_panel(const hearth_op& op, int64_t panel, Rows rows, float* out, int64_t ldo,
                         int thread) {
  const hearth_layout& w = weights_[op.weight].layout;
  if (w.bits) return quant_panel(op, panel, rows, out, ldo, thread);
  LinearArgs args;
  args.x = row(op.x, rows.first);
  args.ldx = buffers_[op.x].stride;
  args.weight = static_cast<const char*>(weights_[op.weight].data) + panel * panel_bytes(w);
  args.dtype = w.dtype;
  args.cols = w.cols;
  args.bias = panel_bias(op, panel);
  args.out = out;
  args.ldo = ldo;
  args.rows = rows.count;
  kernels_.linear(args);
}

const float* Model::panel_bias(const hearth_op& op, int64_t panel) const {
  if (op.bias < 0) return nullptr;
  return static_cast<const float*>(weights_[op.bias].data) + panel * kPanel;
}

void Model::quant_panel(const hearth_op& op, int64_t panel, Rows rows, float* out, int64_t ldo,
                        int thread) {
  const hearth_layout& w = weights_[op.weight].layout;
  QuantLinearArgs args;
  args.x = reinterpret_cast<const char*>(row(op.x, rows.first));
  args.ldx = buffers_[op.x].stride * static_cast<int64_t>(sizeof(float));
  args.panel = static_cast<const uint8_t*>(weights_[op.weight].data) + panel * panel_bytes(w);
  args.cols = w.cols;
  args.bits = w.bits;
  args.group = w.group;
  args.zeros = w.zeros != 0;
  args.wide = w.wide != 0;
  args.fp8 = w.fp8 != 0;
  args.residual = buffers_[op.x].residual;
  args.bias = panel_bias(op, panel);
  args.out = out;
  args.ldo = ldo;
  args.rows = rows.count;
  args.scratch = reinterpret_cast<uint8_t*>(quant_scratch_->data()) + kQuantScratchBytes * thread;
  buffers_[op.x].group ? kernels_.quant_linear(args) : kernels_.quant_linear_exact(args);
}

// Linear, Add.
void Model::added_tile(const hearth_op* ops, int64_t panel, Rows rows, int thread) {
  float* sums = tile_scratch(thread);
  linear_panel(ops[0], panel, rows, sums, kPanel, thread);
  for (int r = 0; r < rows.count; r++)
    kernels_.add(row(ops[1].x, rows.first + r) + panel * kPanel, sums + r * kPanel, kPanel);
}

// Linear, perhaps HeadNorm, Rope, KvWrite: on the heads of the tile, in the rows of q, k, v.
void Model::heads_tile(const Step& step, int64_t first_panel, Rows rows, int thread) {
  const hearth_op* ops = &ops_[step.op];
  const Buffer& out = buffers_[ops[0].out];
  int64_t columns = std::min<int64_t>(columns_a_tile(step), out.width - first_panel * kPanel);
  for (int64_t panel = first_panel; panel < first_panel + panels(columns); panel++)
    linear_panel(ops[0], panel, rows, row(ops[0].out, rows.first) + panel * kPanel, out.stride,
                 thread);
  const hearth_op& write = ops[step.fused];
  int first = static_cast<int>(first_panel * kPanel / write.head_dim);
  int last = first + static_cast<int>(columns / write.head_dim);
  for (int r = rows.first; r < rows.first + rows.count; r++) {
    if (step.fused == 3) head_norm(ops[1], r, first, last);
    rope(ops[step.fused - 1], r, first, last);
    kv_write(write, r, first, last);
  }
}

// Linear, Gate, perhaps Quantize: a row of the tile is gates, then as many ups.
void Model::gated_tile(const Step& step, int64_t first_panel, Rows rows, int thread) {
  const hearth_op* ops = &ops_[step.op];
  const Buffer& gated = buffers_[ops[1].out];
  int64_t first = first_panel * kPanel;
  int64_t columns = std::min<int64_t>(columns_a_tile(step), gated.width - first);
  int64_t ups = gated.width / kPanel, stride = 2 * columns;
  float* both = tile_scratch(thread);
  for (int64_t begin : {int64_t{0}, ups}) {
    prefetch_panel(weights_[ops[0].weight], first_panel + (begin ? panels(columns) : ups));
    float* out = both + (begin ? columns : 0);
    for (int64_t p = 0; p < panels(columns); p++)
      linear_panel(ops[0], begin + first_panel + p, rows, out + p * kPanel, stride, thread);
  }
  int activation = ops[1].activation;
  if (step.fused == 1) {
    float* out = row(ops[1].out, rows.first) + first;
    return kernels_.gate({both, stride, out, gated.stride, columns, rows.count, activation});
  }
  kernels_.gate({both, stride, both, stride, columns, rows.count, activation});
  for (int r = 0; r < rows.count; r++)
    quantize_columns(ops[2], rows.first + r, first, columns, both + r * stride);
}

// Codes of columns first … of a row, whole groups but for the row's end. `x` holds these columns
// only.
void Model::quantize_columns(const hearth_op& op, int index, int64_t first, int64_t count,
                             const float* x) {
  const Buffer& out = buffers_[op.out];
  char* whole = reinterpret_cast<char*>(row(op.out, index));
  char* codes = whole + first / out.group * row_group_bytes(out.group);
  char* residuals = out.residual ? codes + row_bytes(out.width, out.group, false) : nullptr;
  kernels_.quantize({x, count, out.group, codes, residuals});
}

// Heads are numbered through q, k and v; those of v are left as they are.
void Model::head_norm(const hearth_op& op, int index, int first_head, int last_head) {
  auto part = [&](int begin, int end, int32_t weight) {
    begin = std::max(begin, first_head);
    end = std::min(end, last_head);
    if (begin < end)
      kernels_.head_norm({row(op.x, index) + begin * op.head_dim,
                          static_cast<const float*>(weights_[weight].data), end - begin,
                          op.head_dim, op.eps});
  };
  part(0, op.heads, op.weight);
  part(op.heads, op.heads + op.kv_heads, op.bias);
}

void Model::rope(const hearth_op& op, int index, int first_head, int last_head) {
  const float* cosine = row(op.y, index);
  int half = op.rotary_dim / 2;
  const float* sine = cosine + half;
  for (int h = first_head; h < std::min(last_head, op.heads); h++) {
    float* x = row(op.x, index) + h * op.head_dim;
    if (op.pairing == HEARTH_PAIR_INTERLEAVED)
      for (int i = 0; i < half; i++) rotate(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
    else
      for (int i = 0; i < half; i++) rotate(x[i], x[i + half], cosine[i], sine[i]);
  }
}

}  // namespace hearth
