// Random jobs on teams of 1 to 8 threads: every tile of a stage runs once, and only when all tiles
// of the stage before are done. Built with ThreadSanitizer, which sees whether what a stage writes
// is ordered before what the next one reads. Prints what went wrong; exit code 0: nothing.
//
//   team_stress JOBS
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "team.h"

namespace {

struct Check {
  std::vector<int> tiles;
  std::vector<std::vector<std::atomic<int>>> runs;  // [stage][tile]
  std::vector<std::vector<long>> written;           // [stage][tile], plain memory
  std::atomic<int> wrong{0};

  explicit Check(std::mt19937& random) : tiles(1 + random() % 12) {
    for (auto& count : tiles) {
      unsigned kind = random() % 6;
      count = static_cast<int>(kind < 2 ? kind : 1 + random() % (kind == 2 ? 3 : 60));
      runs.emplace_back(static_cast<size_t>(count));
      written.emplace_back(static_cast<size_t>(count));
    }
  }
};

// A thread loses its core now and then.
void work() {
  thread_local std::mt19937 random(std::random_device{}());
  if (random() % 300 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

void run(void* context, int stage, int tile, int) {
  auto& check = *static_cast<Check*>(context);
  auto s = static_cast<size_t>(stage), t = static_cast<size_t>(tile);
  if (s > 0)
    for (size_t i = 0; i < check.written[s - 1].size(); i++)
      if (check.written[s - 1][i] != stage) check.wrong++;
  work();
  check.written[s][t] = stage + 1;
  check.runs[s][t]++;
}

}  // namespace

int main(int, char** arguments) {
  int jobs = std::atoi(arguments[1]), wrong = 0;
  for (int threads : {1, 2, 3, 8}) {
    hearth::Team team(threads);
    std::mt19937 random(static_cast<unsigned>(threads));
    for (int i = 0; i < jobs; i++) {
      Check check(random);
      team.run({run, &check, check.tiles.data(), static_cast<int>(check.tiles.size())});
      for (const auto& stage : check.runs)
        for (const auto& count : stage) check.wrong += count != 1;
      wrong += check.wrong;
      if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // to sleep
    }
  }
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
