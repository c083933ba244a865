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

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  static_assert(sizeof word == 4);
  syscall(SYS_futex, &word, operation, value, nullptr, nullptr, 0);
}

uint64_t share_of(uint32_t epoch, int64_t first, int64_t last) {
  return static_cast<uint64_t>(epoch & 0xffff) << 2 * kTileBits |
         static_cast<uint64_t>(first) << kTileBits | static_cast<uint64_t>(last);
}
bool is_of(uint64_t share, uint32_t epoch) {
  return share >> 2 * kTileBits == (epoch & 0xffff);
}
int first_of(uint64_t share) {
  return static_cast<int>(share >> kTileBits & kMostTiles);
}
int last_of(uint64_t share) {
  return static_cast<int>(share & kMostTiles);
}

}  // namespace

Team::Team(int num_threads) : num_threads_(num_threads), shares_(static_cast<size_t>(num_threads)) {
  try {
    for (int i = 1; i < num_threads; i++) threads_.emplace_back([this, i] { worker(i); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() {
  stop();
}

void Team::stop() {
  stopping_ = true;
  open(0, true);
  for (auto& thread : threads_) thread.join();
}

void Team::run(const Job& job) {
  job_ = job;
  uint32_t epoch = epoch_.load(std::memory_order_relaxed);
  last_epoch_.store(epoch, std::memory_order_relaxed);  // behind us: no end is in sight
  for (open_next(-1, 0);;) {
    epoch = take_tiles(0);
    if (epoch == last_epoch_.load(std::memory_order_relaxed)) return;
    wait_behind(epoch, kBarrierSpinNs);
  }
}

void Team::worker(int thread) {
  uint32_t epoch = 0;
  for (;;) {
    bool is_idle = epoch == last_epoch_.load(std::memory_order_relaxed);
    wait_behind(epoch, is_idle ? kIdleSpinNs : kBarrierSpinNs);
    epoch = take_tiles(thread);
    if (stopping_) return;  // set before the epoch that says so, which we have seen now
  }
}

// Returns the epoch in which there was no tile left. A job cannot end while a tile is not counted,
// so what it says may be read by who has one, and by nobody else.
uint32_t Team::take_tiles(int thread) {
  uint32_t epoch = epoch_.load(std::memory_order_acquire);
  for (;;) {
    int own = 0;
    for (int tile; (tile = claim(thread, epoch)) >= 0; own++)
      job_.run(job_.context, stage_, tile, thread);
    if (own == 0) return epoch;
    int stage = stage_, tiles = job_.tiles[stage];
    if (done_.fetch_add(own, std::memory_order_acq_rel) + own < tiles) return epoch;
    // Who has opened this stage may have lost its core before it said so. (Its tiles can be taken
    // all the same by a thread whose epoch is older by a multiple of 2¹⁶.)
    while (epoch_.load(std::memory_order_acquire) != stage_epoch_) relax();
    open_next(stage, thread);
    epoch = epoch_.load(std::memory_order_acquire);
  }
}

// A tile of the stage that the epoch has opened, or −1. A share that changed in between, even to
// one that looks the same, is that of a stage that is open: what is taken is valid.
int Team::claim(int thread, uint32_t epoch) {
  for (int i = 0; i < num_threads_; i++) {
    auto& share = shares_[static_cast<size_t>((thread + i) % num_threads_)].tiles;
    uint64_t seen = share.load(std::memory_order_acquire);
    while (is_of(seen, epoch) && first_of(seen) < last_of(seen)) {
      uint64_t rest = i == 0 ? seen + (uint64_t{1} << kTileBits) : seen - 1;
      if (share.compare_exchange_weak(seen, rest, std::memory_order_acq_rel,
                                      std::memory_order_acquire))
        return i == 0 ? first_of(seen) : last_of(seen) - 1;
    }
  }
  return -1;
}

// Opens the next stage that is worth sharing, or ends the job. No tile is out.
void Team::open_next(int stage, int thread) {
  done_.store(0, std::memory_order_relaxed);
  for (stage++; stage < job_.num_stages && job_.tiles[stage] <= 1; stage++)
    if (job_.tiles[stage] == 1) job_.run(job_.context, stage, 0, thread);
  stage_ = stage;
  bool is_last = stage == job_.num_stages;
  if (is_last)
    last_epoch_.store(epoch_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  // At the end nobody but the caller of run() has anything to do.
  open(is_last ? 0 : job_.tiles[stage], !is_last || thread != 0);
}

// A waiter counts itself before it looks a last time, and the epoch changes before the waiters are
// counted: one of the two sees the other.
void Team::open(int tiles, bool must_wake) {
  uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  stage_epoch_ = epoch;
  for (int64_t i = 0; tiles > 0 && i < num_threads_; i++) {
    int64_t first = i * tiles / num_threads_, last = (i + 1) * tiles / num_threads_;
    shares_[static_cast<size_t>(i)].tiles.store(share_of(epoch, first, last),
                                                std::memory_order_release);
  }
  epoch_.store(epoch, std::memory_order_seq_cst);
  if (must_wake && sleepers_.load(std::memory_order_seq_cst) > 0)
    futex(epoch_, FUTEX_WAKE_PRIVATE, INT_MAX);
}

// Returns when the epoch is another one.
void Team::wait_behind(uint32_t epoch, int64_t spin_ns) {
  int64_t deadline = now_ns() + spin_ns;
  do {
    for (int i = 0; i < 64; i++) {
      if (epoch_.load(std::memory_order_acquire) != epoch) return;
      relax();
    }
  } while (now_ns() < deadline);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (epoch_.load(std::memory_order_seq_cst) == epoch) futex(epoch_, FUTEX_WAIT_PRIVATE, epoch);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace hearth
