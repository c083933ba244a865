"""A run against a server whose timing and failures are known."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from tests.support.scripted_server import Script, scripted_server

from hearth.bench.datasets import Conversation, Turn
from hearth.bench.metrics import summarize
from hearth.bench.plot import plot_svg
from hearth.bench.records import NOT_SENT, Record
from hearth.bench.report import Run, report_lines, result_json
from hearth.bench.runner import arrival_times, run_load
from hearth.bench.settings import COMPLETIONS, DatasetChoice, Load, Query
from hearth.client.asynchronous import AsyncClient
from hearth.client.wire import Target

TITLES = ("Time to first token", "Inter-token latency", "End-to-end", "Requests in flight")


def turn(text: str = "Hi", max_tokens: int = 5) -> Turn:
    return Turn(({"role": "user", "content": text},), max_tokens, 3)


async def run(
    script: Script, conversations: list[Conversation], load: Load, query: Query | None = None
) -> list[Record]:
    async with scripted_server(script), AsyncClient(Target(script.url)) as client:
        return await run_load(client, query or Query("m"), load, conversations)


def as_run(records: list[Record], load: Load) -> Run:
    objectives = {"ttft": 500.0}
    summary = summarize(records, (50, 99), objectives)
    return Run("http://x", Query("a <model>"), load, DatasetChoice(), objectives, summary, records)


async def test_times_are_those_of_the_server() -> None:
    script = Script(ttft_s=0.1, itl_s=0.03, num_tokens=6)
    records = await run(script, [Conversation((turn(),))] * 4, Load())
    assert [record.error for record in records] == [""] * 4
    found = summarize(records, (99,))
    assert 100 <= found.spreads["ttft"].median < 180  # not the role's event, which came at once
    assert 30 <= found.spreads["itl"].median < 60
    assert found.spreads["tpot"].median == pytest.approx(30 * 6 / 5, rel=0.6)
    assert 280 <= found.spreads["e2el"].median < 450
    assert found.num_output_tokens == 24
    assert found.num_input_tokens == 28  # the server's count wins over the dataset's
    assert found.max_concurrency == 4
    assert records[0].text == "0 1 2 3 4 5 "


async def test_without_usage_events_are_counted_and_the_result_says_so() -> None:
    records = await run(Script(has_usage=False), [Conversation((turn(),))], Load())
    assert records[0].num_output_tokens == 5
    assert records[0].num_input_tokens == 3
    result = as_run(records, Load())
    assert any("counted by its events" in line for line in report_lines(result, ("ttft",)))


async def test_every_failure_is_counted_with_its_reason() -> None:
    script = Script(failures={0: "429", 1: "cut", 2: "event"})
    load = Load(max_concurrency=1)
    records = await run(script, [Conversation((turn(), turn()))] * 4, load)
    errors = [record.error for record in records]
    assert errors.count(NOT_SENT) == 3
    assert any("HTTP 429: the queue is full" in error for error in errors)
    assert any("without a finish reason" in error for error in errors)
    assert any("engine process is gone" in error for error in errors)
    result = as_run(records, load)
    assert result.summary.num_completed == 2
    assert result.summary.num_failed == 6
    shown = "\n".join(report_lines(result, ("ttft", "tpot", "itl", "e2el")))
    assert "HTTP 429" in shown
    assert "failed 3 ×: not sent" in shown


async def test_a_server_that_is_not_there_fails_every_request() -> None:
    async with AsyncClient(Target("http://127.0.0.1:9")) as client:
        (record,) = await run_load(client, Query("m"), Load(), [Conversation((turn(),))])
    assert "cannot be reached" in record.error


async def test_a_conversation_carries_all_that_was_said() -> None:
    script = Script(num_tokens=1)
    await run(script, [Conversation((turn("a"), turn("b")))], Load())
    roles = [[m["role"] for m in body["messages"]] for body in script.bodies]
    assert roles == [["user"], ["user", "assistant", "user"]]
    assert script.bodies[1]["messages"][1]["content"] == "0 "


async def test_bodies_are_what_the_backend_takes() -> None:
    script = Script()
    query = Query("m", COMPLETIONS, ignore_eos=True, extra_body={"top_p": 0.5})
    await run(script, [Conversation((turn("a"),))], Load(), query)
    (body,) = script.bodies
    assert body["prompt"] == "a"
    assert body["ignore_eos"] is True
    assert body["top_p"] == 0.5
    assert query.path == "/v1/completions"


async def test_concurrency_is_bounded() -> None:
    script = Script(ttft_s=0.02)
    records = await run(script, [Conversation((turn(),))] * 6, Load(max_concurrency=2))
    assert summarize(records, ()).max_concurrency == 2


def test_arrivals_are_reproducible_ascending_and_at_the_rate() -> None:
    load = Load(request_rate=10, burstiness=0.7, seed=3)
    times = arrival_times(load, 50)
    assert times == sorted(times) == arrival_times(load, 50)
    assert times[-1] == pytest.approx(5)
    assert arrival_times(Load(), 3) == [0, 0, 0]


def test_burstiness_is_the_spread_of_intervals() -> None:
    def variation(burstiness: float) -> float:
        times = arrival_times(Load(request_rate=1, burstiness=burstiness), 4000)
        gaps = [b - a for a, b in itertools.pairwise(times)]
        mean = sum(gaps) / len(gaps)
        return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean

    assert variation(1.0) == pytest.approx(1, abs=0.1)  # a Poisson process
    assert variation(4.0) == pytest.approx(0.5, abs=0.05)


async def test_the_result_file_has_vllms_names_and_the_plot_is_an_image() -> None:
    load = Load(num_prompts=3)
    result = as_run(await run(Script(), [Conversation((turn(),))] * 3, load), load)
    body = json.loads(result_json(result, is_detailed=True))
    assert body["completed"] == 3
    assert body["request_rate"] == "inf"
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert body[f"mean_{name}_ms"] >= 0
        assert body[f"p99_{name}_ms"] >= body[f"p50_{name}_ms"]
    assert len(body["itls"]) == 3
    assert "itls" not in json.loads(result_json(result, is_detailed=False))
    root = ET.fromstring(plot_svg(result))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4


def test_a_plot_of_nothing_is_still_an_image() -> None:
    root = ET.fromstring(plot_svg(as_run([Record(0.0, error="x")], Load())))
    texts = [element.text or "" for element in root.findall(".//{http://www.w3.org/2000/svg}text")]
    assert any("0 completed, 1 failed" in text for text in texts)
    assert [any(text.startswith(title) for text in texts) for title in TITLES] == [True] * 4


def test_figures_that_say_little_about_the_server_are_doubted() -> None:
    record = Record(0.0, ended_s=1.0, ttft_s=0.1, itls_s=[0.1, 0.0, 0.0, 0.1], num_output_tokens=5)
    sound = replace(as_run([record], Load()), client_cpu=0.2)
    doubted = "\n".join(report_lines(replace(sound, client_cpu=0.9), ("itl",)))
    assert "used 90% of a core" in doubted
    assert "50% of the events arrived together" in doubted
    record.itls_s = [0.1] * 4
    record.is_counted_by_server = True
    assert "note" not in "\n".join(report_lines(as_run([record], Load()), ("itl",)))
