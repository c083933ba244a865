"""How the comparison with other engines makes figures of moments, and ratios of rounds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from benchmarks.ceilings import Ceiling
from benchmarks.peers.limits import Scheme, limit
from benchmarks.peers.models import CONFIG, tokenizer
from benchmarks.peers.neighbours import Moment, moment
from benchmarks.peers.plot import chart
from benchmarks.peers.record import read_rows, read_samples
from benchmarks.peers.rows import RowSpec, figure, prompts_of, row_specs
from benchmarks.peers.session import Sample
from benchmarks.peers.summary import Quiet, kept, summaries
from tokenizers import Tokenizer

CEILING = Ceiling(33.0, 32.0, 1250.0, 310.0)
SCHEME = Scheme(760_000_000, 1_340_000_000, 67_000_000, 830_000_000, 45_056, 172_032, 8_192)
STREAMS = RowSpec("streams-3", "3 streams", 3, 64, 20)


def test_only_steps_in_which_every_stream_takes_part_count() -> None:
    step = 0.1
    # The last prompt is read while the first stream decodes slowly: half a second a token.
    first = [1.0, 1.5, 2.0, 2.5, *(2.5 + step * i for i in range(1, 17))]
    others = [[2.5 + step * i for i in range(20)] for _ in range(2)]
    assert figure(STREAMS, 0.0, [first, *others]) == pytest.approx(3 / step)


def test_arrivals_of_one_step_need_not_be_one_moment() -> None:
    arrivals = [[1.0 + 0.1 * i + 0.01 * stream for i in range(20)] for stream in range(3)]
    assert figure(STREAMS, 0.0, arrivals) == pytest.approx(30.0)


def test_prefill_is_the_prompt_by_the_time_to_the_first_token() -> None:
    assert figure(RowSpec("prefill", "", 1, 512, 1), 10.0, [[12.0]]) == pytest.approx(256.0)


def test_a_stream_that_brought_too_few_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="19"):
        figure(STREAMS, 0.0, [[float(i) for i in range(n)] for n in (20, 20, 19)])


def test_streams_that_hardly_decode_together_are_an_error() -> None:
    one_by_one = [[20.0 * stream + i for i in range(20)] for stream in range(3)]
    with pytest.raises(ValueError, match="together"):
        figure(STREAMS, 0.0, one_by_one)


def test_prompts_are_distinct_and_the_same_for_every_engine_of_a_round() -> None:
    spec = row_specs(64)[-1]
    prompts = prompts_of(spec, 3, 256, 32768)
    assert prompts == prompts_of(spec, 3, 256, 32768)
    assert len({tuple(p) for p in [*prompts, *prompts_of(spec, 4, 256, 32768)]}) == 64
    assert {len(p) for p in prompts} == {64}
    assert min(map(min, prompts)) >= 256


def test_decode_is_limited_by_memory_and_prefill_by_arithmetic() -> None:
    decode, prefill, _, _, many = row_specs(64)
    quick, strong = replace(CEILING, read_gb_s=66.0), replace(CEILING, int8_gop_s=2500.0)
    assert limit(decode, SCHEME, CEILING) == pytest.approx(43, rel=0.02)
    assert limit(decode, SCHEME, quick) == pytest.approx(2 * limit(decode, SCHEME, CEILING))
    assert limit(prefill, SCHEME, quick) == limit(prefill, SCHEME, CEILING)
    assert limit(prefill, SCHEME, strong) > 1.5 * limit(prefill, SCHEME, CEILING)
    assert 400 < limit(many, SCHEME, CEILING) < 450


def sample(engine: str, number: int, speed: float, read: float = 32.0) -> Sample:
    ceilings = [replace(CEILING, read_gb_s_median=read)] * 2
    figures = {"decode-1": speed, "start": 100 / speed, "memory": 1.0}
    return Sample(engine, number, ceilings, figures)


def test_ratios_are_those_of_a_rounds_pair_and_disturbed_samples_can_be_left_out() -> None:
    samples = [
        *(sample("hearth", i, speed) for i, speed in enumerate((40.0, 20.0, 30.0))),
        *(sample("quick", i, speed) for i, speed in enumerate((20.0, 10.0, 15.0))),
        *(sample("slow", i, 5.0) for i in range(3)),
        sample("quick", 3, 1.0, read=20.0),
        replace(sample("quick", 4, 1.0), others_cores=0.5),
        Sample("slow", 3, [CEILING] * 2, error="it fell"),
    ]
    used = kept(samples, Quiet(31.0, 0.1))
    assert len(used) == 9
    decode, start, memory = summaries(used, row_specs(64)[:1], SCHEME, 3000)
    assert decode.best_peer == start.best_peer == "quick"
    assert decode.ratio_to_best is not None
    assert start.ratio_to_best is not None
    assert decode.ratio_to_best["values"] == start.ratio_to_best["values"] == [2.0, 2.0, 2.0]
    assert decode.engines["hearth"]["median"] == 30.0
    assert decode.limit == pytest.approx(limit(row_specs(64)[0], SCHEME, CEILING))
    assert start.limit is None
    assert memory.limit == pytest.approx(0.9, rel=0.01)


def test_what_other_processes_take_is_told_from_what_the_engine_takes() -> None:
    before = Moment(0.0, 100.0, 10.0)
    assert Moment(10.0, 118.0, 26.0).others_since(before) == pytest.approx(0.2)
    now = moment()
    sum(range(10_000_000))
    later = moment()
    assert later.own_s > now.own_s
    assert later.busy_s >= now.busy_s + 0.5 * (later.own_s - now.own_s)


def test_a_record_can_be_read_again_and_drawn() -> None:
    samples = [sample("hearth", 0, 30.0), sample("quick & co", 0, 20.0)]
    body = json.loads(
        json.dumps({"samples": [asdict(s) for s in samples], "rows": [asdict(row_specs(64)[0])]})
    )
    assert read_samples(body) == samples
    lines = summaries(read_samples(body), read_rows(body), SCHEME, 3000)
    drawn = chart(lines, {name: {"title": name} for name in ("hearth", "quick & co")})
    ET.fromstring(drawn)
    assert "quick &amp; co" in drawn


def test_every_token_of_the_model_has_a_text_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer(CONFIG["vocab_size"])), encoding="utf-8")
    found = Tokenizer.from_file(str(path))
    assert found.get_vocab_size() == CONFIG["vocab_size"]
    texts = found.decode_batch([[i] for i in range(4, CONFIG["vocab_size"])])
    assert len(set(texts)) == len(texts)
    assert all(texts)
