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
constexpr int kMostLooked = 64;  // threads that a waiter looks at

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

// Best effort: Linux refuses where what the process may use has been changed behind its back.
void bind_to(int thread_id, int cpu) {
  cpu_set_t set = set_of(cpu);
  sched_setaffinity(thread_id, sizeof set, &set);
}

// The CPUs that the calling thread may use are afterwards what they were before, unless somebody
// else (taskset -ap) has changed them meanwhile.
class KeptAffinity {
 public:
  KeptAffinity() : is_known_(sched_getaffinity(0, sizeof before_, &before_) == 0) {}
  ~KeptAffinity() {
    if (is_known_ && !is_released_) sched_setaffinity(0, sizeof before_, &before_);
  }
  KeptAffinity(const KeptAffinity&) = delete;
  KeptAffinity& operator=(const KeptAffinity&) = delete;
  bool is_known() const { return is_known_; }
  bool has(int cpu) const { return is_known_ && CPU_ISSET(static_cast<size_t>(cpu), &before_); }
  const cpu_set_t& before() const { return before_; }
  // Leaves the affinity as it is now, whatever it was.
  void release() { is_released_ = true; }

 private:
  cpu_set_t before_;
  bool is_known_;
  bool is_released_ = false;
};

// Whether the calling thread is bound to this CPU alone.
bool is_bound_to(int cpu) {
  cpu_set_t now, wanted = set_of(cpu);
  return sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &wanted);
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
  open(0, true, 0);
  for (auto& thread : threads_) thread.join();
}

void Team::bind(const int* cpus) {
  KeptAffinity kept;
  int error = kept.is_known() ? 0 : EINVAL, i = 0;
  for (; error == 0 && i < num_threads_; i++) {
    bool is_cpu = cpus[i] >= 0 && cpus[i] < CPU_SETSIZE;
    error = is_cpu ? set_affinity(i, set_of(cpus[i])) : EINVAL;
  }
  if (error != 0) {
    for (int bound = 1; bound < i; bound++) set_affinity(bound, kept.before());
    throw std::system_error(
        error, std::generic_category(),
        "cannot bind a thread to CPU " + std::to_string(cpus[i > 0 ? i - 1 : 0]));
  }
  cpus_.assign(cpus, cpus + num_threads_);
  is_bound_.store(true, std::memory_order_release);
}

int Team::set_affinity(int thread, const cpu_set_t& set) {
  auto handle =
      thread == 0 ? pthread_self() : threads_[static_cast<size_t>(thread) - 1].native_handle();
  return pthread_setaffinity_np(handle, sizeof set, &set);
}

void Team::run(const Job& job) {
  job_ = job;
  if (!is_bound_.load(std::memory_order_relaxed)) return run_stages();
  KeptAffinity kept;
  // Who has been moved off its CPU by somebody else stays where it was moved to.
  bool is_home = kept.has(cpus_[0]);
  if (is_home) bind_to(0, cpus_[0]);
  members_[0].id.store(gettid(), std::memory_order_relaxed);
  uint32_t moves_before = members_[0].moves.load(std::memory_order_seq_cst);
  run_stages();
  // Who is about to move this thread, or to send it home, may have lost its CPU, even to this
  // thread; afterwards nobody may have a reason to touch it.
  auto& moves = members_[0].moves;
  for (uint32_t seen = 1; seen % 2 != 0;) {
    while (members_[0].movers.load(std::memory_order_seq_cst) > 0) sched_yield();
    seen = moves.load(std::memory_order_seq_cst);
    if (seen % 2 != 0) moves.compare_exchange_strong(seen, seen + 1, std::memory_order_seq_cst);
  }
  // Nobody of the team has moved it, and yet it is elsewhere.
  bool was_fetched = moves.load(std::memory_order_seq_cst) != moves_before;
  if (is_home && !was_fetched && !is_bound_to(cpus_[0])) kept.release();
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
  open(is_last ? 0 : job_.tiles[stage], !is_last || thread != 0, thread);
}

// A waiter counts itself before it looks a last time, and the epoch changes before the waiters are
// counted: one of the two sees the other.
void Team::open(int tiles, bool must_wake, int thread) {
  uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  stage_epoch_ = epoch;
  for (int64_t i = 0; tiles > 0 && i < num_threads_; i++) {
    int64_t first = i * tiles / num_threads_, last = (i + 1) * tiles / num_threads_;
    shares_[static_cast<size_t>(i)].tiles.store(share_of(epoch, first, last),
                                                std::memory_order_release);
  }
  epoch_.store(epoch, std::memory_order_seq_cst);
  members_[static_cast<size_t>(thread)].is_busy.store(false, std::memory_order_seq_cst);
  if (must_wake && sleepers_.load(std::memory_order_seq_cst) > 0)
    futex(epoch_, FUTEX_WAKE_PRIVATE, INT_MAX);
}

