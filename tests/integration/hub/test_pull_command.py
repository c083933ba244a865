"""`hearth pull` and `hearth models` as processes: killed, at the same time, on a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.hub_server import COMMIT, REPO, FakeHub, Fault
from tests.support.shards import shard_names, sharded_model

from hearth.cli.settings import BUILT_IN_DIR

WEIGHTS = "model.safetensors"
HOLD_AT = 3_000_000
LIMITED = (
    "import resource, sys; n = int(sys.argv.pop(1)); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); from hearth.cli.main import main; main()"
)


def built_in_model() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in BUILT_IN_DIR.iterdir() if path.is_file()}


def environment(hub: FakeHub | None, root: Path, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEARTH_", "HF_"))}
    endpoint = "http://127.0.0.1:9" if hub is None else hub.url
    own = {"HEARTH_MODELS_DIR": str(root), "HF_ENDPOINT": endpoint, "HF_HOME": str(root / "hf")}
    return {**clean, **own, "COLUMNS": "200", **more}


def hearth(
    hub: FakeHub | None, root: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hearth.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment(hub, root, **more),
    )


@contextmanager
def started(
    hub: FakeHub, root: Path, *python: str, more: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *(python or ("-m", "hearth.cli")), "pull", REPO, "--source", "hf", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(hub, root),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


def largest_part(root: Path) -> int:
    sizes = []
    for path in root.rglob("*.part"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes, default=0)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(built_in_model()) as server:
        yield server


def test_a_pulled_model_is_listed_verified_and_removed(hub: FakeHub, tmp_path: Path) -> None:
    done = hearth(hub, tmp_path, "pull", REPO, "--source", "hf")
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip())
    assert directory == tmp_path / "test-org--toy-model" / COMMIT
    assert "error" not in done.stderr
    listed = hearth(None, tmp_path, "models")
    assert REPO in listed.stdout
    assert COMMIT[:12] in listed.stdout
    rows = json.loads(hearth(None, tmp_path, "models", "list", "--json").stdout)
    assert [(row["model"], row["is_whole"]) for row in rows] == [(REPO, True)]
    verified = hearth(None, tmp_path, "models", "verify", REPO)
    assert verified.returncode == 0, verified.stderr
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)
    damaged = hearth(None, tmp_path, "models", "verify", REPO)
    assert damaged.returncode == 3
    assert "checksum_mismatch" in damaged.stderr
    assert WEIGHTS in damaged.stderr
    asked = hearth(None, tmp_path, "models", "remove", REPO)
    assert asked.returncode == 2
    assert "add --yes" in asked.stderr
    assert directory.is_dir()
    removed = hearth(None, tmp_path, "models", "remove", REPO, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert not directory.exists()
    assert hearth(None, tmp_path, "models", "remove", REPO, "--yes").returncode == 3


def test_a_killed_pull_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, Fault(hold=HOLD_AT))
    with started(hub, tmp_path) as process:
        wait_until(lambda: largest_part(tmp_path) == HOLD_AT)
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.released.set()
    assert not list(tmp_path.rglob(".hearth.json"))
    refused = hearth(None, tmp_path, "pull", REPO, "--offline")
    assert refused.returncode == 3
    listed = hearth(None, tmp_path, "models")
    assert "not complete" in listed.stdout
    done = hearth(hub, tmp_path, "pull", REPO, "--source", "hf")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(WEIGHTS) == ["", f"bytes={HOLD_AT}-"]
    directory = Path(done.stdout.strip())
    assert (directory / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert not list(tmp_path.rglob("*.part"))


def test_a_pull_that_is_interrupted_leaves_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, Fault(hold=HOLD_AT))
    with started(hub, tmp_path) as process:
        wait_until(lambda: largest_part(tmp_path) == HOLD_AT)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - begun < 2
    assert largest_part(tmp_path) == HOLD_AT


def test_of_two_pulls_the_second_waits_and_finds_it_done(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, Fault(hold=HOLD_AT))
    with started(hub, tmp_path) as first:
        wait_until(lambda: largest_part(tmp_path) == HOLD_AT)
        busy = hearth(None, tmp_path, "models", "remove", REPO, "--yes")
        assert busy.returncode == 9
        assert "store_busy" in busy.stderr
        with started(hub, tmp_path) as second:
            assert second.stderr is not None
            assert "waiting for it" in second.stderr.readline()
            hub.released.set()
            outputs = [first.communicate(timeout=60), second.communicate(timeout=60)]
        assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert "all here since" in outputs[1][1]
    assert len(hub.ranges(WEIGHTS)) == 1


def test_a_model_becomes_codes_while_it_comes_killed_in_between(tmp_path: Path) -> None:
    shards = shard_names(3)
    with FakeHub(sharded_model(3)) as hub:
        hub.fail(shards[1], Fault(hold=1_000_000))
        with started(hub, tmp_path, more=("--quantize", "int4")) as process:
            wait_until(lambda: largest_part(tmp_path) == 1_000_000)
            process.send_signal(signal.SIGKILL)
            process.wait()
        hub.released.set()
        assert not list(tmp_path.rglob(".hearth.json"))
        arguments = ("pull", REPO, "--source", "hf", "--quantize", "int4")
        done = hearth(hub, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert [hub.ranges(name) for name in shards] == [[""], ["", "bytes=1000000-"], [""]]
        again = hearth(None, tmp_path, *arguments, "--offline")
    assert again.stdout == done.stdout, again.stderr
    listed = hearth(None, tmp_path, "models")
    assert f"{COMMIT[:12]}+int4-g128" in listed.stdout
    assert "main+int4-g128" in listed.stdout
    assert hearth(None, tmp_path, "models", "verify", REPO).returncode == 0
    planned = hearth(None, tmp_path, "plan", f"{REPO}@main+int4-g128")
    assert planned.returncode == 0, planned.stderr
    refused = hearth(hub, tmp_path, "pull", REPO, "--quantize", "int4", "--include", "*.json")
    assert refused.returncode == 2
    assert "whole models" in refused.stderr


def test_a_file_size_limit_is_a_message_and_the_part_stays(hub: FakeHub, tmp_path: Path) -> None:
    limit = 2_000_000
    with started(hub, tmp_path, "-c", LIMITED, str(limit)) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert "insufficient_capacity" in stderr
    assert "are kept for the next pull" in stderr
    assert "Traceback" not in stderr
    assert largest_part(tmp_path) == limit
    assert hearth(hub, tmp_path, "pull", REPO, "--source", "hf").returncode == 0
    assert hub.ranges(WEIGHTS)[-1] == f"bytes={limit}-"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """48 MiB of memory as a file system; root only."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small disk needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(point)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_a_message(hub: FakeHub, small_disk: Path) -> None:
    hub.fail(WEIGHTS, Fault(hold=HOLD_AT))
    with started(hub, small_disk) as process:
        wait_until(lambda: largest_part(small_disk) == HOLD_AT)
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError:
                pass
        hub.released.set()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert "No space left on device" in stderr
    assert "Traceback" not in stderr
    assert largest_part(small_disk) >= HOLD_AT
    filler.unlink()
    done = hearth(hub, small_disk, "pull", REPO, "--source", "hf")
    assert done.returncode == 0, done.stderr
    assert len(hub.ranges(WEIGHTS)) == 2


