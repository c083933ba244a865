// Random jobs on teams of 1 to 8 threads: every tile of a stage runs once, and only when all tiles
// of the stage before are done. Built with ThreadSanitizer, which sees whether what a stage writes
// is ordered before what the next one reads. Then bound teams: who holds a tile and has no core
// finishes it on the CPU of who waits, and is at home in the next job. Prints what went wrong; exit
// code 0: nothing.
//
//   team_stress JOBS
#include <sched.h>

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

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> cpus;
  for (int i = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  return cpus;
}

int stress(int threads, int jobs, bool is_bound) {
  hearth::Team team(threads);
  std::vector<int> cpus = allowed_cpus(), homes;
  for (int i = 0; i < threads; i++)
    homes.push_back(cpus[static_cast<size_t>(i) % cpus.size()]);
  if (is_bound) team.bind(homes.data());
  std::mt19937 random(static_cast<unsigned>(threads));
  int wrong = 0;
  for (int i = 0; i < jobs; i++) {
    Check check(random);
    team.run({run, &check, check.tiles.data(), static_cast<int>(check.tiles.size())});
    for (const auto& stage : check.runs)
      for (const auto& count : stage) check.wrong += count != 1;
    wrong += check.wrong;
    if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // to sleep
  }
  return wrong + (allowed_cpus() != cpus);
}

// Where two threads end their tiles of the first stage and begin those of the second, [stage][tile].
// Each waits until the other has its own. In the first stage `sleeper` then has no core for a while.
struct Where {
  int sleeper;
  std::atomic<int> begun{0};
  int cpus[2][2]{};
};

void note(void* context, int stage, int tile, int thread) {
  auto& where = *static_cast<Where*>(context);
  if (stage == 1) where.cpus[stage][tile] = sched_getcpu();
  for (where.begun++; where.begun < 2 * (stage + 1);) std::this_thread::yield();
  if (stage == 1) return;
  if (thread == where.sleeper) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  where.cpus[stage][tile] = sched_getcpu();
}

constexpr int kFetches = 20;

// Other processes may take a core at any time: most of the jobs must go as they should.
int fetch(int sleeper) {
  std::vector<int> cpus = allowed_cpus();
  if (cpus.size() < 2) return 0;
  hearth::Team team(2);
  team.bind(cpus.data());
  int fetched = 0, at_home = 0;
  for (int i = 0; i < kFetches; i++) {
    Where where{sleeper};
    const int tiles[] = {2, 2};
    team.run({note, &where, tiles, 2});
    auto waiter = static_cast<size_t>(1 - sleeper);
    fetched += where.cpus[0][sleeper] == cpus[waiter] && where.cpus[0][waiter] == cpus[waiter];
    at_home += where.cpus[1][0] == cpus[0] && where.cpus[1][1] == cpus[1];
  }
  return (fetched <= kFetches / 2) + (at_home <= kFetches / 2) + (allowed_cpus() != cpus);
}

}  // namespace

int main(int, char** arguments) {
  int jobs = std::atoi(arguments[1]), wrong = 0;
  for (int threads : {1, 2, 3, 8})
    for (bool is_bound : {false, true}) wrong += stress(threads, jobs, is_bound);
  for (int sleeper : {0, 1}) wrong += fetch(sleeper);
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
