#include "team.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <bit>
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

// The high half of a ticket is a futex word.
static_assert(sizeof(std::atomic<uint64_t>) == 8 && std::endian::native == std::endian::little);

void futex(std::atomic<uint64_t>& ticket, int operation, uint32_t value) {
  auto* word = reinterpret_cast<uint32_t*>(&ticket) + 1;
  syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

// Each thread that finds no tile left takes the count one further down, once a stage: the low half
// has room for that below no tiles.
constexpr uint32_t kNoTiles = 1u << 30;

uint64_t ticket_of(uint32_t epoch, int tiles) {
  return static_cast<uint64_t>(epoch) << 32 | (kNoTiles + static_cast<uint32_t>(tiles));
}
uint32_t epoch_of(uint64_t ticket) {
  return static_cast<uint32_t>(ticket >> 32);
}

}  // namespace

Team::Team(int num_threads) : num_threads_(num_threads), ticket_(ticket_of(0, 0)) {
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
  uint32_t epoch = epoch_of(ticket_.load(std::memory_order_relaxed));
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

// Returns the epoch in which there was no tile left. A job cannot end while one of its tiles is
// out, so what it says may be read by who holds one, and by nobody else.
uint32_t Team::take_tiles(int thread) {
  for (;;) {
    uint64_t ticket = ticket_.fetch_sub(1, std::memory_order_acq_rel);
    int left = static_cast<int>(static_cast<uint32_t>(ticket) - kNoTiles);
    if (left <= 0) return epoch_of(ticket);
    int stage = stage_, tiles = job_.tiles[stage];
    job_.run(job_.context, stage, tiles - left, thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tiles) open_next(stage, thread);
  }
}

// Opens the next stage that is worth sharing, or ends the job. No tile is out.
void Team::open_next(int stage, int thread) {
  done_.store(0, std::memory_order_relaxed);
  for (stage++; stage < job_.num_stages && job_.tiles[stage] <= 1; stage++)
    if (job_.tiles[stage] == 1) job_.run(job_.context, stage, 0, thread);
  stage_ = stage;
  bool is_last = stage == job_.num_stages;
  if (is_last) {
    uint32_t epoch = epoch_of(ticket_.load(std::memory_order_relaxed));
    last_epoch_.store(epoch + 1, std::memory_order_relaxed);
  }
  // At the end nobody but the caller of run() has anything to do.
  open(is_last ? 0 : job_.tiles[stage], !is_last || thread != 0);
}

// A waiter counts itself before it looks a last time, and the epoch changes before the waiters are
// counted: one of the two sees the other.
void Team::open(int tiles, bool must_wake) {
  uint32_t epoch = epoch_of(ticket_.load(std::memory_order_relaxed));
  ticket_.store(ticket_of(epoch + 1, tiles), std::memory_order_seq_cst);
  if (must_wake && sleepers_.load(std::memory_order_seq_cst) > 0)
    futex(ticket_, FUTEX_WAKE_PRIVATE, INT_MAX);
}

// Returns when the epoch is another one.
void Team::wait_behind(uint32_t epoch, int64_t spin_ns) {
  int64_t deadline = now_ns() + spin_ns;
  do {
    for (int i = 0; i < 64; i++) {
      if (epoch_of(ticket_.load(std::memory_order_acquire)) != epoch) return;
      relax();
    }
  } while (now_ns() < deadline);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (epoch_of(ticket_.load(std::memory_order_seq_cst)) == epoch)
    futex(ticket_, FUTEX_WAIT_PRIVATE, epoch);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace hearth