// Nobody waits for this thread any more: if it was fetched to another CPU, it goes home.
void Team::rest(int thread) {
  auto i = static_cast<size_t>(thread);
  members_[i].is_busy.store(false, std::memory_order_seq_cst);
  uint32_t moves = members_[i].moves.load(std::memory_order_seq_cst);
  if (moves % 2 == 0) return;
  // In this order: who binds it elsewhere after this has seen that it is at home, and says so
  // again.
  members_[i].moves.compare_exchange_strong(moves, moves + 1, std::memory_order_seq_cst);
  bind_to(0, cpus_[i]);
}

// The first thread that is busy and does not run, or −1; looks at all of them at once, and no
// longer than the epoch lasts.
int Team::find_late(int thread, uint32_t epoch) const {
  int looked[kMostLooked], count = 0;
  int64_t before_ns[kMostLooked];
  for (int i = 0; i < num_threads_ && count < kMostLooked; i++) {
    const Member& other = members_[static_cast<size_t>(i)];
    if (i == thread || !other.is_busy.load(std::memory_order_acquire)) continue;
    int id = other.id.load(std::memory_order_relaxed);
    before_ns[count] = read_clock_ns(processor_clock(id));
    looked[count++] = i;
  }
  if (count == 0 || spin_behind(epoch, kLookNs)) return -1;
  for (int i = 0; i < count; i++) {
    const Member& other = members_[static_cast<size_t>(looked[i])];
    int id = other.id.load(std::memory_order_relaxed);
    if (before_ns[i] >= 0 && read_clock_ns(processor_clock(id)) < before_ns[i] + kLookNs / 4)
      return looked[i];
  }
  return -1;
}

// Fetches one who has tiles and no core to this thread's CPU. From then on it may run there at
// once, before this thread does, finish and go home: who has gone before it was fetched is sent
// after.
void Team::fetch_late(int thread, uint32_t epoch) {
  int late = find_late(thread, epoch);
  if (late < 0) return;
  Member& other = members_[static_cast<size_t>(late)];
  other.movers.fetch_add(1, std::memory_order_seq_cst);
  uint32_t moves = other.moves.load(std::memory_order_seq_cst);
  int id = other.id.load(std::memory_order_relaxed);
  if (moves % 2 == 0 && other.is_busy.load(std::memory_order_seq_cst) &&
      other.moves.compare_exchange_strong(moves, moves + 1, std::memory_order_seq_cst)) {
    bind_to(id, cpus_[static_cast<size_t>(thread)]);
    if (other.moves.load(std::memory_order_seq_cst) != moves + 1)
      bind_to(id, cpus_[static_cast<size_t>(late)]);
  }
  other.movers.fetch_sub(1, std::memory_order_seq_cst);
}

// Sends home who was fetched, has finished and has lost this CPU again, to the thread it woke.
void Team::send_home(int thread) {
  for (int i = 0; i < num_threads_; i++) {
    Member& other = members_[static_cast<size_t>(i)];
    if (i == thread || other.moves.load(std::memory_order_relaxed) % 2 == 0) continue;
    other.movers.fetch_add(1, std::memory_order_seq_cst);
    uint32_t moves = other.moves.load(std::memory_order_seq_cst);
    if (moves % 2 != 0 && !other.is_busy.load(std::memory_order_seq_cst)) {
      bind_to(other.id.load(std::memory_order_relaxed), cpus_[static_cast<size_t>(i)]);
      other.moves.compare_exchange_strong(moves, moves + 1, std::memory_order_seq_cst);
    }
    other.movers.fetch_sub(1, std::memory_order_seq_cst);
  }
}

// Returns when the epoch is another one.
void Team::wait_behind(uint32_t epoch, int64_t spin_ns, int thread) {
  if (is_bound_.load(std::memory_order_acquire) && spin_ns >= kPatienceNs) {
    if (spin_behind(epoch, kPatienceNs)) return;
    fetch_late(thread, epoch);
    if (!spin_behind(epoch, spin_ns - kPatienceNs)) sleep_behind(epoch);
    send_home(thread);
  } else if (!spin_behind(epoch, spin_ns)) {
    sleep_behind(epoch);
  }
}

bool Team::spin_behind(uint32_t epoch, int64_t spin_ns) const {
  int64_t deadline_ns = now_ns() + spin_ns;
  do {
    for (int i = 0; i < 64; i++) {
      if (epoch_.load(std::memory_order_acquire) != epoch) return true;
      relax();
    }
  } while (now_ns() < deadline_ns);
  return false;
}

void Team::sleep_behind(uint32_t epoch) {
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (epoch_.load(std::memory_order_seq_cst) == epoch) futex(epoch_, FUTEX_WAIT_PRIVATE, epoch);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace hearth
