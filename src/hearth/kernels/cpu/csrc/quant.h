// Layouts of quantized weights and of quantized rows, as kernels/packing.py names them.
//
// A quantized panel is a run of group blocks, ascending in K, each [scales: 64 bfloat16, or float
// where they are wide][zero points: 64 bytes, where the weight has them][codes]. Codes are
// unsigned, four in the order of K beside each other for one column, 64 columns beside each other:
//   8 bit: [group / 4][64][4]
//   4 bit: [group / 8][64][4], the low half of byte j is column K = j, the high half K = 4 + j
// so that one vector of 32-bit lanes holds neighbouring outputs. A weight is scale · (code − zero
// point); without zero points it is 8 or 128. Codes of FP8 lie as those of 8 bits do, but each is a
// number by itself (e4m3: sign, 4 bits of exponent with bias 7, 3 of fraction, no infinity): a
// weight is scale · number. The two codes that are no number, 0x7f and 0xff, are never packed.
//
// A quantized row is a run of groups, each [codes: int8, the last group padded with zeros][scale:
// float][minus the sum of the codes: int32], so that whoever reads the codes has the others in the
// same cache lines. Behind a row with residuals lies such a run once more: what rounding left of
// each value, in steps of 1/254 of the group's. A group there whose scale is 0 has none: its codes
// are never counted.
#pragma once
#include <stdint.h>

#include "hearth.h"

namespace hearth {

constexpr int kQuantColumns = 64;  // equal to kPanel

inline int64_t num_groups(int64_t cols, int group) {
  return (cols + group - 1) / group;
}
inline int middle_code(int bits) {
  return bits == 4 ? 8 : 128;
}

inline int64_t scale_bytes(const hearth_layout& w) {
  return w.wide ? 4 : 2;
}
// Of one element of a weight that is not codes.
inline int64_t element_bytes(int dtype) {
  return dtype == HEARTH_F32 ? 4 : 2;
}
// Bytes in front of a group's codes.
inline int64_t group_head_bytes(const hearth_layout& w) {
  return kQuantColumns * (scale_bytes(w) + (w.zeros ? 1 : 0));
}
inline int64_t group_block_bytes(const hearth_layout& w) {
  return group_head_bytes(w) + static_cast<int64_t>(w.group) * kQuantColumns * w.bits / 8;
}
inline int64_t quant_panel_bytes(const hearth_layout& w) {
  return num_groups(w.cols, w.group) * group_block_bytes(w);
}
// Where the byte of code (k, column) lies in a group's codes.
inline int64_t code_offset(int bits, int64_t k, int64_t column) {
  return bits == 8 ? k / 4 * 256 + column * 4 + k % 4 : k / 8 * 256 + column * 4 + k % 4;
}

// A row of a quantized table: [codes: cols padded to whole groups][a scale for each group].
inline int64_t table_row_bytes(const hearth_layout& w) {
  int64_t groups = num_groups(w.cols, w.group);
  return (groups * w.group + groups * scale_bytes(w) + 15) / 16 * 16;
}

inline int64_t row_group_bytes(int group) {
  return group + static_cast<int64_t>(sizeof(float) + sizeof(int32_t));
}
inline int64_t row_bytes(int64_t cols, int group, bool residual) {
  return num_groups(cols, group) * row_group_bytes(group) * (residual ? 2 : 1);
}

// A group keeps its residuals where the mean magnitude of its codes is below: a few values have
// taken the steps of the others, of which rounding then loses some 5 % and more. (Of normal values
// the mean is 37, and rounding loses 0.6 %.)
constexpr int kResidualBelow = 8;
// Steps of a residual in one of a code: what rounding left is at most half of one, 127 of these.
constexpr float kResidualSteps = 254.0f;

}  // namespace hearth
