// A program with its weights, scratch rows, KV pools and thread team; runs steps.
#pragma once
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

class Model {
 public:
  explicit Model(const hearth_model_desc& desc);  // throws Failure
  void run(int first, int last, const hearth_plan& plan, const hearth_result& result);
  void read_buffer(int buffer, int rows, float* out) const;

 private:
  // An operation runs in one step, or in several with a barrier between them.
  struct Step {
    int op, part;
  };
  struct Stage {
    int first_step, last_step, tiles;
  };
  struct RowTile {
    int first, rows, sequence;
  };
  struct Buffer {
    float* data;
    int64_t width, stride;  // stride in floats
    int rows_kind;
    int group;  // of quantized rows; 0: floats
  };
  struct Group {
    hearth_group shape;
    std::unique_ptr<Arena> pool;
    int64_t value_offset, head_bytes, block_bytes;
  };
  // Pairs of a row and one of its experts, grouped by expert: row · top_k + place in `routes`.
  struct ExpertPairs {
    std::vector<int32_t> first;   // [experts + 1], offsets into `pairs`
    std::vector<int32_t> pairs;   // [max_tokens · top_k], ascending within an expert
    std::vector<int32_t> active;  // [experts], those that have rows, ascending
    int num_active = 0;
  };
  // Rows of one expert: row r at data + offsets[r], in floats.
  struct ExpertRows {
    const float* data;
    const int64_t* offsets;
    int count;
    int64_t floats;  // that a row occupies
    bool is_int8;
  };
  // Of one thread, for the rows that it routes.
  struct RouteScratch {
    std::vector<float> scores, ranks, group_ranks;
    std::vector<uint8_t> is_out, is_chosen;
  };

  void create_buffers(const hearth_model_desc& desc);
  void create_groups(const hearth_model_desc& desc);
  void create_scratch();
  void create_expert_scratch();
  void check_program() const;
  void check_op(const hearth_op& op) const;
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
  int tiles_of(const hearth_op& op, int part) const;
  int row_tiles(const hearth_op& op, int rows_a_tile) const;
  int rows_of(const Buffer& buffer) const;
  float* row(int buffer, int64_t index) const {
    return buffers_[buffer].data + index * buffers_[buffer].stride;
  }

  static void run_tile(void* self, int stage, int tile, int thread);
  void run_op(const hearth_op& op, int part, int tile, int thread);
  void embed(const hearth_op& op, int row);
  void angles(const hearth_op& op, int row);
  void norm(const hearth_op& op, int tile);
  void linear(const hearth_op& op, int tile, int thread);
  void quant_linear(const hearth_op& op, int64_t panel, int first, int thread);
  const float* panel_bias(const hearth_op& op, int64_t panel) const;
  void quantize(const hearth_op& op, int row);
  void head_norm(const hearth_op& op, int row);
  void rope(const hearth_op& op, int row);
  void kv_write(const hearth_op& op, int row);
  void attend(const hearth_op& op, int tile, int thread);
  void gate(const hearth_op& op, int tile);
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

  void add(const hearth_op& op, int tile);
  void select(const hearth_op& op, int row);
  void soft_cap(const hearth_op& op, int tile);
  void sample(const hearth_op& op, int row, int thread);

  std::vector<hearth_op> ops_;
  std::vector<hearth_weight> weights_;
  std::vector<float> inv_freq_;
  std::vector<Buffer> buffers_;
  std::vector<Group> groups_;
  hearth_model_desc limits_;  // sizes only; its pointers are not kept
  const Kernels& kernels_;
  std::unique_ptr<Arena> rows_;
  std::unique_ptr<Arena> attend_scratch_;
  int64_t attend_scratch_floats_ = 0;
  std::unique_ptr<Arena>
      quant_scratch_;  // kQuantScratchBytes a thread, where a weight is quantized
  std::vector<SampleScratch> sample_scratch_;  // [threads]
  std::vector<RowTile> attend_tiles_;          // rows of one sequence, kAttendRows at most
  std::vector<int32_t> row_sequence_;          // [max_tokens]
  std::vector<int32_t> previous_tokens_;       // results of the last step that sampled
  int num_previous_tokens_ = 0;
  ExpertPairs pairs_;
  std::vector<RouteScratch> route_scratch_;  // [threads]
  // Rows of an expert beside each other, kLinearTileRows · gather_floats_ a thread.
  std::unique_ptr<Arena> gather_scratch_;
  int64_t gather_floats_ = 0;
  std::vector<Step> steps_;
  std::vector<int> first_step_;  // [ops + 1], of each operation
  std::vector<Stage> stages_;
  std::vector<int> stage_tiles_;
  const hearth_plan* plan_ = nullptr;
  const hearth_result* result_ = nullptr;
  std::unique_ptr<Team> team_;
};

}  // namespace hearth
