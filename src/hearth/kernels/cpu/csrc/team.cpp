#include "team.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <string>
#include <system_error>

namespace hearth {
namespace {

// How long a waiter spins before it sleeps. A barrier within a step is left within microseconds
// unless another process has the core; a futex round trip costs some 25 µs. Between steps the
// front end wants the core, so a worker gives up sooner there.
constexpr int64_t kBarrierSpinNs = 50'000;
constexpr int64_t kIdleSpinNs = 20'000;
// How long a waiter of a bound team waits before it looks whether somebody has lost its core, and
// how long it looks.
constexpr int64_t kPatienceNs = 20'000;
constexpr int64_t kLookNs = 8'000;

int64_t read_clock_ns(clockid_t clock) {
  timespec t;
  if (clock_gettime(clock, &t) != 0) return -1;
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

int64_t now_ns() {
  return read_clock_ns(CLOCK_MONOTONIC);
}

// The clock of the processor time of a thread (as pthread_getcpuclockid makes it), which needs no
// handle of a thread that may have ended.
clockid_t processor_clock(int thread_id) {
  constexpr unsigned kOfThread = 4, kScheduler = 2;
  return static_cast<clockid_t>(~static_cast<unsigned>(thread_id) << 3 | kOfThread | kScheduler);
}

cpu_set_t set_of(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return set;
}

// The CPUs that the calling thread may use are afterwards what they were before.
class KeptAffinity {
 public:
  KeptAffinity() : is_known_(sched_getaffinity(0, sizeof before_, &before_) == 0) {}
  ~KeptAffinity() {
    if (is_known_) sched_setaffinity(0, sizeof before_, &before_);
  }
  KeptAffinity(const KeptAffinity&) = delete;
  KeptAffinity& operator=(const KeptAffinity&) = delete;

 private:
  cpu_set_t before_;
  bool is_known_;
};

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

Team::Team(int num_threads)
    : num_threads_(num_threads),
      shares_(static_cast<size_t>(num_threads)),
      members_(static_cast<size_t>(num_threads)) {
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

void Team::bind(const int* cpus) {
  KeptAffinity kept;
  for (int i = 0; i < num_threads_; i++) {
    auto thread = i == 0 ? pthread_self() : threads_[static_cast<size_t>(i) - 1].native_handle();
    bool is_cpu = cpus[i] >= 0 && cpus[i] < CPU_SETSIZE;
    cpu_set_t set = set_of(is_cpu ? cpus[i] : 0);
    int error = is_cpu ? pthread_setaffinity_np(thread, sizeof set, &set) : EINVAL;
    if (error != 0)
      throw std::system_error(error, std::generic_category(),
                              "cannot bind a thread to CPU " + std::to_string(cpus[i]));
  }
  cpus_.assign(cpus, cpus + num_threads_);
  is_bound_.store(true, std::memory_order_release);
}

void Team::run(const Job& job) {
  job_ = job;
  if (!is_bound_.load(std::memory_order_relaxed)) return run_stages();
  KeptAffinity kept;
  cpu_set_t home = set_of(cpus_[0]);
  sched_setaffinity(0, sizeof home, &home);
  members_[0].id.store(gettid(), std::memory_order_relaxed);
  run_stages();
}

void Team::run_stages() {
  uint32_t epoch = epoch_.load(std::memory_order_relaxed);
  last_epoch_.store(epoch, std::memory_order_relaxed);  // behind us: no end is in sight
  for (open_next(-1, 0);;) {
    epoch = take_tiles(0);
    if (epoch == last_epoch_.load(std::memory_order_relaxed)) return;
    wait_behind(epoch, kBarrierSpinNs, 0);
  }
}

void Team::worker(int thread) {
  members_[static_cast<size_t>(thread)].id.store(gettid(), std::memory_order_relaxed);
  uint32_t epoch = 0;
  for (;;) {
    bool is_idle = epoch == last_epoch_.load(std::memory_order_relaxed);
    wait_behind(epoch, is_idle ? kIdleSpinNs : kBarrierSpinNs, thread);
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
    members_[static_cast<size_t>(thread)].is_busy.store(true, std::memory_order_release);
    for (int tile; (tile = claim(thread, epoch)) >= 0; own++)
      job_.run(job_.context, stage_, tile, thread);
    int stage = own > 0 ? stage_ : 0, tiles = own > 0 ? job_.tiles[stage] : 0;
    if (own == 0 || done_.fetch_add(own, std::memory_order_acq_rel) + own < tiles) {
      rest(thread);
      return epoch;
    }
    // Who has opened this stage may have lost its core before it said so. (Its tiles can be taken
    // all the same by a thread whose epoch is older by a multiple of 2¹⁶.)
    while (epoch_.load(std::memory_order_acquire) != stage_epoch_) relax();
    open_next(stage, thread);
    rest(thread);
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

// Nobody waits for this thread any more: if it was fetched to another CPU, it goes home. Says so
// before it looks whether it is being fetched, and who fetches it says that before looking whether
// it is busy: one of the two sees the other.
void Team::rest(int thread) {
  Member& own = members_[static_cast<size_t>(thread)];
  own.is_busy.store(false, std::memory_order_seq_cst);
  if (own.place.load(std::memory_order_seq_cst) == kHome) return;
  while (own.place.load(std::memory_order_acquire) == kMoving) relax();
  if (own.place.load(std::memory_order_relaxed) == kHome) return;
  cpu_set_t home = set_of(cpus_[static_cast<size_t>(thread)]);
  sched_setaffinity(0, sizeof home, &home);
  own.place.store(kHome, std::memory_order_release);
}

// Fetches who is busy but does not run to this thread's CPU.
void Team::fetch_late(int thread) {
  for (int i = 0; i < num_threads_; i++) {
    Member& other = members_[static_cast<size_t>(i)];
    if (i == thread || !other.is_busy.load(std::memory_order_acquire)) continue;
    int id = other.id.load(std::memory_order_relaxed);
    int64_t before_ns = read_clock_ns(processor_clock(id));
    for (int64_t end_ns = now_ns() + kLookNs; now_ns() < end_ns;) relax();
    if (before_ns < 0 || read_clock_ns(processor_clock(id)) > before_ns + kLookNs / 4) continue;
    Place home = kHome;
    if (!other.place.compare_exchange_strong(home, kMoving, std::memory_order_seq_cst)) continue;
    cpu_set_t here = set_of(cpus_[static_cast<size_t>(thread)]);
    bool is_moved = other.is_busy.load(std::memory_order_seq_cst) &&
                    sched_setaffinity(id, sizeof here, &here) == 0;
    other.place.store(is_moved ? kAway : kHome, std::memory_order_release);
  }
}

// Returns when the epoch is another one.
void Team::wait_behind(uint32_t epoch, int64_t spin_ns, int thread) {
  int64_t begin_ns = now_ns(), waited_ns;
  bool may_fetch = is_bound_.load(std::memory_order_acquire);
  do {
    for (int i = 0; i < 64; i++) {
      if (epoch_.load(std::memory_order_acquire) != epoch) return;
      relax();
    }
    waited_ns = now_ns() - begin_ns;
    if (may_fetch && waited_ns >= kPatienceNs) {
      fetch_late(thread);
      may_fetch = false;
    }
  } while (waited_ns < spin_ns);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (epoch_.load(std::memory_order_seq_cst) == epoch) futex(epoch_, FUTEX_WAIT_PRIVATE, epoch);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace hearth
