// The affinity of the caller of Team::run(), which is bound while a job runs: afterwards what it was
// before, or what somebody else (taskset -ap) has made of it meanwhile. Prints what went wrong; exit
// code 0: nothing.
//
//   team_affinity FIRST SECOND     two CPUs that may be used
#include <sched.h>

#include <cstdio>
#include <cstdlib>

#include "team.h"

namespace {

cpu_set_t set_of(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return set;
}

cpu_set_t now() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

int wrong = 0;

void expect(const char* what, cpu_set_t seen, cpu_set_t wanted) {
  if (CPU_EQUAL(&seen, &wanted)) return;
  wrong++;
  std::printf("wrong: %s\n", what);
}

struct Task {
  int home;      // the CPU that the thread is bound to meanwhile
  int moved_to;  // −1: nobody moves it
};

void run(void* context, int, int, int) {
  auto& task = *static_cast<Task*>(context);
  if (task.home >= 0) expect("bound while it computes", now(), set_of(task.home));
  if (task.moved_to < 0) return;
  cpu_set_t set = set_of(task.moved_to);
  sched_setaffinity(0, sizeof set, &set);
}

void run_job(hearth::Team& team, Task task) {
  int tiles[] = {1};
  team.run({run, &task, tiles, 1});
}

}  // namespace

int main(int, char** arguments) {
  int first = std::atoi(arguments[1]), second = std::atoi(arguments[2]);
  cpu_set_t both = set_of(first);
  CPU_SET(static_cast<size_t>(second), &both);
  sched_setaffinity(0, sizeof both, &both);
  hearth::Team team(1);
  int cpus[] = {first};
  team.bind(cpus);
  expect("as it was after bind()", now(), both);
  run_job(team, {first, -1});
  expect("as it was after a job", now(), both);
  run_job(team, {first, second});
  expect("where it was moved to in a job", now(), set_of(second));
  run_job(team, {second, -1});
  expect("where it was moved to before a job", now(), set_of(second));
  sched_setaffinity(0, sizeof both, &both);
  run_job(team, {first, -1});
  expect("as it is allowed again", now(), both);
  return wrong == 0 ? 0 : 1;
}
