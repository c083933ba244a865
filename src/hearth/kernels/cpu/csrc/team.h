// A persistent team of threads that walks through stages of tiles together.
//
// A stage is a number of independent tiles; threads take them one by one from a counter (another
// process may take a core for some milliseconds, so nothing is assigned beforehand); a barrier
// separates stages. A stage of one tile is run by the thread that reaches the barrier before it
// last, while the others still wait there: it has no barrier of its own. Waiting spins for a
// bounded time and then sleeps on a futex, also between jobs: an idle team costs nothing.
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
  void work(int thread);
  int barrier(const Job& job, int stage, int thread);

  const int num_threads_;
  std::vector<std::thread> threads_;
  Job job_{};
  alignas(64) std::atomic<uint32_t> epoch_{0};      // job number; workers wait for its change
  alignas(64) std::atomic<uint32_t> phase_{0};      // stage number; threads wait for its change
  alignas(64) std::atomic<int> next_tile_{0};       // of the stage
  alignas(64) std::atomic<int> arrived_{0};         // threads at the barrier
  alignas(64) std::atomic<int> epoch_sleepers_{0};  // waiters that a change must wake
  std::atomic<int> phase_sleepers_{0};
  bool stopping_ = false;
};

}  // namespace hearth
