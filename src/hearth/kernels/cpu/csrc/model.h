// A program with its weights, scratch rows, KV pools and thread team; runs steps.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hearth.h"
#include "kernels.h"
#include "sample.h"
#include "team.h"

namespace hearth {

// An error that crosses the C boundary as a code and a message.
struct Failure {
  int32_t code;
  std::string message;
};

// Zeroed, page-aligned memory; huge pages are asked for above 2 MiB.
class Arena {
 public:
  explicit Arena(size_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

const Kernels& choose_kernels(const char* isa);  // throws Failure
const char* isas_of_this_machine();              // names, the best first

// Steps that an operation takes: 1, or the parts of a mixture of experts.
int num_parts(const hearth_op& op);

// How a step is cut into tiles. The first operation of a group of fused ones decides, and the one
// behind it.
enum class Form {
  kRows,    // rows through operations that read and write whole rows
  kLinear,  // a panel of outputs, added to another buffer where an Add follows
  kHeads,   // panels that hold whole heads: norm, rotation, keys and values to the cache
  kGated,   // the panels of gate and up of some outputs, their activation, their codes
  kAttend,  // rows of a sequence and a key/value head, their codes
  kExperts,
};

// Whether an operation reads and writes its rows one by one.
bool is_row_wise(int32_t kind);
int own_buffer(const hearth_op& op);

class Model {
 public:
  explicit Model(const hearth_model_desc& desc);  // throws Failure
  void run(int first, int last, const hearth_plan& plan, const hearth_result& result);
  void bind(const int32_t* cpus) { team_->bind(cpus); }
  void read_buffer(int buffer, int rows, float* out) const;
  void write_buffer(int buffer, int rows, const float* in);

 private:
  // An operation runs in one step together with the `fused` next ones, or in several steps (parts)
  // with a barrier between them.
  struct Step {
    Form form;
    int op, part, fused;
  };
  struct Stage {
    int first_step, last_step, tiles;
  };
  struct Rows {
    int first, count;
  };
  // Rows of a buffer, neighbours in a sequence, the first at `position`.
  struct RowTile {
    int first, rows, sequence;
    int64_t position;
  };
  struct Segments {
    int64_t first, last;  // absolute numbers; `last` is behind the last one
    int64_t count() const { return last - first; }
  };
  struct Keys {
    int64_t first, last;  // `last` is behind the last one
  };
  // Some of the segments of keys that a row tile sees, or all of them (pieces 1).
  struct AttendTile {
    int row_tile;
    Segments segments;
    int pieces;        // tiles of this row tile
    int64_t partials;  // where those of its first key/value head begin, in floats
    int merge;         // number of the row tile among those that are split
  };
  // The attention of a step in one KV group.
  struct AttendWork {
    int most_heads = 0;  // query heads a key/value head, of any of its layers
    std::vector<AttendTile> tiles;
  };
  struct Buffer {
    float* data;
    int64_t width, stride;  // stride in floats
    int rows_kind;
    int group;      // of quantized rows; 0: floats
    bool is_tile;   // without memory: fused operations keep it within their tiles
    bool residual;  // quantized rows keep what rounding left, where a group's scale is too coarse
  };
  const Buffer& whole_buffer(int buffer, int rows) const;  // checked; throws Failure
  struct Group {
    hearth_group shape;
    std::unique_ptr<Arena> pool;
    KvLayout layout;  // of one layer and key/value head
    int64_t block_bytes;
  };
  // Pairs of a row and one of its experts, grouped by expert: row · top_k + place in `routes`.
  struct ExpertPairs {
    std::vector<int32_t> first;   // [experts + 1], offsets into `pairs`
    std::vector<int32_t> pairs;   // [most rows · top_k], ascending within an expert
    std::vector<int32_t> active;  // [experts], those that have rows, ascending
    int num_active = 0;
  };
  // Rows of one expert: row r at data + offsets[r], in floats.
  struct ExpertRows {
    const float* data;
    const int64_t* offsets;
    int count;
    int64_t floats;  // that a row occupies
    bool is_int8, residual;
  };
  // Of one thread, for the rows that it routes.
  struct RouteScratch {
    std::vector<float> scores, ranks, group_ranks;
    std::vector<uint8_t> is_out, is_chosen;
  };

  void create_buffers(const hearth_model_desc& desc);
  void create_groups(const hearth_model_desc& desc);
  void create_steps();
  void create_scratch();
  void create_attend_scratch();
  void create_tile_scratch();
  void create_expert_scratch();
  void check_program() const;
  void check_op(const hearth_op& op) const;
  void check_encoder_op(const hearth_op& op) const;
  void check_image(const hearth_plan& plan, const hearth_result& result) const;
  void check_tile_buffers() const;
  Form form_of(int first) const;  // throws Failure
  void check_experts(const hearth_op& op) const;
  void check_expert_codes(const hearth_op& op, const hearth_layout& gate_up,
                          const hearth_layout& down) const;
  const hearth_layout& checked_weight(int32_t index, int32_t kind, int64_t rows,
                                      int64_t stack = 1) const;
  void check_plan(const hearth_plan& plan) const;
  void check_blocks(const hearth_plan& plan) const;
  void check_sampling(const hearth_plan& plan, const hearth_result& result) const;
  void copy_blocks(const hearth_plan& plan);
  void prepare(int first, int last, const hearth_plan& plan, const hearth_result& result);
  void keep_results(const hearth_plan& plan, const hearth_result& result);
  int tiles_of(const Step& step) const;
  int rows_of(const Buffer& buffer) const;
  int rows_of(const hearth_op& op) const;
  // `index` counts from the first row of the run, also in a buffer of a whole image.
  float* row(int buffer, int64_t index) const {
    const Buffer& b = buffers_[buffer];
    if (b.rows_kind == HEARTH_ROWS_IMAGE) index += image_row_;
    return b.data + index * b.stride;
  }
  int64_t most_rows(int kind) const;

  static void run_tile(void* self, int stage, int tile, int thread);
  void run_step(const Step& step, int tile, int thread);
  // ops.cpp: operations on rows
  int row_tiles(const Step& step) const;
  int rows_a_tile(const Step& step) const;
  void row_tile(const Step& step, int tile, int thread);
  void run_rows(const hearth_op& op, Rows rows, int thread);
  void embed(const hearth_op& op, int row);
  void angles(const hearth_op& op, int row);
  void norm(const hearth_op& op, Rows rows);
  void quantize(const hearth_op& op, int row);
  void gate(const hearth_op& op, Rows rows);
  void add(const hearth_op& op, Rows rows);
  void select(const hearth_op& op, int row);
  void soft_cap(const hearth_op& op, Rows rows);
  void sample(const hearth_op& op, int row, int thread);
  // ops_encoder.cpp
  void activate(const hearth_op& op, Rows rows);
  void patches(const hearth_op& op, Rows rows);
  void grid_embed(const hearth_op& op, int row);
  void regroup(const hearth_op& op, int row);
  void emit(const hearth_op& op, int row);
  // ops_linear.cpp
  int linear_tiles(const Step& step) const;
  int columns_a_tile(const Step& step) const;
  int row_parts(int row_tiles) const;
  void linear_tile(const Step& step, int tile, int thread);
  void linear_panel(const hearth_op& op, int64_t panel, Rows rows, float* out, int64_t ldo,
                    int thread);
  void quant_panel(const hearth_op& op, int64_t panel, Rows rows, float* out, int64_t ldo,
                   int thread);
  float* tile_scratch(int thread) const;
  const float* panel_bias(const hearth_op& op, int64_t panel) const;
  void added_tile(const hearth_op* ops, int64_t panel, Rows rows, int thread);
  void heads_tile(const Step& step, int64_t first_panel, Rows rows, int thread);
  void gated_tile(const Step& step, int64_t first_panel, Rows rows, int thread);
  void quantize_columns(const hearth_op& op, int row, int64_t first, int64_t count, const float* x);
  void head_norm(const hearth_op& op, int row, int first_head, int last_head);
  void rope(const hearth_op& op, int row, int first_head, int last_head);
  // ops_attention.cpp
  Keys keys_of(const RowTile& rows, int window) const;
  Segments segments_of(const RowTile& rows, int window) const;
  void plan_attention();
  void split_attention(AttendWork& work, const std::vector<RowTile>& tiles,
                       const hearth_group& group);
  int64_t position_of(int sequence, int row) const;
  bool attends_wanted_rows(const hearth_op& op) const;
  size_t attend_work(const hearth_op& op) const;
  int attend_tiles(const hearth_op& op) const;
  AttendArgs attend_args(const hearth_op& op, const RowTile& rows, int kv_head, int thread);
  void attend_tile(const Step& step, int tile, int thread);
  void kv_write(const hearth_op& op, int row, int first_head, int last_head);
  bool rotates_keys() const { return limits_.kv_dtype == HEARTH_KV_INT4 && limits_.kv_rotated; }
  // ops_experts.cpp
  int expert_tiles(const hearth_op& op, int part) const;
  void experts(const hearth_op& op, int part, int tile, int thread);
  void route(const hearth_op& op, int row, RouteScratch& scratch);
  void score(const hearth_op& op, const float* logits, RouteScratch& scratch);
  void group_pairs(const hearth_op& op);
  void expert_gated(const hearth_op& op, int tile, int thread);
  void expert_codes(const hearth_op& op, int row, int thread);
  void expert_down(const hearth_op& op, int panel, int thread);
  void expert_panel(const hearth_weight& weight, int64_t matrix, int panel, const ExpertRows& rows,
                    float* out, int64_t ldo, int thread);

  std::vector<hearth_op> ops_;
  std::vector<hearth_weight> weights_;
  std::vector<float> inv_freq_;
  std::vector<Buffer> buffers_;
  std::vector<Group> groups_;
  hearth_model_desc limits_;  // sizes only; its pointers are not kept
  const Kernels& kernels_;
  std::unique_ptr<Arena> rows_;
  std::unique_ptr<Arena> attend_scratch_;
  int64_t attend_scratch_floats_ = 0;    // a thread
  std::unique_ptr<Arena> tile_scratch_;  // what fused operations keep within their tiles
  int64_t tile_floats_ = 0;              // a thread
  std::unique_ptr<Arena> partials_;      // of attention that is split
  int64_t partial_floats_ = 0;
  std::vector<AttendWork> attend_work_;        // [rows of the step, wanted ones][groups]
  std::vector<std::atomic<int>> attend_done_;  // tiles of (row tile that is split, kv head)
  int most_split_ = 0;                         // row tiles of a step that may be split
  std::unique_ptr<Arena> quant_scratch_;       // kQuantScratchBytes a thread
  std::vector<SampleScratch> sample_scratch_;  // [threads]
  int attend_rows_ = kAttendRows;              // of a sequence that a tile takes
  // Rows of one sequence, attend_rows_ at most: of the step, and of the logits that are wanted.
  std::vector<RowTile> attend_tiles_[2];
  int64_t image_row_ = 0;                 // of an encoder's run, the first
  std::vector<int32_t> previous_tokens_;  // results of the last step that sampled
  int num_previous_tokens_ = 0;
  ExpertPairs pairs_;
  std::vector<RouteScratch> route_scratch_;  // [threads]
  // Rows of an expert beside each other, kLinearTileRows · gather_floats_ a thread.
  std::unique_ptr<Arena> gather_scratch_;
  int64_t gather_floats_ = 0;
  std::vector<Step> steps_;
  std::vector<int> first_step_;  // [ops + 1], of each operation; −1: in the middle of one
  std::vector<Stage> stages_;
  std::vector<int> stage_tiles_;
  const hearth_plan* plan_ = nullptr;
  const hearth_result* result_ = nullptr;
  std::unique_ptr<Team> team_;
};

}  // namespace hearth
