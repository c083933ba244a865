"""A real engine process and its client; the executor is the toy, injected by --factory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.support.executors import require_cpu_library
from tests.support.toy_executor import solo_tokens, toy_program

from hearth.core.config import EngineConfig, ModelConfig, SchedulerConfig
from hearth.core.errors import (
    CapacityError,
    EngineDeadError,
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
)
from hearth.core.request import FinishReason, Request, SamplingParams, TokenEvent
from hearth.engine.client import EngineClient, RequestHandle
from hearth.engine.messages import Progress

FACTORY = "tests.support.toy_engine:start"
REPOSITORY = Path(__file__).resolve().parents[2]
CONTEXT = 10_000
LONG = 9_000  # tokens that take the slow toy 90 s


@pytest.fixture(autouse=True)
def _tests_can_be_imported_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def config(path: str = "toy", **scheduler: int) -> EngineConfig:
    model = ModelConfig(path, max_model_len=CONTEXT if path == "slow" else None)
    return EngineConfig(model, scheduler=SchedulerConfig(**scheduler))


@asynccontextmanager
async def running(settings: EngineConfig | None = None) -> AsyncIterator[EngineClient]:
    client = EngineClient.start(settings or config(), factory=FACTORY)
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.shutdown(2.0)


def greedy(name: str, prompt: tuple[int, ...], max_tokens: int) -> Request:
    return Request(name, prompt, max_tokens, SamplingParams(temperature=0))


async def collect(handle: RequestHandle) -> list[TokenEvent]:
    return [event async for event in handle]


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


async def test_many_requests_at_once_get_the_answers_of_solo_runs() -> None:
    async with running(config(max_num_batched_tokens=64)) as client:
        prompts = {f"r{i}": tuple((j * i) % 97 for j in range(1 + 5 * i)) for i in range(20)}
        handles = [client.submit(greedy(name, prompt, 30)) for name, prompt in prompts.items()]
        outcomes = await asyncio.gather(*map(collect, handles))
        for prompt, events, handle in zip(prompts.values(), outcomes, handles):
            assert tokens_of(events) == solo_tokens(toy_program(), prompt, 30) == handle.emitted
            assert [e.finish_reason for e in events if e.finish_reason] == [FinishReason.LENGTH]
        stats = await client.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
        assert stats.num_generated_tokens == 600
        assert client.num_running == 0


def test_the_client_works_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with running(config("slow")) as client:
            first = client.submit(greedy("r", (1, 2), 5))
            assert tokens_of(await collect(first)) == solo_tokens(toy_program(), (1, 2), 5)
            second = client.submit(greedy("s", (1, 2), LONG))
            os.kill(client.process.popen.pid, signal.SIGKILL)
            assert (await collect(second))[-1].error_code == "engine_dead"
            assert await client.died == -signal.SIGKILL

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_an_engine_that_still_writes_a_file_may_finish_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    client = EngineClient.start(config(f"writes {file}"), factory=FACTORY)
    await client.wait_ready()
    assert await client.shutdown() == 0
    assert file.read_text(encoding="utf-8") == "whole"


async def test_a_progress_callback_that_fails_does_not_end_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = EngineClient.start(config(), factory=FACTORY)

    def broken(progress: Progress) -> None:
        raise BrokenPipeError(progress.phase)

    assert (await client.wait_ready(broken)).resolved.model_name == "toy"
    assert [r.message for r in caplog.records if "progress" in r.message] != []
    assert await client.shutdown() == 0


async def test_an_engine_whose_start_nobody_waits_for_any_more_is_not_ready() -> None:
    client = EngineClient.start(config(), factory=FACTORY)
    waiting = asyncio.create_task(client.wait_ready())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert not client.is_alive
    with pytest.raises(EngineError, match="not ready"):
        client.submit(greedy("r", (1,), 1))
    await client.shutdown(10.0)
    assert client.process.popen.poll() is not None


async def test_a_request_that_cannot_be_sent_leaves_nothing_behind() -> None:
    async with running() as client:
        impossible = Request("r", (1,), 1, SamplingParams(seed=1 << 64))
        with pytest.raises(OverflowError):
            client.submit(impossible)
        assert client.num_running == 0
        events = await collect(client.submit(greedy("r", (1, 2), 3)))
        assert events[-1].finish_reason is FinishReason.LENGTH


async def test_a_choice_out_of_range_ends_that_request_only() -> None:
    async with running() as client:
        wrong = Request("r", (1,), 1, SamplingParams(temperature=0), choice=1 << 40)
        assert (await collect(client.submit(wrong)))[-1].finish_reason is FinishReason.ERROR
        fine = await collect(client.submit(greedy("s", (1, 2), 3)))
        assert fine[-1].finish_reason is FinishReason.LENGTH


async def test_progress_and_ready_tell_how_the_start_went() -> None:
    client = EngineClient.start(config(), factory=FACTORY)
    heard: list[Progress] = []
    ready = await client.wait_ready(heard.append)
    assert (heard[-1].phase, heard[-1].done, heard[-1].total) == ("weights", 2, 2)
    assert (ready.resolved.model_name, ready.executor.name) == ("toy", "toy")
    assert await client.shutdown() == 0
    assert await client.died == 0


@pytest.mark.parametrize(
    ("path", "kind", "exit_code"), [("too-large", CapacityError, 4), ("bug", EngineError, 6)]
)
async def test_an_engine_that_cannot_start_says_why(
    path: str, kind: type[EngineError], exit_code: int
) -> None:
    client = EngineClient.start(config(path), factory=FACTORY)
    with pytest.raises(kind):
        await client.wait_ready()
    assert await client.died == exit_code
    await client.shutdown()


async def test_the_real_start_up_translates_a_missing_model() -> None:
    client = EngineClient.start(config("/does/not/exist"))
    with pytest.raises(ModelNotFoundError):
        await client.wait_ready()
    assert await client.shutdown() == 3


async def test_a_real_model_is_served_without_torch(tmp_path: Path) -> None:
    require_cpu_library()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 101}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": [2, 3]}
    (tmp_path / "config.json").write_text(json.dumps({**names, **sizes, **heads}))
    client = EngineClient.start(EngineConfig(ModelConfig(str(tmp_path), load_format="dummy")))
    ready = await client.wait_ready()
    try:
        assert (ready.executor.name, ready.resolved.eos_token_ids) == ("cpu", (2, 3))
        assert {"python", "plan", "weights", "canary", "engine"} == set(ready.timings_s)
        names_of_choices = {choice.name for choice in ready.resolved.choices}
        assert names_of_choices >= {"dtype", "executor", "threads", "max_model_len", "kv_cache"}
        assert len(tokens_of(await collect(client.submit(greedy("r", (1, 5, 9), 8))))) == 8
        maps = psutil.Process(client.process.popen.pid).memory_maps()
        assert not [mapped.path for mapped in maps if "torch" in mapped.path]
    finally:
        assert await client.shutdown() == 0


async def test_cancel_gives_one_cancelled_event_and_frees_the_sequence() -> None:
    async with running(config("slow")) as client:
        handle = client.submit(greedy("r", (1, 2, 3), LONG))
        async for event in handle:
            if len(handle.emitted) >= 3:
                break
            assert event.finish_reason is None
        client.cancel("r")
        client.cancel("r")
        rest = await collect(handle)
        assert [e.finish_reason for e in rest] == [FinishReason.CANCELLED]
        stats = await client.stats()
        assert (stats.num_running, stats.num_blocks_used) == (0, 0)
        assert client.num_running == 0
        again = client.submit(greedy("r", (1, 2, 3), 2))  # the id is free again
        assert tokens_of(await collect(again)) == solo_tokens(toy_program(), (1, 2, 3), 2)


async def test_cancel_at_any_moment_leaves_the_others_alone() -> None:
    async with running(config(max_num_seqs=4, max_num_batched_tokens=8)) as client:
        stays = [client.submit(greedy(f"s{i}", (i, 5), 60)) for i in range(6)]
        goes = [client.submit(greedy(f"g{i}", (i, 7), 60)) for i in range(12)]
        for index, handle in enumerate(goes):
            await asyncio.sleep(0.0005 * index)
            client.cancel(handle.request.request_id)
        for index, events in enumerate(await asyncio.gather(*map(collect, stays))):
            assert tokens_of(events) == solo_tokens(toy_program(), (index, 5), 60)
        for events in await asyncio.gather(*map(collect, goes)):
            assert sum(e.finish_reason is not None for e in events) == 1
        assert (await client.stats()).num_blocks_used == 0


async def test_a_deadline_comes_in_time_while_the_engine_hangs_and_only_once() -> None:
    async with running() as client:
        os.kill(client.process.popen.pid, signal.SIGSTOP)  # as a very long step would
        start = time.monotonic()
        late = replace(greedy("r", (1, 2, 3), 200), deadline=start + 0.2)
        (event,) = await collect(client.submit(late))
        assert 0.19 <= time.monotonic() - start < 0.6
        assert (event.finish_reason, event.error_code) == (FinishReason.ERROR, "deadline_exceeded")
        with pytest.raises(RequestError, match="in use"):  # the engine has not let go of it
            client.submit(greedy("r", (1,), 1))
        os.kill(client.process.popen.pid, signal.SIGCONT)
        stats = await client.stats()
        assert (stats.num_running, stats.num_blocks_used, stats.num_steps) == (0, 0, 0)
        again = client.submit(greedy("r", (1, 2, 3), 2))
        assert tokens_of(await collect(again)) == solo_tokens(toy_program(), (1, 2, 3), 2)


async def test_deadlines_at_any_moment_leave_the_others_alone() -> None:
    async with running(config(max_num_seqs=4, max_num_batched_tokens=8)) as client:
        now = time.monotonic()
        goes = [
            client.submit(replace(greedy(f"g{i}", (i, 7), 250), deadline=now + 0.002 * i))
            for i in range(1, 12)
        ]
        stays = [client.submit(greedy(f"s{i}", (i, 5), 60)) for i in range(6)]
        for index, events in enumerate(await asyncio.gather(*map(collect, stays))):
            assert tokens_of(events) == solo_tokens(toy_program(), (index, 5), 60)
        for index, events in enumerate(await asyncio.gather(*map(collect, goes)), 1):
            assert [e.finish_reason for e in events if e.finish_reason] == [
                events[-1].finish_reason
            ]
            found = tokens_of(events)
            assert found == solo_tokens(toy_program(), (index, 7), len(found))
        stats = await client.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)


async def test_more_than_the_queue_holds_is_refused_at_once() -> None:
    async with running(config("slow", max_num_seqs=2, max_queued_requests=3)) as client:
        handles = [client.submit(greedy(f"r{i}", (1,), 3)) for i in range(5)]
        with pytest.raises(OverloadedError, match="max_queued_requests 3") as refused:
            client.submit(greedy("r5", (1,), 3))
        assert refused.value.retry_after_s == 1  # two endings take a fraction of a second
        for handle in handles:
            assert (await collect(handle))[-1].finish_reason is FinishReason.LENGTH


async def test_an_id_in_use_is_refused_and_a_bad_request_gets_its_error() -> None:
    async with running(config("slow")) as client:
        handle = client.submit(greedy("r", (1,), 5))
        with pytest.raises(RequestError, match="in use"):
            client.submit(greedy("r", (1,), 5))
        (event,) = await collect(client.submit(greedy("bad", (1, 4000), 5)))
        assert (event.finish_reason, event.error_code) == (FinishReason.ERROR, "invalid_request")
        assert len(tokens_of(await collect(handle))) == 5


async def test_a_killed_engine_ends_every_stream_once_with_an_error() -> None:
    async with running(config("slow")) as client:
        handles = [client.submit(greedy(f"r{i}", (i,), LONG)) for i in range(8)]
        streams = [asyncio.ensure_future(collect(handle)) for handle in handles]
        await asyncio.sleep(0.1)
        stats = asyncio.ensure_future(client.stats())
        await asyncio.sleep(0)
        os.kill(client.process.popen.pid, signal.SIGKILL)
        for events in await asyncio.gather(*streams):
            terminal = [e for e in events if e.finish_reason is not None]
            assert [e.error_code for e in terminal] == ["engine_dead"]
        with pytest.raises(EngineDeadError):
            await stats
        assert await client.died == -signal.SIGKILL
        assert not client.is_alive
        with pytest.raises(EngineDeadError):
            client.submit(greedy("late", (1,), 1))


async def test_a_refused_step_ends_its_requests_and_the_engine_lives() -> None:
    async with running(config("kernel-error")) as client:
        (event,) = await collect(client.submit(greedy("r", (13,), 5)))
        assert (event.finish_reason, event.error_code) == (FinishReason.ERROR, "kernel_error")
        assert len(tokens_of(await collect(client.submit(greedy("s", (14,), 3))))) == 3


async def test_a_bug_in_a_step_ends_all_requests_and_the_engine() -> None:
    async with running(config("crash")) as client:
        os.kill(client.process.popen.pid, signal.SIGSTOP)  # so that it hears of both at once
        first = client.submit(greedy("r", (12,), 200))
        second = client.submit(greedy("s", (13,), 5))
        os.kill(client.process.popen.pid, signal.SIGCONT)
        for handle in (first, second):
            events = await collect(handle)
            assert events[-1].finish_reason is FinishReason.ERROR
            assert sum(e.finish_reason is not None for e in events) == 1
        assert await client.died == EngineError.exit_code


async def test_an_interrupt_from_the_terminal_does_not_reach_the_engine() -> None:
    async with running() as client:
        pid = client.process.popen.pid
        assert os.getsid(pid) == pid
        os.kill(pid, signal.SIGINT)
        assert len(tokens_of(await collect(client.submit(greedy("r", (1,), 3))))) == 3


async def test_an_idle_engine_sleeps() -> None:
    async with running() as client:
        await collect(client.submit(greedy("r", (1,), 3)))
        process = psutil.Process(client.process.popen.pid)
        before = process.cpu_times()
        await asyncio.sleep(0.3)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.1


async def test_a_stuck_front_end_stops_the_engine_and_loses_nothing() -> None:
    async with running(config(max_num_seqs=64)) as client:
        handles = [client.submit(greedy(f"r{i}", (i, i), 250)) for i in range(64)]
        time.sleep(0.5)  # noqa: ASYNC251 — the event loop is stuck on purpose
        for index, events in enumerate(await asyncio.gather(*map(collect, handles))):
            assert len(tokens_of(events)) == 250, index


def test_the_engine_ends_when_its_front_end_dies() -> None:
    code = (
        "import asyncio, os, sys, time\n"
        "from tests.integration.test_engine_process import config, FACTORY\n"
        "from hearth.engine.client import EngineClient\n"
        "async def main():\n"
        "    client = EngineClient.start(config(), factory=FACTORY)\n"
        "    await client.wait_ready()\n"
        "    print(client.process.popen.pid, flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as front_end:
        assert front_end.stdout is not None
        engine = psutil.Process(int(front_end.stdout.readline()))
        front_end.kill()
        with suppress(psutil.NoSuchProcess):
            engine.wait(5)


async def test_no_file_handle_is_left_behind() -> None:
    process = psutil.Process()
    async with running():
        pass
    before = process.num_fds()
    for _ in range(3):
        async with running() as client:
            await collect(client.submit(greedy("r", (1,), 3)))
    assert process.num_fds() <= before
