#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace hearth {
namespace {

// Below it 1 / temperature overflows; the largest logit has all the weight long before.
constexpr float kLeastTemperature = 1e-30f;

bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

double uniform(const SamplingRow& row) {
  uint32_t counter[4] = {static_cast<uint32_t>(row.position), static_cast<uint32_t>(row.choice), 0,
                         0};
  uint32_t key[2] = {static_cast<uint32_t>(row.seed), static_cast<uint32_t>(row.seed >> 32)};
  uint32_t words[4];
  philox4x32(counter, key, words);
  // Never 0, so that a token without weight is never drawn.
  return (static_cast<double>(words[0] >> 8) + 0.5) * 0x1p-24;
}

// First index in id order whose cumulative weight exceeds u · total.
int32_t pick_in_order(const float* weights, int64_t count, double target) {
  double sum = 0.0;
  int32_t last = 0;
  for (int64_t i = 0; i < count; i++) {
    if (weights[i] <= 0.0f) continue;
    sum += static_cast<double>(weights[i]);
    last = static_cast<int32_t>(i);
    if (sum > target) return last;
  }
  return last;
}

// The kept candidates, best first, in scratch.candidates; returns how many.
//
// Grows a sorted prefix until it holds what the filters keep, so that a usual top-p sorts some
// hundred candidates and not the vocabulary.
int64_t keep_candidates(const SamplingRow& row, int64_t vocab_size, double total,
                        SampleScratch& s) {
  auto& candidates = s.candidates;
  int64_t limit = row.top_k > 0 ? std::min<int64_t>(row.top_k, vocab_size) : vocab_size;
  int64_t sorted = 0, size = std::min<int64_t>(limit, row.top_k > 0 ? row.top_k : 64);
  double sum = 0.0, needed = 0.0, mass = total;
  for (;;) {
    auto begin = candidates.begin();
    if (size < vocab_size)
      std::nth_element(begin + sorted, begin + size - 1, begin + vocab_size, better);
    std::sort(begin + sorted, begin + size, better);
    if (row.top_k > 0) {
      mass = 0.0;
      for (int64_t i = 0; i < size; i++) mass += static_cast<double>(s.weights[candidates[i].id]);
    }
    needed = static_cast<double>(row.top_p) * mass;
    float least = row.min_p * s.weights[candidates[0].id];
    for (; sorted < size; sorted++) {
      float weight = s.weights[candidates[sorted].id];
      if (sorted > 0 && (weight < least || (row.top_p < 1.0f && sum >= needed))) return sorted;
      sum += static_cast<double>(weight);
    }
    if (size == limit) return size;
    size = std::min(limit, size * 4);
  }
}

int32_t draw(const Kernels& kernels, const float* logits, int64_t vocab_size, float maximum,
             const SamplingRow& row, SampleScratch& s) {
  double total =
      kernels.exp_sum(logits, vocab_size, maximum, 1.0f / row.temperature, s.weights.data());
  bool filtered = row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
  if (!filtered) return pick_in_order(s.weights.data(), vocab_size, uniform(row) * total);
  for (int64_t i = 0; i < vocab_size; i++) {
    float logit = std::isnan(logits[i]) ? -INFINITY : logits[i];  // sorting needs an order
    s.candidates[i] = {logit, static_cast<int32_t>(i)};
  }
  int64_t kept = keep_candidates(row, vocab_size, total, s);
  double sum = 0.0;
  for (int64_t i = 0; i < kept; i++) sum += static_cast<double>(s.weights[s.candidates[i].id]);
  double target = uniform(row) * sum, cumulative = 0.0;
  for (int64_t i = 0; i < kept; i++) {
    cumulative += static_cast<double>(s.weights[s.candidates[i].id]);
    if (cumulative > target) return s.candidates[i].id;
  }
  return s.candidates[kept - 1].id;
}

}  // namespace

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
  for (int round = 0; round < 10; round++) {
    uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c[0];
    uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
    uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
                        static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    std::memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  std::memcpy(out, c, sizeof c);
}

Sampled sample_row(const Kernels& kernels, const float* logits, int64_t vocab_size,
                   const SamplingRow& row, SampleScratch& scratch) {
  float maximum = kernels.maximum(logits, vocab_size);
  double log_total = std::log(kernels.exp_sum(logits, vocab_size, maximum, 1.0f, nullptr));
  int32_t token = 0;
  if (row.temperature < kLeastTemperature)
    token = static_cast<int32_t>(std::find(logits, logits + vocab_size, maximum) - logits);
  else
    token = draw(kernels, logits, vocab_size, maximum, row, scratch);
  if (token >= vocab_size) token = 0;  // all logits are NaN: there is no maximum to find
  return {token, static_cast<float>(static_cast<double>(logits[token] - maximum) - log_total)};
}

uint64_t hash_row(const float* logits, int64_t vocab_size) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (int64_t i = 0; i < vocab_size; i++) {
    uint32_t bits;
    std::memcpy(&bits, logits + i, sizeof bits);
    hash = (hash ^ bits) * 0x100000001b3ull;
  }
  return hash;
}

}  // namespace hearth
