"""A pull that is not disturbed, and one by a hub that says no."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.hub_server import COMMIT, REPO, FakeHub, Fault, sha256
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

from hearth.core.errors import (
    CapacityError,
    ConfigError,
    GatedModelError,
    HearthError,
    ModelError,
    ModelNotFoundError,
    RemoteError,
    UnreachableError,
)
from hearth.hub import pull as pull_module
from hearth.hub import transport as transport_module
from hearth.hub.download import part_path
from hearth.hub.huggingface import HuggingFaceSource
from hearth.hub.manifest import read_manifest
from hearth.hub.modelscope import ModelScopeSource
from hearth.hub.names import parse_name
from hearth.hub.pull import offline
from hearth.hub.stage import stage
from hearth.hub.store import Store, resolve_model
from hearth.hub.transport import Attempts, Retry, Transport


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_pull_brings_what_serving_needs_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder()
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path, hugging(hub), recorder=recorder)
    assert pulled.path == tmp_path / "test-org--toy-model" / COMMIT
    assert contents(pulled.path) == {k: v for k, v in hub.files.items() if k in NEEDED}
    assert recorder.done == recorder.total == pulled.num_fetched_bytes
    assert recorder.notes == []
    assert ".parts" not in " ".join(all_files(tmp_path))


def test_the_manifest_says_what_there_is_and_where_it_came_from(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
    said = json.loads((pulled.path / ".hearth.json").read_text())
    assert said["commit"] == COMMIT
    assert said["revision"] == "main"
    assert said["source"] == hub.url.removeprefix("http://")
    assert {f["path"]: f["sha256"] for f in said["files"]} == {
        path: sha256(hub.files[path]) for path in NEEDED
    }
    kinds = {f["path"]: f["source_digest"].partition(" ")[0] for f in said["files"]}
    assert kinds["config.json"] == "git-sha1"
    assert kinds["tokenizer.json"] == "sha256"


def test_a_second_pull_fetches_nothing(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        first = do_pull(tmp_path, hugging(hub))
        num_requests = len(hub.seen)
        second = do_pull(tmp_path, hugging(hub))
        assert len(hub.seen) == num_requests + 1  # for the commit of main
        pinned = do_pull(tmp_path, hugging(hub), name=f"{REPO}@{COMMIT}")
        assert len(hub.seen) == num_requests + 1
    assert second.manifest == first.manifest == pinned.manifest
    assert second.num_fetched_bytes == 0


def test_a_new_commit_stands_beside_the_old_one(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        old = do_pull(tmp_path, hugging(hub))
        hub.files, hub.commit = model_files(seed=1), "f" * 40
        new = do_pull(tmp_path, hugging(hub))
    environment = {"HEARTH_MODELS_DIR": str(tmp_path)}
    assert resolve_model(REPO, environment) == new.path != old.path
    assert resolve_model(f"{REPO}@{COMMIT}", environment) == old.path
    assert resolve_model(f"{REPO}@{COMMIT[:8]}", environment) == old.path


def test_include_and_exclude_choose_files(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        only = do_pull(tmp_path / "a", hugging(hub), include=("onnx/*", "*.md"))
        assert set(contents(only.path)) == {"onnx/model.onnx", "README.md"}
        rest = do_pull(tmp_path / "b", hugging(hub), exclude=("*.safetensors",))
        assert set(contents(rest.path)) == {p for p in NEEDED if not p.endswith(".safetensors")}
        with pytest.raises(ConfigError, match="leave none of the 9 files"):
            do_pull(tmp_path / "c", hugging(hub), include=("*.gguf",))


def test_chosen_files_are_not_taken_for_the_model(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        do_pull(tmp_path, hugging(hub), include=("config.json",))
        whole = do_pull(tmp_path, hugging(hub), name=f"{REPO}@{COMMIT}")
    assert set(contents(whole.path)) == NEEDED
    assert not whole.manifest.is_chosen


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "model.safetensors"], ["model.safetensors"]),
        (
            ["consolidated-1.safetensors", "model-00001-of-00001.safetensors"],
            ["model-00001-of-00001.safetensors"],
        ),
        (["model.safetensors-00001-of-00001.safetensors"],) * 2,
    ],
)
def test_weights_that_are_there_twice_are_fetched_once(
    tmp_path: Path, names: list[str], expected: list[str]
) -> None:
    files = {"config.json": b"{}", **{name: name.encode() for name in names}}
    with FakeHub(files) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
    assert sorted(contents(pulled.path)) == sorted(["config.json", *expected])


def test_a_model_without_safetensors_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with FakeHub({"config.json": b"{}", "pytorch_model.bin": b"x"}) as hub:
        with pytest.raises(ModelError, match=r"no \*.safetensors .* has pytorch_model.bin"):
            do_pull(tmp_path, hugging(hub))
        assert hub.requests("resolve", "hub") == []


def test_two_files_of_the_same_contents_are_both_there(tmp_path: Path) -> None:
    same = b"same" * 50_000
    files = {"config.json": b"{}", "model-1.safetensors": same, "model-2.safetensors": same}
    with FakeHub(files) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
    assert contents(pulled.path) == files


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    with FakeHub({"config.json": b"", "model.safetensors": b"x"}) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
    assert contents(pulled.path)["config.json"] == b""


def test_a_gated_model_names_its_page_and_the_token(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.gated, hub.token = True, "hf_right"
        with pytest.raises(GatedModelError) as nobody:
            do_pull(tmp_path, hugging(hub))
        assert nobody.value.status == 401
        assert f"{hub.url}/{REPO}" in str(nobody.value)
        assert "hf auth login" in str(nobody.value)
        with pytest.raises(GatedModelError, match="this account was not given access") as stranger:
            do_pull(tmp_path, hugging(hub, "hf_wrong"))
        assert stranger.value.status == 403
        do_pull(tmp_path, hugging(hub, "hf_right"))


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        do_pull(tmp_path, hugging(hub, "hf_secret"))
        asked = {s.host: s.headers.get("authorization") for s in hub.seen}
    assert asked == {"hub": "Bearer hf_secret", "content": None}


def test_a_token_is_not_sent_without_encryption() -> None:
    class Transport:
        def __init__(self) -> None:
            self.notes: list[str] = []
            self.headers: dict[str, str] | None = None

        def note(self, text: str) -> None:
            self.notes.append(text)

        def get(self, url: str, headers: dict[str, str]) -> None:
            self.headers = headers
            raise UnreachableError("far away")

    transport: Any = Transport()
    with pytest.raises(UnreachableError):
        HuggingFaceSource("http://hub.example", lambda: "hf_secret").list_files(
            parse_name(REPO), transport
        )
    assert transport.headers == {}
    assert "the token is not sent to http://hub.example" in transport.notes[0]


@pytest.mark.parametrize(
    ("name", "expected", "said"),
    [
        ("test-org/other", ModelNotFoundError, "knows no model test-org/other"),
        (f"{REPO}@nowhere", ModelNotFoundError, "no such revision"),
    ],
)
def test_what_the_hub_does_not_have_is_said(
    tmp_path: Path, name: str, expected: type[HearthError], said: str
) -> None:
    with FakeHub(model_files()) as hub, pytest.raises(expected, match=said):
        do_pull(tmp_path, hugging(hub), name=name)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_auto_does_not_go_on_after_an_answer(tmp_path: Path, status: int) -> None:
    with FakeHub(model_files()) as hub, FakeHub(model_files()) as other:
        hub.fail("list", Fault(status, body=b"no"))
        with pytest.raises(HearthError, match=rf"\({status}\)"):
            do_pull(tmp_path, hugging(hub), scope(other))
        assert other.seen == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_auto_goes_on_after_failures_of_the_server(tmp_path: Path, status: int) -> None:
    recorder = Recorder()
    with FakeHub(model_files()) as hub, FakeHub(model_files()) as other:
        hub.fail("list", *[Fault(status)] * 4)
        pulled = do_pull(tmp_path, hugging(hub), scope(other), recorder=recorder)
    assert contents(pulled.path) == {k: v for k, v in hub.files.items() if k in NEEDED}
    assert pulled.manifest.source == other.url.removeprefix("http://")
    assert f"answers {status}" in recorder.notes[-1]
    assert f"{pulled.manifest.source} next" in recorder.notes[-1]


def test_auto_goes_on_where_nothing_listens_and_says_all_it_tried(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        gone = HuggingFaceSource(closed_port(), lambda: None)
        assert do_pull(tmp_path, gone, hugging(hub)).num_fetched_bytes
        with pytest.raises(ModelNotFoundError, match=r"knows no model .* before it: .* refused"):
            do_pull(tmp_path, gone, scope(hub), name="test-org/other")
    with pytest.raises(UnreachableError, match=r"no source answers: .*; ") as error:
        do_pull(tmp_path, gone, HuggingFaceSource(closed_port(), lambda: None))
    assert "--offline takes what is here" in str(error.value)


def test_auto_goes_on_where_the_files_themselves_cannot_be_had(tmp_path: Path) -> None:
    # As behind a firewall that lets the hub through, and not the host of its large files.
    with FakeHub(model_files()) as hub, FakeHub(model_files()) as other:
        hub.fail("tokenizer.json", *[Fault(403)] * 4)
        pulled = do_pull(tmp_path, hugging(hub), scope(other))
    assert pulled.manifest.source == other.url.removeprefix("http://")


def test_auto_goes_on_where_a_hub_asks_for_a_long_wait(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub, FakeHub(model_files()) as other:
        hub.fail("list", Fault(503, {"Retry-After": "3600"}))
        pulled = do_pull(tmp_path, hugging(hub), scope(other))
        assert pulled.manifest.source == other.url.removeprefix("http://")
        hub.fail("list", Fault(429, {"Retry-After": "3600"}))  # an answer, and no other is asked
        with pytest.raises(RemoteError, match="asks to wait 3600 s"):
            do_pull(tmp_path, hugging(hub), scope(other))


def test_retries_of_a_connection_are_no_more_than_were_asked_for() -> None:
    error = UnreachableError("nobody listens")
    error.__cause__ = httpx.ConnectError("refused")
    with pytest.raises(UnreachableError):
        Attempts(Retry(attempts=1), "file", lambda _: None).failed(error)


def test_a_list_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_LIST_BYTES", 500)
    with FakeHub(model_files()) as hub, pytest.raises(RemoteError, match="of more than 500 B"):
        do_pull(tmp_path, hugging(hub))


def test_a_refusal_without_end_is_left(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.fail("config.json", Fault(404, body=b"x" * (2 << 20)))
        with pytest.raises(RemoteError, match=r"of more than 1\.00 MiB"):
            do_pull(tmp_path, hugging(hub))


def test_a_token_of_modelscope_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    for token in ("ms_ü", "ms\n"):
        with (
            FakeHub(model_files()) as hub,
            pytest.raises(ConfigError, match="MODELSCOPE_API_TOKEN"),
        ):
            do_pull(tmp_path, ModelScopeSource(hub.url, token))


@pytest.mark.parametrize(
    "path", [".hearth.json", ".hearth.json.part", ".Hearth.JSON", ".stage.json"]
)
def test_a_file_with_a_name_of_our_own_is_not_taken(tmp_path: Path, path: str) -> None:
    with FakeHub({**model_files(), path: b"{}"}) as hub:
        with pytest.raises(RemoteError, match="lists a file"):
            do_pull(tmp_path, hugging(hub), include=("*",))
        assert all_files(tmp_path) == set()


def test_names_that_differ_by_case_are_two_files_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub({**model_files(), "Config.json": b"another"}) as hub:
        both = do_pull(tmp_path / "a", hugging(hub))
        assert contents(both.path)["Config.json"] != contents(both.path)["config.json"]
        monkeypatch.setattr(Store, "_ignores_case", lambda _: True)
        with pytest.raises(HearthError, match=r"config\.json and Config\.json would be one file"):
            do_pull(tmp_path / "b", hugging(hub))
        do_pull(tmp_path / "b", hugging(hub), exclude=("Config.json",))


def test_a_part_that_is_another_commits_file_is_not_written_to(tmp_path: Path) -> None:
    # As a kill leaves it that comes between the link and the file's place.
    with FakeHub(model_files()) as hub:
        old = do_pull(tmp_path, hugging(hub))
        whole = (old.path / WEIGHTS).read_bytes()
        hub.commit = "f" * 40
        with closing(Transport(QUICK, print)) as transport:
            listing = hugging(hub).list_files(parse_name(REPO), transport)
        (file,) = (file for file in listing.files if file.path == WEIGHTS)
        part = part_path(Store(tmp_path).parts_dir(parse_name(REPO)), "f" * 40, file)
        part.parent.mkdir(exist_ok=True)
        part.hardlink_to(old.path / WEIGHTS)
        (old.path / ".hearth.json").unlink()  # so that it is not linked again
        hub.fail(WEIGHTS, Fault(cut=1000), *[Fault(500)] * 4)
        with pytest.raises(UnreachableError):
            do_pull(tmp_path, hugging(hub))
        assert (old.path / WEIGHTS).read_bytes() == whole
        new = do_pull(tmp_path, hugging(hub))
        assert (new.path / WEIGHTS).read_bytes() == whole
        assert not (new.path / WEIGHTS).samefile(old.path / WEIGHTS)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ".stage.json", ""])
def test_a_manifest_that_leads_out_of_its_directory_is_none(tmp_path: Path, path: str) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
    said = json.loads((pulled.path / ".hearth.json").read_text())
    said["files"][0]["path"] = path
    (pulled.path / ".hearth.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match="which is no path within a model"):
        read_manifest(pulled.path)
    with pytest.raises(ModelError, match="which is no path within a model"):
        stage(pulled.path, tmp_path / "fast", None, Recorder())
    (model,) = Store(tmp_path).models()
    assert model.manifest is None


def test_verifying_does_not_undo_a_pull_that_came_meanwhile(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with FakeHub(model_files()) as hub:
        do_pull(tmp_path, hugging(hub), include=("config.json", "LICENSE"))
        (few,) = store.models()

        def pull_meanwhile(_: int) -> None:
            do_pull(tmp_path, hugging(hub))

        store.verify(few, pull_meanwhile)
    (model,) = store.models()
    assert model.manifest is not None
    assert {file.path for file in model.manifest.files} == NEEDED
    assert not model.manifest.is_chosen
    quiet = store.verify(model, lambda _: None)
    assert read_manifest(model.path) == quiet
    with store.locked(parse_name(REPO), None):  # somebody else's work: nothing is written
        store.verify(replace(model, manifest=quiet), lambda _: None)


def test_too_many_requests_is_an_answer(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub, FakeHub(model_files()) as other:
        hub.fail("list", *[Fault(429)] * 4)
        with pytest.raises(RemoteError, match="429: too many requests") as error:
            do_pull(tmp_path, hugging(hub), scope(other))
        assert not isinstance(error.value, UnreachableError)
        assert other.seen == []


def test_modelscope_is_pulled_by_its_own_protocol(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path, scope(hub))
        again = do_pull(tmp_path, scope(hub))
        assert all("Revision=" in s.path for s in hub.seen)
        with pytest.raises(ModelNotFoundError, match="record not found"):
            do_pull(tmp_path, scope(hub), name=f"{REPO}@nowhere")
    assert set(contents(pulled.path)) == NEEDED
    assert pulled.manifest.commit.startswith("ms-")
    assert len(pulled.manifest.commit) == 40
    assert again.manifest == pulled.manifest
    assert resolve_model(REPO, {"HEARTH_MODELS_DIR": str(tmp_path)}) == pulled.path


@pytest.mark.parametrize("source", [hugging, scope])
def test_an_answer_that_is_no_list_is_said(tmp_path: Path, source: Any) -> None:
    for body in (b"<html>please log in</html>", b"[]", b'{"sha": 3}', b'{"Data": {}}', b"null"):
        with FakeHub(model_files()) as hub:
            hub.fail("list", Fault(200, {"Content-Type": "application/json"}, body))
            with pytest.raises(RemoteError):
                do_pull(tmp_path, source(hub))


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/passwd",
        "a/../../evil",
        "a//b",
        "./a",
        "a\\b",
        "c:evil",
        "",
        "a\0b",
        "line\nbreak",
        ".hearth.json",
        "x" * 256,
        "\ud800",
        7,
        None,
    ],
)
def test_a_path_that_leads_out_of_the_directory_ends_the_pull(tmp_path: Path, path: object) -> None:
    with FakeHub(model_files()) as hub:
        hub.extra_entries = [{"rfilename": path, "size": 1, "blobId": "0" * 40}]
        with pytest.raises(RemoteError, match="lists a file"):
            do_pull(tmp_path / "store", hugging(hub))
    assert all_files(tmp_path) == set()


@pytest.mark.parametrize("path", ["config.json", "config.json/x", "onnx"])
def test_a_path_that_is_there_twice_ends_the_pull(tmp_path: Path, path: str) -> None:
    with FakeHub(model_files()) as hub:
        hub.extra_entries = [{"rfilename": path, "size": 1, "blobId": "0" * 40}]
        with pytest.raises(RemoteError, match="a path twice"):
            do_pull(tmp_path, hugging(hub))


@pytest.mark.parametrize("size", [-1, None, "12", True, 1 << 60, 1.5])
def test_a_size_that_is_none_ends_the_pull(tmp_path: Path, size: object) -> None:
    with FakeHub(model_files()) as hub:
        hub.extra_entries = [{"rfilename": "more.json", "size": size, "blobId": "0" * 40}]
        with pytest.raises(RemoteError, match=r"as the size of more.json"):
            do_pull(tmp_path, hugging(hub))


def test_a_link_in_the_store_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "store", tmp_path / "outside"
    outside.mkdir()
    (root / "test-org--toy-model").mkdir(parents=True)
    (root / "test-org--toy-model" / COMMIT).symlink_to(outside)
    with FakeHub(model_files()) as hub, pytest.raises(HearthError, match="is a link"):
        do_pull(root, hugging(hub))
    assert list(outside.iterdir()) == []


def test_the_room_is_looked_at_before_and_the_sum_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with FakeHub(model_files()) as hub:
        with pytest.raises(CapacityError, match=r"needs 16\.4 MiB more .* 1\.00 MiB free: 15\.4"):
            do_pull(tmp_path, hugging(hub))
        assert hub.requests("resolve", "hub") == []


def test_a_source_without_checksums_is_noted_file_by_file(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        hub.without_digests = True
        pulled = do_pull(tmp_path, hugging(hub))
    assert set(pulled.unverified) == NEEDED
    assert all(f.sha256 == sha256(hub.files[f.path]) for f in pulled.manifest.files)


def test_offline_takes_what_is_whole_and_asks_nobody(tmp_path: Path) -> None:
    store, name = Store(tmp_path), parse_name(REPO)
    with pytest.raises(ModelNotFoundError, match="asks nobody"):
        offline(store, name)
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
    assert offline(store, name) == pull_module.Pulled(pulled.path, pulled.manifest)
    (pulled.path / "config.json").unlink()
    with pytest.raises(ModelNotFoundError):
        offline(store, name)


def test_files_that_were_placed_before_a_kill_are_not_fetched_again(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        first = do_pull(tmp_path, hugging(hub))
        (first.path / ".hearth.json").unlink()
        damaged = first.path / "tokenizer.json"
        damaged.write_bytes(bytes(damaged.stat().st_size))
        recorder = Recorder()
        second = do_pull(tmp_path, hugging(hub), recorder=recorder)
        assert {path: len(hub.ranges(path)) for path in NEEDED} == {
            path: 2 if path == "tokenizer.json" else 1 for path in NEEDED
        }
    assert recorder.done == recorder.total
    assert second.manifest.files == first.manifest.files
    assert damaged.read_bytes() == hub.files["tokenizer.json"]


def test_what_another_commit_holds_is_linked(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        old = do_pull(tmp_path, hugging(hub))
        hub.files["config.json"], hub.commit = b'{"new": 1}', "f" * 40
        damaged = old.path / "tokenizer.json"
        damaged.write_bytes(bytes(damaged.stat().st_size))
        recorder = Recorder()
        new = do_pull(tmp_path, hugging(hub), recorder=recorder)
        assert len(hub.ranges(WEIGHTS)) == 1
        assert len(hub.ranges("tokenizer.json")) == 2
    assert (old.path / WEIGHTS).samefile(new.path / WEIGHTS)
    assert recorder.done == recorder.total
    assert contents(new.path) == {k: v for k, v in hub.files.items() if k in NEEDED}


def test_the_same_model_of_another_hub_is_linked_too(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        first = do_pull(tmp_path, hugging(hub))
        second = do_pull(tmp_path, scope(hub))
        assert len(hub.ranges(WEIGHTS)) == 1
    assert first.path != second.path
    assert contents(first.path) == contents(second.path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "\0"])
def test_a_damaged_manifest_is_no_manifest(tmp_path: Path, text: str) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path, hugging(hub))
        (pulled.path / ".hearth.json").write_text(text)
        (model,) = Store(tmp_path).models()
        assert model.manifest is None
        with pytest.raises(ModelError, match="remove it and pull the model again"):
            do_pull(tmp_path, hugging(hub))
        (pulled.path / ".hearth.json").unlink()
        assert do_pull(tmp_path, hugging(hub)).manifest.files == pulled.manifest.files


def test_a_token_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub, pytest.raises(ConfigError, match="HF_TOKEN"):
        do_pull(tmp_path, hugging(hub, "hf_ü"))


def test_proxy_settings_that_do_not_work_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    with FakeHub(model_files()) as hub, pytest.raises(ConfigError, match="ALL_PROXY"):
        do_pull(tmp_path, hugging(hub))
