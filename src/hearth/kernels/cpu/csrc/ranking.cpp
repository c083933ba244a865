// The best tokens of a row without looking at every logit twice.
//
// The w-th largest of the blocks' maxima is a bound that at least w logits reach; all logits that
// reach it are an exact prefix of the ranking, and only blocks whose maximum reaches it hold any.
#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "sample.h"

namespace hearth {
namespace {

constexpr int64_t kRadixFrom =
    1024;  // keys from which three counting passes beat a comparison sort
constexpr int kRadixBits = 11;

int64_t num_blocks(int64_t vocab_size) {
  return (vocab_size + kRankBlock - 1) / kRankBlock;
}

// Ascending keys are the ranking: high half the logit's bits, turned so that larger logits come
// first; low half the id. Adding zero makes −0 and 0 equal, as they are in comparisons.
uint64_t rank_key(float logit, int64_t id) {
  float value = logit + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(id);
}

// Stable, by the high half only: keys come in ascending order of ids. Three passes leave the result
// in the other array, so the arrays are exchanged.
void radix_sort(SampleScratch& s, int64_t count) {
  constexpr int kBuckets = 1 << kRadixBits;
  for (int shift = 32; shift < 64; shift += kRadixBits) {
    int64_t starts[kBuckets + 1] = {};
    auto bucket = [&](uint64_t key) { return (key >> shift) & (kBuckets - 1); };
    for (int64_t i = 0; i < count; i++) starts[bucket(s.ranked[i]) + 1]++;
    for (int b = 0; b < kBuckets; b++) starts[b + 1] += starts[b];
    for (int64_t i = 0; i < count; i++) s.spare[starts[bucket(s.ranked[i])]++] = s.ranked[i];
    std::swap(s.ranked, s.spare);
  }
}

}  // namespace

SampleScratch::SampleScratch(int64_t vocab_size)
    : block_max(std::make_unique_for_overwrite<float[]>(num_blocks(vocab_size))),
      block_rank(std::make_unique_for_overwrite<float[]>(num_blocks(vocab_size))),
      sums(std::make_unique_for_overwrite<double[]>(vocab_size / kSumChunk + 1)),
      ranked(std::make_unique_for_overwrite<uint64_t[]>(vocab_size)),
      spare(std::make_unique_for_overwrite<uint64_t[]>(vocab_size)),
      weights(std::make_unique_for_overwrite<float[]>(num_blocks(vocab_size) * kRankBlock)) {
  saved.reserve(static_cast<size_t>(2 * vocab_size));
}

float find_block_maxima(const Kernels& kernels, const float* logits, int64_t vocab_size,
                        SampleScratch& scratch) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  float most = kLeast;
  for (int64_t block = 0, first = 0; first < vocab_size; block++, first += kRankBlock) {
    float value = kernels.maximum(logits + first, std::min(kRankBlock, vocab_size - first));
    if (!(value >= kLeast)) value = kLeast;
    scratch.block_max[block] = value;
    most = std::max(most, value);
  }
  return most;
}

int64_t rank_best(const float* logits, int64_t vocab_size, int64_t wanted, SampleScratch& s) {
  int64_t blocks = num_blocks(vocab_size), count = 0;
  float bound = -std::numeric_limits<float>::infinity();
  if (wanted < blocks) {
    float* order = s.block_rank.get();
    std::copy_n(s.block_max.get(), blocks, order);
    std::nth_element(order, order + wanted - 1, order + blocks, std::greater<float>());
    bound = order[wanted - 1];
  }
  for (int64_t block = 0; block < blocks; block++) {
    if (s.block_max[block] < bound) continue;
    int64_t end = std::min((block + 1) * kRankBlock, vocab_size);
    for (int64_t id = block * kRankBlock; id < end; id++)
      if (logits[id] >= bound) s.ranked[count++] = rank_key(logits[id], id);
  }
  if (count >= kRadixFrom)
    radix_sort(s, count);
  else
    std::sort(s.ranked.get(), s.ranked.get() + count);
  return count;
}

}  // namespace hearth
