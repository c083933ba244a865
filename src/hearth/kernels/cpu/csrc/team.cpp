#include "team.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace hearth {
namespace {

// How long a waiter spins before it sleeps. A barrier within a step is left within microseconds
// unless another process has the core; a futex round trip costs some 25 µs. Between steps the
// front end wants the core, so a worker gives up sooner there.
constexpr int64_t kBarrierSpinNs = 50'000;
constexpr int64_t kIdleSpinNs = 20'000;

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "futex words are plain integers");

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr,
          0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
          nullptr, 0);
}

// Returns when `word` is no longer `seen`. The waiter counts itself before it looks a last time,
// and publish() changes the word before it looks at the count: one of the two sees the other.
void wait_for_change(std::atomic<uint32_t>& word, uint32_t seen, std::atomic<int>& sleepers,
                     int64_t spin_ns) {
  int64_t deadline = now_ns() + spin_ns;
  do {
    for (int i = 0; i < 64; i++) {
      if (word.load(std::memory_order_acquire) != seen) return;
      relax();
    }
  } while (now_ns() < deadline);
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  while (word.load(std::memory_order_seq_cst) == seen) futex_wait(word, seen);
  sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void publish(std::atomic<uint32_t>& word, std::atomic<int>& sleepers) {
  word.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) > 0) futex_wake_all(word);
}

}  // namespace

Team::Team(int num_threads) : num_threads_(num_threads) {
  try {
    for (int i = 1; i < num_threads; i++) threads_.emplace_back([this, i] { worker(i); });
  } catch (...) {
    stopping_ = true;
    publish(epoch_, epoch_sleepers_);
    for (auto& thread : threads_) thread.join();
    throw;
  }
}

Team::~Team() {
  stopping_ = true;
  publish(epoch_, epoch_sleepers_);
  for (auto& thread : threads_) thread.join();
}

void Team::run(const Job& job) {
  if (job.num_stages == 0) return;
  job_ = job;
  next_tile_.store(0, std::memory_order_relaxed);
  if (num_threads_ > 1) publish(epoch_, epoch_sleepers_);
  work(0);
}

void Team::worker(int thread) {
  uint32_t seen = 0;
  for (;;) {
    wait_for_change(epoch_, seen, epoch_sleepers_, kIdleSpinNs);
    seen++;
    if (stopping_) return;
    work(thread);
  }
}

// The barrier behind the last stage keeps the caller of run() from leaving while a tile is still
// running. It may write the next job while a worker leaves that barrier, so each thread walks
// through a copy, which it takes before its first barrier.
void Team::work(int thread) {
  const Job job = job_;
  for (int stage = 0; stage < job.num_stages;) {
    int tiles = job.tiles[stage];
    for (;;) {
      int tile = next_tile_.fetch_add(1, std::memory_order_relaxed);
      if (tile >= tiles) break;
      job.run(job.context, stage, tile, thread);
    }
    stage = barrier(job, stage, thread);
  }
}

// Returns the next stage that is shared out. The last thread to arrive runs those of one tile.
int Team::barrier(const Job& job, int stage, int thread) {
  int next = stage + 1;
  while (next < job.num_stages && job.tiles[next] == 1) next++;
  uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    for (int alone = stage + 1; alone < next; alone++) job.run(job.context, alone, 0, thread);
    arrived_.store(0, std::memory_order_relaxed);
    next_tile_.store(0, std::memory_order_relaxed);
    if (num_threads_ > 1) publish(phase_, phase_sleepers_);
  } else {
    wait_for_change(phase_, phase, phase_sleepers_, kBarrierSpinNs);
  }
  return next;
}

}  // namespace hearth
