// A persistent team of threads that walks through stages of tiles together.
//
// A stage is a number of independent tiles, which threads take one by one: another process may
// take a core for some milliseconds, so nothing is assigned beforehand. A stage ends when its tiles
// are done, not when every thread has come by: a thread that sleeps or has lost its core between
// two tiles is not waited for and joins at whatever stage it finds. Who finishes the last tile of a
// stage opens the next one, and runs stages of one tile at once, so that they need no barrier.
// Waiting spins for a bounded time and then sleeps on a futex, also between jobs: an idle team
// costs nothing.
//
//   ticket       epoch (high half): counts the stages of all jobs, waiters wait for it to change;
//                and the tiles of the stage that nobody has taken (low half)
//   stage, job   written while no tile is out, read only by those who hold one
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace hearth {

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
  int size() const { return num_threads_; }

 private:
  void worker(int thread);
  uint32_t take_tiles(int thread);
  void open_next(int stage, int thread);
  void open(int tiles, bool must_wake);
  void wait_behind(uint32_t epoch, int64_t spin_ns);
  void stop();

  const int num_threads_;
  std::vector<std::thread> threads_;
  Job job_{};
  int stage_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_;
  alignas(64) std::atomic<int> done_{0};      // tiles of the stage
  alignas(64) std::atomic<int> sleepers_{0};  // waiters that a new epoch must wake
  std::atomic<uint32_t> last_epoch_{0};       // behind the last stage of a job
  std::atomic<bool> stopping_{false};
};

}  // namespace hearth
