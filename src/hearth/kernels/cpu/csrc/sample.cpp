// Sampling: edits, temperature, filters, the draw. kernels/reference/sampling.py defines it.
//
// What a row costs follows from what it asks for: the largest logit is always looked for, the sum
// over the vocabulary only for a draw without top-k or for a log-probability, and a ranking only
// as long as the filters keep.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace hearth {
namespace {

// Below it 1 / temperature overflows; the largest logit has all the weight long before.
constexpr float kLeastTemperature = 1e-30f;
// Smaller exponents have no weight: Kernels::exp_sum, and the definition.
constexpr float kLeastExponent = -87.0f;
// Tokens ranked at first, and by how many times more when the filters keep all of them.
constexpr int64_t kFirstRanked = 64, kRankedGrowth = 8;

double uniform(const SamplingRow& row) {
  uint32_t counter[4] = {static_cast<uint32_t>(row.position), static_cast<uint32_t>(row.choice), 0,
                         0};
  uint32_t key[2] = {static_cast<uint32_t>(row.seed), static_cast<uint32_t>(row.seed >> 32)};
  uint32_t words[4];
  philox4x32(counter, key, words);
  // Never 0, so that a token without weight is never drawn.
  return (static_cast<double>(words[0] >> 8) + 0.5) * 0x1p-24;
}

// A row on its way to a token.
struct Draw {
  const Kernels& kernels;
  const float* logits;
  int64_t vocab_size;
  const SamplingRow& row;
  float maximum;
  SampleScratch& scratch;

  float inverse() const { return 1.0f / row.temperature; }
  bool has_weight(float logit) const { return (logit - maximum) * inverse() >= kLeastExponent; }

  // Sum of all weights; that of every chunk of kSumChunk in scratch.sums.
  double sum_weights() {
    double total = 0.0;
    for (int64_t first = 0, chunk = 0; first < vocab_size; first += kSumChunk, chunk++) {
      int64_t count = std::min(kSumChunk, vocab_size - first);
      scratch.sums[chunk] = kernels.exp_sum(logits + first, count, maximum, inverse(), nullptr);
      total += scratch.sums[chunk];
    }
    return total;
  }

  // First token in id order whose cumulative weight exceeds u · total: chunk by chunk, then within.
  int32_t pick_in_order() {
    double target = uniform(row) * sum_weights(), before = 0.0;
    float* weights = scratch.weights.get();
    int32_t last = -1;
    for (int64_t first = 0, chunk = 0; first < vocab_size; first += kSumChunk, chunk++) {
      double after = before + scratch.sums[chunk];
      bool is_last = first + kSumChunk >= vocab_size;
      if (after > target || is_last) {
        int64_t count = std::min(kSumChunk, vocab_size - first);
        kernels.exp_sum(logits + first, count, maximum, inverse(), weights);
        double sum = before;
        for (int64_t i = 0; i < count; i++) {
          if (!has_weight(logits[first + i])) continue;
          sum += static_cast<double>(weights[i]);
          last = static_cast<int32_t>(first + i);
          if (sum > target) return last;
        }
        // Rounding, or a chunk of tokens without weight: the next one.
      }
      before = after;
    }
    return std::max(last, 0);
  }

  // Weights of the first `count` ranked tokens, in scratch.weights.
  void weigh(int64_t count) {
    float* weights = scratch.weights.get();
    for (int64_t i = 0; i < count; i++) weights[i] = logits[ranked_token(scratch, i)];
    int64_t with_weight = count;  // the ranking descends
    while (with_weight > 0 && !has_weight(weights[with_weight - 1])) with_weight--;
    kernels.exp_sum(weights, with_weight, maximum, inverse(), weights);
    std::fill(weights + with_weight, weights + count, 0.0f);
  }

  // How many of the best tokens the filters keep; their weights are in scratch.weights.
  int64_t keep() {
    const float* weights = scratch.weights.get();
    int64_t limit = row.top_k > 0 ? std::min<int64_t>(row.top_k, vocab_size) : vocab_size;
    bool cuts_mass = row.top_p < 1.0f;
    double mass = cuts_mass && row.top_k <= 0 ? sum_weights() : 0.0;
    for (int64_t wanted = row.top_k > 0 ? limit : kFirstRanked;; wanted *= kRankedGrowth) {
      int64_t ranked = rank_best(logits, vocab_size, wanted, scratch);
      int64_t count = std::min(ranked, limit);
      weigh(count);
      if (cuts_mass && row.top_k > 0) {
        mass = 0.0;
        for (int64_t i = 0; i < count; i++) mass += static_cast<double>(weights[i]);
      }
      double sum = 0.0, needed = static_cast<double>(row.top_p) * mass;
      float least = row.min_p * (count > 0 ? weights[0] : 0.0f);
      for (int64_t i = 0; i < count; i++) {
        if (i > 0 && (weights[i] < least || (cuts_mass && sum >= needed))) return i;
        sum += static_cast<double>(weights[i]);
      }
      if (count == limit || wanted >= vocab_size) return count;
    }
  }

