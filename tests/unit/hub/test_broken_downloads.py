"""Downloads that do not go well: whatever happens, a file is whole or it is not there."""

from __future__ import annotations

import random
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hub_server import FakeHub, Fault, git_sha1, sha256
from tests.unit.hub.hubs import (
    NEEDED,
    QUICK,
    WEIGHTS,
    Recorder,
    all_files,
    contents,
    do_pull,
    hugging,
    model_files,
    scope,
)

from hearth.core.errors import ChecksumError, HearthError, RemoteError, UnreachableError
from hearth.hub.transport import Retry

SIZE = 300_000


def wanted(hub: FakeHub) -> dict[str, bytes]:
    return {path: data for path, data in hub.files.items() if path in NEEDED}


def part_bytes(root: Path) -> int:
    return sum(p.stat().st_size for p in root.rglob("*.part"))


@pytest.mark.parametrize("source", [hugging, scope])
@pytest.mark.parametrize("seed", range(6))
def test_connections_cut_anywhere_are_taken_up_where_they_ended(
    tmp_path: Path, seed: int, source: object
) -> None:
    noise = random.Random(seed)
    with FakeHub(model_files(seed)) as hub:
        for path in sorted(NEEDED):
            size = len(hub.files[path])
            hub.fail(path, *(Fault(cut=noise.randrange(size)) for _ in range(3)))
        recorder = Recorder()
        # A kept connection that the server has closed meanwhile is a failure, too.
        patient = Retry(attempts=12, backoff_s=0.001)
        pulled = do_pull(tmp_path, source(hub), recorder=recorder, retry=patient)  # type: ignore[operator]
        assert contents(pulled.path) == wanted(hub)
        assert recorder.done == recorder.total


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 5000), min_size=1, max_size=8))
def test_no_cut_loses_or_repeats_a_byte(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    data = random.Random(7).randbytes(5000)
    files = {"config.json": b"{}", "model.safetensors": data}
    patient = Retry(attempts=20, backoff_s=0.0)
    with FakeHub(files) as hub:
        hub.fail("model.safetensors", *(Fault(cut=cut) for cut in cuts))
        root = tmp_path_factory.mktemp("store")
        pulled = do_pull(root, hugging(hub), retry=patient)
        assert contents(pulled.path) == files
        begin, expected = 0, [""]
        for cut in cuts:
            begin += min(cut, len(data) - begin)
            if begin == len(data):
                break
            expected.append(f"bytes={begin}-" if begin else "")
        assert hub.ranges("model.safetensors") == expected


def test_a_pull_that_gave_up_is_taken_up_by_the_next_one(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(cut=123_457), *[Fault(503)] * 4)
        with pytest.raises(UnreachableError, match="answers 503"):
            do_pull(tmp_path, hugging(hub), num_workers=1)
        assert part_bytes(tmp_path) >= 123_457
        assert ".hearth.json" not in " ".join(all_files(tmp_path))
        recorder = Recorder()
        pulled = do_pull(tmp_path, hugging(hub), recorder=recorder)
        assert hub.ranges(WEIGHTS)[-1] == "bytes=123457-"
        assert contents(pulled.path) == wanted(hub)
        assert recorder.done == recorder.total
        assert pulled.num_fetched_bytes == SIZE - 123_457


def test_a_part_is_taken_up_from_another_source(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub, FakeHub(model_files()) as other:
        hub.fail(WEIGHTS, Fault(cut=200_000), *[Fault(500)] * 4)
        pulled = do_pull(tmp_path, hugging(hub), scope(other))
        asked = [s.headers.get("range") for s in other.requests(f"FilePath={WEIGHTS}", "hub")]
        assert asked == ["bytes=200000-"]
        assert contents(pulled.path) == wanted(hub)


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(cut=100_000), Fault(ignore_range=True))
        recorder = Recorder()
        pulled = do_pull(tmp_path, hugging(hub), recorder=recorder)
        assert contents(pulled.path) == wanted(hub)
        assert recorder.done == recorder.total


def test_a_server_that_ignores_ranges_and_cuts_is_given_up(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, *[Fault(cut=100_000, ignore_range=True)] * 9)
        with pytest.raises(UnreachableError, match="cut"):
            do_pull(tmp_path, hugging(hub))
        assert len(hub.ranges(WEIGHTS)) <= QUICK.attempts + 1


def test_a_wrong_byte_is_found_named_and_deleted(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(corrupt=True))
        right = sha256(hub.files[WEIGHTS])
        bad = bytes([hub.files[WEIGHTS][0] ^ 1]) + hub.files[WEIGHTS][1:]
        with pytest.raises(ChecksumError) as error:
            do_pull(tmp_path, hugging(hub))
        assert WEIGHTS in error.value.message
        assert sha256(bad) in error.value.message
        assert right in error.value.message
        assert not any(right in name for name in all_files(tmp_path))
        assert contents(do_pull(tmp_path, hugging(hub)).path) == wanted(hub)


def test_small_files_are_compared_with_their_git_blob(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.wrong_digests["config.json"] = "0" * 40
        with pytest.raises(ChecksumError, match=f"git-sha1 {git_sha1(hub.files['config.json'])}"):
            do_pull(tmp_path, hugging(hub))
        assert not any("config.json" in name for name in all_files(tmp_path))


def test_a_part_that_was_damaged_meanwhile_is_fetched_once_more(tmp_path: Path) -> None:
    # After a power cut a file may be longer than what of it had reached the disk: zeros.
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(cut=SIZE // 2), *[Fault(500)] * 4)
        with pytest.raises(UnreachableError):
            do_pull(tmp_path, hugging(hub), num_workers=1)
        (part,) = (p for p in tmp_path.rglob("*.part") if sha256(hub.files[WEIGHTS]) in p.name)
        part.write_bytes(bytes(part.stat().st_size))
        recorder = Recorder()
        pulled = do_pull(tmp_path, hugging(hub), recorder=recorder)
        assert contents(pulled.path) == wanted(hub)
        assert any("once more from the beginning" in note for note in recorder.notes)
        assert recorder.done == recorder.total


@pytest.mark.parametrize("extra", [1, 100_000])
def test_a_body_that_is_longer_than_listed_is_refused(tmp_path: Path, extra: int) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(long=extra))
        with pytest.raises(RemoteError, match=r"has 300,000 bytes in the list .* and more"):
            do_pull(tmp_path, hugging(hub))
        assert contents(do_pull(tmp_path, hugging(hub)).path) == wanted(hub)


def test_a_body_that_is_shorter_than_listed_is_asked_for_again(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(short=77))
        assert contents(do_pull(tmp_path, hugging(hub)).path) == wanted(hub)
        assert hub.ranges(WEIGHTS) == ["", f"bytes={SIZE - 77}-"]


def test_a_file_that_became_shorter_on_the_server_is_refused(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(short=77), Fault(416, {"Content-Range": "bytes */299923"}))
        with pytest.raises(RemoteError, match="299923 when it is fetched"):
            do_pull(tmp_path, hugging(hub))


@pytest.mark.parametrize("said", ["bytes 5-299999/300000", "", "lines 1-2/3", "bytes x"])
def test_another_range_than_the_one_asked_for_is_not_taken(tmp_path: Path, said: str) -> None:
    with FakeHub(model_files()) as hub:
        other = Fault(206, {"Content-Range": said}, b"x" * 100)
        hub.fail(WEIGHTS, Fault(cut=1000), other)
        assert contents(do_pull(tmp_path, hugging(hub)).path) == wanted(hub)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(tmp_path: Path, status: int) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail("list", Fault(status))
        hub.fail(WEIGHTS, Fault(status), Fault(status))
        hub.fail("config.json", Fault(status))
        assert contents(do_pull(tmp_path, hugging(hub)).path) == wanted(hub)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed(tmp_path: Path, as_date: bool) -> None:
    # A date has no fractions of a second: two seconds ahead are at least one.
    said = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(429, {"Retry-After": said}))
        begun = time.monotonic()
        recorder = Recorder()
        do_pull(tmp_path, hugging(hub), recorder=recorder)
        assert time.monotonic() - begun >= 0.9
    assert "429: too many requests; again in" in recorder.notes[0]


def test_a_wait_that_is_too_long_is_said_instead(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail("list", Fault(429, {"Retry-After": "3600"}))
        with pytest.raises(RemoteError, match=r"asks to wait 3600 s .*try again in 60 min"):
            do_pull(tmp_path, hugging(hub))


def test_a_server_that_falls_silent_is_asked_again(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(hold=150_000))
        impatient = Retry(attempts=4, backoff_s=0.001, timeout_s=0.3)
        recorder = Recorder()
        pulled = do_pull(tmp_path, hugging(hub), retry=impatient, recorder=recorder)
        hub.released.set()
        assert contents(pulled.path) == wanted(hub)
        assert "sent nothing in time" in recorder.notes[0]


def test_a_slow_server_is_no_fault(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(slow_s=0.02))
        recorder = Recorder()
        assert contents(do_pull(tmp_path, hugging(hub), recorder=recorder).path) == wanted(hub)
        assert recorder.notes == []


def test_one_failure_stops_the_other_files_where_they_are(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail(WEIGHTS, Fault(slow_s=0.2))
        hub.fail("model-00002-of-00002.safetensors", Fault(corrupt=True))
        begun = time.monotonic()
        with pytest.raises(ChecksumError):
            do_pull(tmp_path, hugging(hub))
        assert time.monotonic() - begun < 3.0  # the slow one would have taken four seconds
        assert contents(do_pull(tmp_path, hugging(hub)).path) == wanted(hub)


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_fetched_several_at_a_time_and_not_more(tmp_path: Path, workers: int) -> None:
    files = {f"model-{i}.safetensors": bytes([i]) * 50_000 for i in range(8)}
    with FakeHub(files) as hub:
        for path in files:
            hub.fail(path, Fault(slow_s=0.02))
        do_pull(tmp_path, hugging(hub), num_workers=workers)
        assert hub.most_at_once == workers


def test_random_faults_never_leave_a_wrong_file(tmp_path: Path) -> None:
    noise = random.Random(11)
    for attempt in range(6):
        root = tmp_path / str(attempt)
        with FakeHub(model_files(attempt)) as hub:
            for path in sorted(NEEDED):
                size = len(hub.files[path])
                choices = (
                    Fault(cut=noise.randrange(size)),
                    Fault(503),
                    Fault(corrupt=True),
                    Fault(short=noise.randrange(1, size)),
                    Fault(long=noise.randrange(1, 100)),
                    Fault(ignore_range=True, cut=noise.randrange(size)),
                    Fault(404),
                )
                hub.fail(path, *noise.choices(choices, k=noise.randrange(4)))
            for _ in range(30):
                try:
                    pulled = do_pull(root, hugging(hub))
                    break
                except HearthError:
                    for found in root.rglob("*"):
                        if found.name in hub.files:
                            assert found.read_bytes() == hub.files[found.name]
                    assert not list(root.rglob(".hearth.json"))
            assert contents(pulled.path) == wanted(hub)
