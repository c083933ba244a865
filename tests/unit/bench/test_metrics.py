"""The figures of a run, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.bench.metrics import peak_concurrency, percentile, spread, summarize
from hearth.bench.records import NOT_SENT, Record

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def record(start: float, ttft: float, itls: list[float], **fields: object) -> Record:
    end = start + ttft + sum(itls)
    made = Record(start, end, ttft, itls, 10, len(itls) + 1, is_counted_by_server=True)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@given(samples, st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], p: float) -> None:
    assert percentile(sorted(values), p) == pytest.approx(np.percentile(values, p), abs=1e-6)


@given(samples)
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    found = spread(values, (99,))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values), rel=1e-6, abs=1e-3)


def test_a_run_by_hand() -> None:
    runs = [record(0, 0.1, [0.1] * 4), record(1, 0.3, [0.2] * 5)]
    found = summarize(runs, (99,))
    assert found.duration_s == pytest.approx(2.3)
    assert found.num_output_tokens == 11
    assert found.output_throughput == pytest.approx(11 / 2.3)
    assert found.total_token_throughput == pytest.approx(31 / 2.3)
    assert found.request_throughput == pytest.approx(2 / 2.3)
    assert found.spreads["ttft"].mean == pytest.approx(200)
    assert found.spreads["tpot"].mean == pytest.approx(150)
    assert found.spreads["itl"].mean == pytest.approx(1400 / 9)
    assert found.spreads["e2el"].median == pytest.approx(900)
    assert found.max_concurrency == 1
    assert found.goodput is None


def test_goodput_counts_requests_that_meet_every_objective() -> None:
    runs = [record(0, 0.1, [0.1] * 4), record(1, 0.3, [0.2] * 5)]
    assert summarize(runs, (), {"ttft": 200}).goodput == pytest.approx(1 / 2.3)
    assert summarize(runs, (), {"ttft": 400, "tpot": 120}).goodput == pytest.approx(1 / 2.3)
    assert summarize(runs, (), {"ttft": 50, "tpot": 500}).goodput == 0


def test_failures_are_counted_by_what_they_say_and_are_no_throughput() -> None:
    runs = [
        record(0, 0.1, [0.1]),
        record(0, 0.1, [0.1], error="HTTP 429: full"),
        Record(0.1, error=NOT_SENT),
    ]
    found = summarize(runs, (99,))
    assert (found.num_completed, found.num_failed) == (1, 2)
    assert found.failures == {"HTTP 429: full": 1, NOT_SENT: 1}
    assert found.num_output_tokens == 2


def test_a_run_in_which_everything_failed_has_no_latencies() -> None:
    found = summarize([Record(0.0, 0.5, error="no"), Record(0.0, error=NOT_SENT)], (99,))
    assert found.spreads == {}
    assert found.output_throughput == 0


def test_the_peak_of_requests_in_flight() -> None:
    runs = [record(0, 1, []), record(0.5, 1, []), record(1.0, 1, []), Record(0.6, error=NOT_SENT)]
    assert peak_concurrency(runs) == 2
