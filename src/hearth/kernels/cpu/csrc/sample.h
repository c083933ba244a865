// Choosing one token from a row of logits, and the random numbers for it.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace hearth {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

// One row of core/step.LogitEdits. Tokens are within the vocabulary and, in each of the two lists,
// distinct: checks.cpp bounds their number, sample.cpp relies on no more.
struct RowEdits {
  float repetition, frequency, presence;
  const int32_t* count_tokens;
  const int32_t* counts;
  int64_t num_counts;
  const int32_t* bias_tokens;
  const float* biases;
  int64_t num_biases;
};

struct SamplingRow {
  float temperature, top_p, min_p;
  int32_t top_k;
  uint64_t seed;
  int32_t position, choice;
  const RowEdits* edits;  // null: none
  int32_t given;          // ≥ 0: this token is scored, none is sampled
};

// How much of the log-probabilities is wanted: of the token alone (0), of the `count` best too.
struct LogprobsWanted {
  int32_t count;    // −1: none
  int32_t* tokens;  // [count]; −1 where the vocabulary is smaller
  float* logprobs;  // [count]
};

// Per-thread memory of the sampler, sized once. Only what is used is ever touched: most rows need
// some thousand entries of it.
class SampleScratch {
 public:
  explicit SampleScratch(int64_t vocab_size);

  struct Saved {
    int32_t token;
    float logit;
  };

  std::unique_ptr<float[]> block_max;   // [blocks]; largest logit of each block of kRankBlock
  std::unique_ptr<float[]> block_rank;  // [blocks]
  std::unique_ptr<double[]> sums;       // [chunks of kSumChunk]
  std::unique_ptr<uint64_t[]> ranked;   // [vocabulary]; keys, see ranking.cpp
  std::unique_ptr<uint64_t[]> spare;    // [vocabulary]; the sort's other half
  std::unique_ptr<float[]> weights;     // [vocabulary padded]
  std::vector<Saved> saved;             // logits before the edits
};

// Logits a block whose largest is known: small, since a block with one candidate is read whole.
constexpr int64_t kRankBlock = 64;
// Logits whose weights are summed together; the chunk of Kernels::exp_sum.
constexpr int64_t kSumChunk = 1024;

// Fills scratch.block_max; returns the largest of all. NaN counts as −infinity.
float find_block_maxima(const Kernels& kernels, const float* logits, int64_t vocab_size,
                        SampleScratch& scratch);

// Writes the best tokens, by logit descending and id ascending, to scratch.ranked: an exact prefix
// of the ranking with at least min(wanted, vocabulary) of them (fewer only where logits are NaN).
// Needs find_block_maxima before. Returns how many.
int64_t rank_best(const float* logits, int64_t vocab_size, int64_t wanted, SampleScratch& scratch);

inline int32_t ranked_token(const SampleScratch& scratch, int64_t rank) {
  return static_cast<int32_t>(scratch.ranked[rank] & 0xFFFFFFFFu);
}

struct Sampled {
  int32_t token;
  float logprob;  // of the raw logits: before edits, temperature and filters; NaN: not wanted
  int32_t rank;   // of a given token, 1 the best; 0: it was sampled
};

// The definition stands in kernels/reference/sampling.py; `logits` is readable to a multiple of 64.
// Edits are made in place and undone before it returns.
Sampled sample_row(const Kernels& kernels, float* logits, int64_t vocab_size,
                   const SamplingRow& row, const LogprobsWanted& wanted, SampleScratch& scratch);

// 64-bit FNV-1a over the 32-bit words of the logits' bits.
uint64_t hash_row(const float* logits, int64_t vocab_size);

}  // namespace hearth
