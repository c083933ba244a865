// A persistent team of threads that walks through stages of tiles together.
//
// A stage is a number of independent tiles. Every thread has a share of them, neighbours, the same
// ones of stages alike: what it has written, it reads from its own cache. It takes its share one by
// one from the front, and then, since another process may have taken a core for some milliseconds,
// what is left of others' from the back. Tiles are counted as done when their thread finds no more,
// so that threads meet twice a stage and not at every tile. A stage ends when its tiles are done,
// not when every thread has come by: a thread that sleeps or has lost its core between two stages
// is not waited for and joins at whatever stage it finds. Who counts the last tiles of a stage
// opens the next one, and runs stages of one tile at once, so that they need no barrier. Waiting
// spins for a bounded time and then sleeps on a futex, also between jobs: an idle team costs
// nothing.
//
// A team may be bound, each thread to a CPU of its own. Then a waiter looks whether who holds tiles
// has lost its core to another process, which would keep it for milliseconds, and has it finish
// them on the waiter's own CPU. It goes home when it has no tile, and waits there for its turn
// while the others go on without it.
//
//   epoch        counts the stages of all jobs; waiters wait for it to change
//   shares       the tiles that nobody has taken, with the epoch that they belong to: written
//   before
//                it comes
//   stage, job   written while no tile is out, read only by those who hold one that is not counted,
//                and by who has counted the last
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace hearth {

constexpr int kTileBits = 24;
constexpr int kMostTiles = (1 << kTileBits) - 1;  // of a stage

// Calls run(context, stage, tile, thread). Tiles of one stage may run in any order and thread.
struct Job {
  void (*run)(void* context, int stage, int tile, int thread);
  void* context;
  const int* tiles;  // [num_stages]
  int num_stages;
};

class Team {
 public:
  // Starts num_threads − 1 threads; the caller of run() is the other one. Throws std::system_error.
  explicit Team(int num_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Runs all stages of a job and returns when the last tile is done.
  void run(const Job& job);

  // Binds thread i to cpus[i], a logical CPU, once and for good; the caller of run() is bound while
  // it is there. Not while a job runs. Throws std::system_error where Linux refuses a CPU.
  void bind(const int* cpus);
  int size() const { return num_threads_; }

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> tiles{0};  // epoch (16 bits), first, behind the last (24 bits each)
  };

  struct alignas(64) Member {
    std::atomic<bool> is_busy{false};  // has tiles that are not counted, or opens a stage
    std::atomic<uint32_t> moves{0};    // from home and back; odd: away, or about to be
    std::atomic<int> movers{0};        // threads that may change its affinity
    std::atomic<int> id{0};            // of the thread, for Linux
  };

  void run_stages();
  void worker(int thread);
  uint32_t take_tiles(int thread);
  int claim(int thread, uint32_t epoch);
  void open_next(int stage, int thread);
  void open(int tiles, bool must_wake, int thread);
  void wait_behind(uint32_t epoch, int64_t spin_ns, int thread);
  bool spin_behind(uint32_t epoch, int64_t spin_ns) const;
  void sleep_behind(uint32_t epoch);
  void rest(int thread);
  int set_affinity(int thread, const cpu_set_t& set);
  int find_late(int thread, uint32_t epoch) const;
  void fetch_late(int thread, uint32_t epoch);
  void send_home(int thread);
  void stop();

  const int num_threads_;
  std::vector<std::thread> threads_;
  std::vector<Share> shares_;    // [threads]
  std::vector<Member> members_;  // [threads]
  std::vector<int> cpus_;        // [threads]; written before is_bound_
  Job job_{};
  int stage_ = 0;
  uint32_t stage_epoch_ = 0;  // that opens the stage
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> done_{0};      // tiles of the stage that are counted
  alignas(64) std::atomic<int> sleepers_{0};  // waiters that a new epoch must wake
  std::atomic<uint32_t> last_epoch_{0};       // behind the last stage of a job
  std::atomic<bool> stopping_{false};
  std::atomic<bool> is_bound_{false};
};

}  // namespace hearth
