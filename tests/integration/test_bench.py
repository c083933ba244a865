"""`hearth bench` against the real server, and against an independent load generator."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.server import Server, environment
from tests.support.raw_load import raw_load

NUM_PROMPTS, CONCURRENCY, NUM_TOKENS = 24, 4, 24


def bench(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hearth.cli", "bench", "--base-url", server.url, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )


def result(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def test_it_agrees_with_an_independent_load_generator(server: Server, tmp_path: Path) -> None:
    bodies = [
        {
            "messages": [{"role": "user", "content": f"Question {i}: what is hearth?"}],
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for i in range(NUM_PROMPTS)
    ]
    data = tmp_path / "prompts.jsonl"
    rows = ({"messages": body["messages"], "max_tokens": NUM_TOKENS} for body in bodies)
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    saved = tmp_path / "result.json"
    arguments = ["--dataset-name", "jsonl", "--dataset-path", str(data), "--ignore-eos"]
    arguments += ["--num-prompts", str(NUM_PROMPTS), "--max-concurrency", str(CONCURRENCY)]
    ratios: dict[str, list[float]] = {}
    for _ in range(3):  # interleaved: the machine's mood changes
        raw = asyncio.run(raw_load(server.port, bodies, CONCURRENCY))
        done = bench(server, *arguments, "--save-result", str(saved))
        assert done.returncode == 0, done.stderr + done.stdout
        found = result(saved)
        assert found["total_output_tokens"] == NUM_PROMPTS * NUM_TOKENS
        for name, value in (
            ("ttft", found["median_ttft_ms"] / raw.ttft_ms),
            ("itl", found["median_itl_ms"] / raw.itl_ms),
            ("e2el", found["median_e2el_ms"] / raw.e2el_ms),
            ("throughput", found["output_throughput"] / raw.output_throughput),
        ):
            ratios.setdefault(name, []).append(value)
    medians = {name: sorted(values)[1] for name, values in ratios.items()}
    print(medians)
    # Wide: other processes take cores meanwhile. Both clients share the machine with the server.
    assert all(0.5 < value < 2 for value in medians.values()), medians


@pytest.mark.parametrize("dataset", ["random", "conversation"])
def test_made_up_prompts_by_the_served_tokenizer(
    server: Server, tmp_path: Path, dataset: str
) -> None:
    saved, plot = tmp_path / "result.json", tmp_path / "plot.svg"
    done = bench(
        server,
        *("--dataset-name", dataset, "--num-prompts", "6", "--num-warmups", "1"),
        *("--random-input-len", "20", "--random-output-len", "8", "--conversation-turns", "3"),
        *("--request-rate", "20", "--goodput", "ttft:60000", "tpot:60000"),
        *("--save-result", str(saved), "--plot", str(plot)),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Serving Benchmark Result" in done.stdout
    found = result(saved)
    assert (found["completed"], found["failed"]) == (6, 0)
    assert found["total_output_tokens"] == 48
    assert found["request_goodput"] == pytest.approx(found["request_throughput"])
    assert plot.read_text(encoding="utf-8").startswith("<svg")


def test_refused_requests_are_shown_and_the_exit_code_says_so(
    server: Server, tmp_path: Path
) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "a", "max_tokens": 4}\n{"prompt": "a", "max_tokens": 999999}\n')
    done = bench(server, "--dataset-name", "jsonl", "--dataset-path", str(data))
    assert done.returncode == 1
    assert "failed 50 ×: HTTP 400" in done.stdout
