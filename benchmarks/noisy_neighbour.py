"""Throughput of decode steps while another process takes one core for 10 ms at a time.

    python -m benchmarks.noisy_neighbour [--threads 2] [--rounds 8] [--window 2.0] [--bind]
                                         [--layers 22]

The neighbour is pinned to one core: busy for 10 ms, asleep for 10 ms. Quiet and noisy windows take
turns; in each the steps of an int4 model (the 1.47 B reference model, or some of its layers, one
row) are counted. Shown: the median share of the steps that is lost, beside the share of the
machine's time that the neighbour got (its processor time by the time of as many cores as there are
threads), which is the limit: what it took is gone for everybody. Never asserts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import time
from multiprocessing.connection import Connection

from benchmarks.fused_steps import CASES, executor_of, load, plan_of

from hearth.core.step import StepPlan
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.fuse import ALL_PATTERNS

BUSY_S = 0.010
CASE = next(case for case in CASES if case.name == "decode")


def disturb(core: int, priority: int, pipe: Connection) -> None:
    """Busy and asleep in turns for ever; says its processor time whenever it is asked."""
    os.sched_setaffinity(0, {core})
    os.nice(priority)
    while True:
        if pipe.poll():
            pipe.recv()
            pipe.send(time.process_time())
        end = time.perf_counter() + BUSY_S
        while time.perf_counter() < end:
            pass
        time.sleep(BUSY_S)


def steps_in(executor: CpuExecutor, plan: StepPlan, window_s: float) -> float:
    """Steps a second over a window."""
    begin = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) - begin < window_s:
        executor.execute(plan)
        count += 1
    return count / (now - begin)


class Neighbour:
    """The other process, stopped until it is wanted."""

    def __init__(self, core: int, priority: int) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=disturb, args=(core, priority, theirs), daemon=True
        )
        self._process.start()
        self.processor_s()
        self.pause()

    def processor_s(self) -> float:
        """Processor time that it has had."""
        self._pipe.send(None)
        seconds: float = self._pipe.recv()
        return seconds

    def pause(self) -> None:
        """It takes nothing until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.join()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--window", type=float, default=2.0)
    parser.add_argument("--priority", type=int, default=0, help="niceness of the neighbour")
    parser.add_argument(
        "--bind", action="store_true", help="each thread to a CPU, as a server does"
    )
    parser.add_argument("--layers", type=int, default=22, help="all of the model's: 22")
    arguments = parser.parse_args()
    config = {**CASE.config, "num_hidden_layers": arguments.layers}
    executor = executor_of(CASE, load(config), arguments.threads, ALL_PATTERNS, "auto")
    if arguments.bind:
        executor.bind(sorted(os.sched_getaffinity(0))[: arguments.threads])
    plan = plan_of(CASE)
    neighbour = Neighbour(max(os.sched_getaffinity(0)), arguments.priority)
    lost, taken = [], []
    for _ in range(arguments.rounds):
        quiet = steps_in(executor, plan, arguments.window)
        neighbour.resume()
        before, begin = neighbour.processor_s(), time.perf_counter()
        noisy = steps_in(executor, plan, arguments.window)
        wall_s = time.perf_counter() - begin
        used_s = neighbour.processor_s() - before
        neighbour.pause()
        lost.append(1 - noisy / quiet)
        taken.append(used_s / (wall_s * arguments.threads))
        print(f"{quiet:7.1f} → {noisy:7.1f} steps/s: lost {lost[-1]:.1%}, taken {taken[-1]:.1%}")
    neighbour.close()
    executor.close()
    print(f"median: lost {statistics.median(lost):.1%}, taken {statistics.median(taken):.1%}")


if __name__ == "__main__":
    main()
