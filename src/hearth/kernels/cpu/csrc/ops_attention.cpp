// Attention: which rows and which keys a tile takes, and the cache that it reads.
//
// A tile is some rows of a sequence and a key/value head. Where a sequence is so long that its
// tiles would keep some threads busy while others wait, its keys are split as well, at segments:
// each tile leaves the results of its segments, and the last one to finish merges all of them, as
// one thread alone would have done.
#include <algorithm>

#include "model.h"
#include "quant.h"

namespace hearth {
namespace {

// Queries that share each look at the keys; fewer would read long contexts too often. An image's
// keys (6.9 MB a head for 13,416 patches) come from far away: 32 queries have 55 % of the peak, 96
// have 66 %.
constexpr int kQueriesATile = 32;
constexpr int kImageQueries = 96;
constexpr int kPiecesAThread = 4;   // of equal work, so that one that is held up has little left
constexpr int kSplitsAThread = 16;  // row tiles that may be split
constexpr size_t kPartialBytes = 2 << 20;  // a thread; what finds no room there is not split

}  // namespace

void Model::create_attend_scratch() {
  attend_work_.resize(2 * groups_.size());
  int most_kv_heads = 0, most_heads = 1;
  for (const auto& op : ops_)
    if (op.kind == HEARTH_OP_ATTEND) most_heads = std::max(most_heads, op.heads / op.kv_heads);
  int queries = limits_.max_image_rows > 0 ? kImageQueries : kQueriesATile;
  attend_rows_ = std::max(kAttendRows, queries / most_heads);
  for (const auto& op : ops_) {
    if (op.kind != HEARTH_OP_ATTEND) continue;
    int heads = op.heads / op.kv_heads;
    int64_t floats =
        hearth::attend_scratch_floats(attend_rows_ * heads, op.head_dim, limits_.kv_dtype);
    attend_scratch_floats_ = std::max(attend_scratch_floats_, (floats + 63) / 64 * 64);
    auto& work = attend_work_[attend_work(op)];
    work.most_heads = std::max(work.most_heads, heads);
    most_kv_heads = std::max(most_kv_heads, op.kv_heads);
  }
  auto threads = static_cast<size_t>(limits_.num_threads);
  attend_scratch_ = std::make_unique<Arena>(static_cast<size_t>(attend_scratch_floats_) * threads *
                                            sizeof(float));
  auto rows = static_cast<size_t>(std::max(limits_.max_tokens, limits_.max_logit_rows));
  for (auto& tiles : attend_tiles_) tiles.reserve(rows);
  bool may_split = limits_.attend_split == HEARTH_SPLIT_ALWAYS ||
                   (limits_.attend_split == HEARTH_SPLIT_AUTO && threads > 1);
  if (may_split && most_kv_heads > 0) {
    most_split_ = kSplitsAThread * limits_.num_threads;
    partial_floats_ = static_cast<int64_t>(kPartialBytes / sizeof(float) * threads);
    partials_ = std::make_unique<Arena>(kPartialBytes * threads);
    attend_done_ = std::vector<std::atomic<int>>(static_cast<size_t>(most_split_ * most_kv_heads));
  }
  for (auto& work : attend_work_)
    work.tiles.reserve(rows + static_cast<size_t>(most_split_) + kPiecesAThread * threads);
}

// Of an image: all rows, or those of the window that a row tile lies in.
Model::Keys Model::keys_of(const RowTile& rows, int window) const {
  if (window == 0) return {0, plan_->image_rows};
  const int32_t* behind = plan_->window_start + plan_->num_windows + 1;
  int32_t row = plan_->context[0] + rows.first;
  const int32_t* next = std::upper_bound(plan_->window_start, behind, row);
  return {next[-1], next[0]};
}

Model::Segments Model::segments_of(const RowTile& rows, int window) const {
  if (plan_->image_rows > 0) {
    Keys keys = keys_of(rows, window);
    return {keys.first / kSegment, (keys.last + kSegment - 1) / kSegment};
  }
  int64_t first = window > 0 ? std::max<int64_t>(0, rows.position + 1 - window) : 0;
  return {first / kSegment, (rows.position + rows.rows + kSegment - 1) / kSegment};
}

// Attention of the rows of a step, and of those alone whose logits are wanted.
void Model::plan_attention() {
  for (auto& tiles : attend_tiles_) tiles.clear();
  for (int s = 0; s < plan_->num_sequences; s++)
    for (int row = plan_->row_start[s]; row < plan_->row_start[s + 1];) {
      RowTile tile{row, std::min(attend_rows_, plan_->row_start[s + 1] - row), s,
                   position_of(s, row)};
      if (plan_->num_windows > 0)  // no tile lies in two windows
        tile.rows = static_cast<int>(
            std::min<int64_t>(tile.rows, keys_of(tile, -1).last - plan_->context[0] - row));
      attend_tiles_[0].push_back(tile);
      row += tile.rows;
    }
  const int32_t* wanted = plan_->logit_rows;
  for (int first = 0, count = 0; first < plan_->num_logit_rows; first += count) {
    const int32_t* behind = plan_->row_start + plan_->num_sequences + 1;
    const int32_t* end = std::upper_bound(plan_->row_start, behind, wanted[first]);
    int sequence = static_cast<int>(end - plan_->row_start) - 1;
    int most = std::min({attend_rows_, plan_->num_logit_rows - first, *end - wanted[first]});
    for (count = 1; count < most && wanted[first + count] == wanted[first] + count;) count++;
    attend_tiles_[1].push_back({first, count, sequence, position_of(sequence, wanted[first])});
  }
  for (size_t w = 0; w < attend_work_.size(); w++)
    if (attend_work_[w].most_heads > 0)
      split_attention(attend_work_[w], attend_tiles_[w / groups_.size()],
                      groups_[w % groups_.size()].shape);
}

int64_t Model::position_of(int sequence, int row) const {
  return static_cast<int64_t>(plan_->context[sequence]) + row - plan_->row_start[sequence];
}

bool Model::attends_wanted_rows(const hearth_op& op) const {
  return buffers_[op.out].rows_kind == HEARTH_ROWS_LOGITS;
}

size_t Model::attend_work(const hearth_op& op) const {
  return static_cast<size_t>(op.group) + (attends_wanted_rows(op) ? groups_.size() : 0);
}

// Cuts row tiles that have more than their share of the work, as long as there is room for what
// their pieces leave. The work of a tile is taken to be its rows times its segments.
void Model::split_attention(AttendWork& work, const std::vector<RowTile>& tiles,
                            const hearth_group& group) {
  int64_t total = 0;
  for (const auto& rows : tiles) total += rows.rows * segments_of(rows, group.window).count();
  int64_t share = total * group.kv_heads / (int64_t{kPiecesAThread} * limits_.num_threads);
  int64_t used = 0;
  int merge = 0;
  work.tiles.clear();
  for (size_t i = 0; i < tiles.size(); i++) {
    const RowTile& rows = tiles[i];
    Segments all = segments_of(rows, group.window);
    int64_t run = limits_.attend_split == HEARTH_SPLIT_ALWAYS
                      ? 1
                      : std::max<int64_t>(1, (share + rows.rows - 1) / rows.rows);
    int64_t pieces = (all.count() + run - 1) / run;
    int64_t floats = group.kv_heads * all.count() *
                     attend_partial_floats(rows.rows * work.most_heads, group.head_dim);
    if (pieces == 1 || merge == most_split_ || used + floats > partial_floats_) {
      work.tiles.push_back({static_cast<int>(i), all, 1, 0, 0});
      continue;
    }
    for (int64_t p = 0; p < pieces; p++) {
      Segments part{all.first + all.count() * p / pieces,
                    all.first + all.count() * (p + 1) / pieces};
      work.tiles.push_back({static_cast<int>(i), part, static_cast<int>(pieces), used, merge});
    }
    used += floats;
    merge++;
  }
}

int Model::attend_tiles(const hearth_op& op) const {
  return static_cast<int>(attend_work_[attend_work(op)].tiles.size()) * op.kv_heads;
}

AttendArgs Model::attend_args(const hearth_op& op, const RowTile& rows, int kv_head, int thread) {
  const Group& g = groups_[op.group];
  int heads = op.heads / op.kv_heads, sequence = rows.sequence;
  int64_t of_group = static_cast<int64_t>(op.group) * (plan_->num_sequences + 1) + sequence;
  AttendArgs args{};
  args.q = row(op.x, rows.first) + kv_head * heads * op.head_dim;
  args.ldq = buffers_[op.x].stride;
  args.rows = rows.rows;
  args.heads = heads;
  args.head_dim = op.head_dim;
  args.position = rows.position;
  if (op.flag & HEARTH_ATTEND_IMAGE) {
    Keys keys = keys_of(rows, op.window);
    args.first_key = keys.first;
    args.keys = keys.last;
  }
  args.window = op.window;
  args.scale = op.scale;
  args.soft_cap = op.soft_cap;
  args.storage = limits_.kv_dtype;
  args.rotated = rotates_keys();
  args.rounded = op.flag & HEARTH_ATTEND_ROUNDED;
  args.blocks = plan_->blocks + plan_->block_start[of_group];
  args.first_block = plan_->first_block[op.group * plan_->num_sequences + sequence];
  args.block_size = limits_.block_size;
  args.pool = g.pool->data();
  args.block_stride = g.block_bytes;
  args.part_offset = (static_cast<int64_t>(op.layer) * op.kv_heads + kv_head) * g.layout.bytes;
  args.layout = g.layout;
  args.scratch =
      reinterpret_cast<float*>(attend_scratch_->data()) + thread * attend_scratch_floats_;
  return args;
}

// Attend, perhaps Quantize: then the tile keeps the outputs of its heads, and writes their codes.
void Model::attend_tile(const Step& step, int tile, int thread) {
  const hearth_op* ops = &ops_[step.op];
  const hearth_op& op = ops[0];
  const AttendTile& t =
      attend_work_[attend_work(op)].tiles[static_cast<size_t>(tile / op.kv_heads)];
  const RowTile& rows = attend_tiles_[attends_wanted_rows(op)][static_cast<size_t>(t.row_tile)];
  int kv_head = tile % op.kv_heads, width = op.heads / op.kv_heads * op.head_dim;
  AttendArgs args = attend_args(op, rows, kv_head, thread);
  args.out = step.fused ? tile_scratch(thread) : row(op.out, rows.first) + kv_head * width;
  args.ldo = step.fused ? (width + kRowPad - 1) / kRowPad * kRowPad : buffers_[op.out].stride;
  if (t.pieces > 1) {
    int64_t of_head = attend_partial_floats(rows.rows * args.heads, op.head_dim) *
                      segments_of(rows, op.window).count();
    args.partials = reinterpret_cast<float*>(partials_->data()) + t.partials + kv_head * of_head;
    args.first_segment = t.segments.first;
    args.last_segment = t.segments.last;
  }
  kernels_.attend(args);
  if (t.pieces > 1) {
    auto& done = attend_done_[static_cast<size_t>(t.merge * op.kv_heads + kv_head)];
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < t.pieces) return;
    done.store(0, std::memory_order_relaxed);  // for the next layer, behind a barrier
    kernels_.attend_merge(args);
  }
  if (!step.fused) return;
  for (int r = 0; r < rows.rows; r++)
    quantize_columns(ops[1], rows.first + r, int64_t{kv_head} * width, width,
                     args.out + r * args.ldo);
}

// Heads first_head … last_head−1, numbered through q, k and v: those of k and v go to their slot.
void Model::kv_write(const hearth_op& op, int index, int first_head, int last_head) {
  const Group& g = groups_[op.group];
  int32_t slot = plan_->slots[op.group * plan_->num_tokens + index];
  char* layer = g.pool->data() + slot / limits_.block_size * g.block_bytes +
                op.layer * op.kv_heads * g.layout.bytes;
  for (int h = std::max(first_head, op.heads); h < last_head; h++) {
    bool is_key = h < op.heads + op.kv_heads;
    const float* x = row(op.x, index) + h * op.head_dim;
    kernels_.kv_write({is_key ? x : nullptr, is_key ? nullptr : x, op.head_dim, limits_.kv_dtype,
                       rotates_keys(), layer + (h - op.heads) % op.kv_heads * g.layout.bytes,
                       g.layout, limits_.block_size, slot % limits_.block_size});
  }
}

}  // namespace hearth