  int32_t pick_ranked() {
    const float* weights = scratch.weights.get();
    int64_t kept = keep();
    if (kept == 0) return 0;
    double sum = 0.0;
    for (int64_t i = 0; i < kept; i++) sum += static_cast<double>(weights[i]);
    double target = uniform(row) * sum, cumulative = 0.0;
    for (int64_t i = 0; i < kept; i++) {
      cumulative += static_cast<double>(weights[i]);
      if (cumulative > target) return ranked_token(scratch, i);
    }
    return ranked_token(scratch, kept - 1);
  }

  // The lowest id among the largest logits; 0 where there is none (all NaN).
  int32_t pick_largest() const {
    for (int64_t block = 0, first = 0; first < vocab_size; block++, first += kRankBlock) {
      if (scratch.block_max[block] != maximum) continue;
      int64_t end = std::min(first + kRankBlock, vocab_size);
      for (int64_t id = first; id < end; id++)
        if (logits[id] == maximum) return static_cast<int32_t>(id);
    }
    return 0;
  }

  int32_t pick() {
    if (row.temperature < kLeastTemperature || std::isinf(maximum)) return pick_largest();
    bool filters = row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
    return filters ? pick_ranked() : pick_in_order();
  }
};

void change(float* logits, int32_t token, float value, SampleScratch& s) {
  s.saved.push_back({token, logits[token]});
  logits[token] = value;
}

void apply_edits(float* logits, const RowEdits& edits, SampleScratch& s) {
  for (int64_t i = 0; i < edits.num_biases; i++) {
    int32_t token = edits.bias_tokens[i];
    change(logits, token, logits[token] + edits.biases[i], s);
  }
  for (int64_t i = 0; i < edits.num_counts; i++) {
    int32_t token = edits.count_tokens[i];
    float value = logits[token];
    value = value > 0.0f ? value / edits.repetition : value * edits.repetition;
    if (edits.counts[i] > 0)
      value = value - edits.frequency * static_cast<float>(edits.counts[i]) - edits.presence;
    change(logits, token, value, s);
  }
}

// In reverse: a token may have been changed twice.
void undo_edits(float* logits, SampleScratch& s) {
  for (; !s.saved.empty(); s.saved.pop_back()) logits[s.saved.back().token] = s.saved.back().logit;
}

float log_probability(float logit, float maximum, double log_total) {
  return static_cast<float>(static_cast<double>(logit - maximum) - log_total);
}

// The token's place in the ranking of rank_best; blocks without a larger logit are passed over.
int32_t rank_of(const float* logits, int64_t vocab_size, int32_t token, const SampleScratch& s) {
  int32_t ahead = 0;
  float logit = logits[token];
  for (int64_t block = 0, first = 0; first < vocab_size; block++, first += kRankBlock) {
    if (s.block_max[block] < logit) continue;
    int64_t end = std::min(first + kRankBlock, vocab_size);
    for (int64_t id = first; id < end; id++)
      ahead += logits[id] > logit || (logits[id] == logit && id < token);
  }
  return ahead + 1;
}

void fill_best(const float* logits, int64_t vocab_size, float maximum, double log_total,
               const LogprobsWanted& wanted, SampleScratch& s) {
  int64_t ranked = rank_best(logits, vocab_size, wanted.count, s);
  for (int64_t i = 0; i < wanted.count; i++) {
    wanted.tokens[i] = i < ranked ? ranked_token(s, i) : -1;
    wanted.logprobs[i] =
        i < ranked ? log_probability(logits[wanted.tokens[i]], maximum, log_total) : 0.0f;
  }
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

Sampled sample_row(const Kernels& kernels, float* logits, int64_t vocab_size,
                   const SamplingRow& row, const LogprobsWanted& wanted, SampleScratch& scratch) {
  float maximum = 0.0f, raw_maximum = 0.0f;
  double log_total = 0.0;
  if (!row.edits || wanted.count >= 0 || row.given >= 0)
    maximum = raw_maximum = find_block_maxima(kernels, logits, vocab_size, scratch);
  if (wanted.count >= 0)
    log_total = std::log(kernels.exp_sum(logits, vocab_size, maximum, 1.0f, nullptr));
  if (wanted.count > 0) fill_best(logits, vocab_size, maximum, log_total, wanted, scratch);
  if (row.given >= 0) {
    float logprob = wanted.count < 0 ? std::numeric_limits<float>::quiet_NaN()
                                     : log_probability(logits[row.given], maximum, log_total);
    return {row.given, logprob, rank_of(logits, vocab_size, row.given, scratch)};
  }
  if (row.edits) {
    apply_edits(logits, *row.edits, scratch);
    maximum = find_block_maxima(kernels, logits, vocab_size, scratch);
  }
  int32_t token = Draw{kernels, logits, vocab_size, row, maximum, scratch}.pick();
  undo_edits(logits, scratch);
  if (wanted.count < 0) return {token, std::numeric_limits<float>::quiet_NaN(), 0};
  return {token, log_probability(logits[token], raw_maximum, log_total), 0};
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
