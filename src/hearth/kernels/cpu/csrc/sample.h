// Choosing one token from a row of logits, and the random numbers for it.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace hearth {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

struct SamplingRow {
  float temperature, top_p, min_p;
  int32_t top_k;
  uint64_t seed;
  int32_t position, choice;
};

struct Candidate {
  float logit;
  int32_t id;
};

// Per-thread memory of the sampler; sized once.
struct SampleScratch {
  std::vector<float> weights;         // [vocabulary padded]
  std::vector<Candidate> candidates;  // [vocabulary]
};

struct Sampled {
  int32_t token;
  float logprob;  // at temperature 1, before any filter
};

// The definition stands in kernels/reference/sampling.py; `logits` is readable to a multiple of 64.
Sampled sample_row(const Kernels& kernels, const float* logits, int64_t vocab_size,
                   const SamplingRow& row, SampleScratch& scratch);

// 64-bit FNV-1a over the 32-bit words of the logits' bits.
uint64_t hash_row(const float* logits, int64_t vocab_size);

}  // namespace hearth