def test_a_disk_that_is_too_small_is_said_before(hub: FakeHub, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(30 << 20))
    done = hearth(hub, small_disk, "pull", REPO, "--source", "hf")
    assert done.returncode == 4
    assert " short" in done.stderr
    assert hub.ranges(WEIGHTS) == []


def test_offline_modes_and_bad_input_are_messages(hub: FakeHub, tmp_path: Path) -> None:
    for arguments, code, said in (
        (("pull", REPO, "--offline"), 3, "asks nobody"),
        (("pull", "../etc"), 2, "is not a model's name"),
        (("pull", f"{REPO}@a..b"), 2, "is not a revision"),
        (("pull", REPO, "--source", "ftp://x"), 2, "is not the address of a hub"),
        (("pull", "test-org/other", "--source", "hf"), 3, "knows no model"),
        (("models", "verify"), 2, "needs a model"),
        (("models", "stage", REPO), 2, "needs a directory"),
        (("models", "verify", REPO), 3, "is not in"),
        (("serve", REPO), 3, f"hearth pull {REPO}"),
    ):
        done = hearth(hub, tmp_path, *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    done = hearth(hub, tmp_path, "pull", REPO, HF_HUB_OFFLINE="1")
    assert "asks nobody" in done.stderr


def test_files_that_do_not_fit_together_end_with_an_error(hub: FakeHub, tmp_path: Path) -> None:
    config = json.loads(hub.files["config.json"])
    config["eos_token_id"] = 10**6
    hub.files["config.json"] = json.dumps(config).encode()
    done = hearth(hub, tmp_path, "pull", REPO, "--source", "hf")
    assert done.returncode == 3
    assert "eos_token_id is 1,000,000" in done.stderr
    assert "do not fit together" in done.stderr


def test_a_store_that_cannot_be_written_is_a_message(hub: FakeHub, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = hearth(hub, blocked / "models", "pull", REPO, "--source", "hf")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_stages_and_the_copy_is_served_by_path(hub: FakeHub, tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    done = hearth(hub, tmp_path / "slow", "pull", REPO, "--source", "hf", "--stage", str(fast))
    assert done.returncode == 0, done.stderr
    copy = Path(done.stdout.strip())
    assert copy.parent == fast
    assert (copy / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    again = hearth(None, tmp_path / "slow", "models", "stage", REPO, str(fast))
    assert again.stdout == done.stdout


def test_a_model_is_planned_before_it_is_pulled_from_its_description_alone(tmp_path: Path) -> None:
    with FakeHub(built_in_model()) as hub:
        done = hearth(hub, tmp_path, "plan", REPO, "--source", "hf", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        weights = (BUILT_IN_DIR / WEIGHTS).stat().st_size
        assert report["download"]["weight_bytes"] == weights
        assert report["download"]["commit"] == COMMIT
        assert report["architecture"] == "Glm4vForConditionalGeneration"
        header = int.from_bytes(hub.files[WEIGHTS][:8], "little")
        assert report["stored"]["num_bytes"] == weights - 8 - header
        assert report["stored"]["dtypes"].keys() == {"BF16"}
        assert hub.ranges(WEIGHTS) == ["bytes=0-65535"]
        shown = hearth(hub, tmp_path, "plan", REPO, "--source", "hf").stdout
        assert "to download: 11." in shown
        assert "weights as stored: BF16 10." in shown
    gone = hearth(None, tmp_path, "plan", REPO, "--source", "hf")
    assert gone.returncode == 7
    assert "no hub answers" in gone.stderr


def test_weights_that_do_not_fit_are_told_before_they_are_downloaded(tmp_path: Path) -> None:
    files = built_in_model()
    config = json.loads(files["config.json"])
    config["text_config"]["intermediate_size"] += 64
    with FakeHub({**files, "config.json": json.dumps(config).encode()}) as hub:
        done = hearth(hub, tmp_path, "plan", REPO, "--source", "hf")
        assert hub.ranges(WEIGHTS) == ["bytes=0-65535"]
    assert done.returncode == 3
    assert "config.json makes it" in done.stderr
    assert done.stdout == ""


def test_a_gated_model_is_planned_by_those_who_have_access(tmp_path: Path) -> None:
    with FakeHub(built_in_model()) as hub:
        hub.gated, hub.token = True, "hf_secret"
        done = hearth(hub, tmp_path, "plan", REPO, "--source", "hf")
        assert done.returncode == 7
        assert "is gated" in done.stderr
        done = hearth(hub, tmp_path, "plan", REPO, "--source", "hf", HF_TOKEN="hf_secret")
        assert done.returncode == 0, done.stderr
        assert "weights as stored" in done.stdout


def test_a_plan_goes_without_headers_that_do_not_come_and_says_so(tmp_path: Path) -> None:
    with FakeHub(built_in_model()) as hub:
        hub.fail(WEIGHTS, *[Fault(404)] * 2, *[Fault(503, {"Retry-After": "0"})] * 20)
        done = hearth(hub, tmp_path, "plan", REPO, "--source", "hf")
    assert done.returncode == 0, done.stderr
    assert "headers could not be read, sizes are config.json's" in " ".join(done.stdout.split())
    assert "weights as stored" not in done.stdout
    assert "again in" in done.stderr


def test_what_a_hub_does_not_have_cannot_be_planned(tmp_path: Path) -> None:
    with FakeHub({"README.md": b"nothing else"}) as hub:
        done = hearth(hub, tmp_path, "plan", REPO, "--source", "hf")
    assert done.returncode == 3
    assert "no config.json" in done.stderr
