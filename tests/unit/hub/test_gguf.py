"""Repositories of GGUF files: one of many is taken, with what belongs to it, like any model."""

from __future__ import annotations

import os
import random
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.support.hub_server import COMMIT, REPO, FakeHub, Fault
from tests.unit.hub.hubs import Recorder, contents, do_pull, hugging, scope

from hearth.core.errors import (
    ChecksumError,
    ConfigError,
    HearthError,
    ModelError,
    ModelNotFoundError,
)
from hearth.core.quality import REPORT_FILE
from hearth.hub.converting import ConvertingAttempt
from hearth.hub.gguf_files import is_projector, matches, models_of, num_parts, quantization_of
from hearth.hub.listing import RemoteFile
from hearth.hub.names import ModelName, parse_name
from hearth.hub.pull import Order, pull
from hearth.hub.stage import stage
from hearth.hub.store import Store, resolve_model

OTHER_COMMIT = "f" * 40


def repository(seed: int = 0) -> dict[str, bytes]:
    """As those who quantize publish a model that sees; contents are noise."""
    noise = random.Random(seed)
    return {
        "README.md": b"read me",
        "LICENSE": b"do what you like",
        "config.json": b'{"model_type": "toy"}',
        "params": b"{}",
        "tokenizer.json": noise.randbytes(9_000),
        "toy-Q2_K.gguf": noise.randbytes(30_000),
        "toy-Q4_K_M.gguf": noise.randbytes(50_000),
        "toy-UD-Q4_K_XL.gguf": noise.randbytes(52_000),
        "toy-Q8_0.gguf": noise.randbytes(90_000),
        "BF16/toy-BF16-00001-of-00002.gguf": noise.randbytes(80_000),
        "BF16/toy-BF16-00002-of-00002.gguf": noise.randbytes(70_000),
        "toy.mmproj-Q8_0.gguf": noise.randbytes(10_000),
        "toy.mmproj-f16.gguf": noise.randbytes(20_000),
        "toy.imatrix.gguf": noise.randbytes(1_000),
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("qwen2-7b-q8_0-00001-of-00002.gguf", "Q8_0"),
        ("Q3_K_M/GLM-4.1V-9B-Thinking-Q3_K_M.gguf", "Q3_K_M"),
        ("Llama-3.2-1B-Instruct-f16.gguf", "F16"),
        ("Mistral-7B-v0.3.IQ3_XXS.gguf", "IQ3_XXS"),
        ("gemma-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("ggml-model.gguf", ""),
        ("Q8-tuner-7B.gguf", "Q8"),  # no rule of names tells that from a quantization
    ],
)
def test_the_quantization_is_in_the_name(path: str, expected: str) -> None:
    assert quantization_of(path) == expected


def test_a_tag_means_a_quantization_or_a_name_in_either_case() -> None:
    path = "sub/toy-Q4_K_M.gguf"
    for tag in ("Q4_K_M", "q4_k_m", "toy-q4_k_m", "toy-Q4_K_M.gguf", path, "sub/toy-Q4_K_M"):
        assert matches(tag, path), tag
    for tag in ("Q4_K", "K_M", "toy", "", "sub"):
        assert not matches(tag, path), tag
    assert is_projector("sub/toy-mmproj-f16.gguf")
    assert not is_projector("mmproj/toy.gguf")
    files = [RemoteFile(p, 1, None, "") for p in ("a-imatrix-Q4_0.gguf", "a.imatrix.gguf", "b.GGU")]
    assert [model.stem for model in models_of(files)] == ["a-imatrix-Q4_0"]
    assert (num_parts(path), num_parts("a-00001-of-00003.gguf")) == (1, 3)


@pytest.mark.parametrize("tag", ["Q4_K_M", "q4_k_m", "toy-Q4_K_M", "toy-Q4_K_M.gguf"])
def test_a_tag_takes_one_file_its_encoder_and_its_tokenizer(tmp_path: Path, tag: str) -> None:
    files, seen = repository(), Recorder()
    with FakeHub(files) as hub:
        pulled = do_pull(tmp_path, hugging(hub), name=f"{REPO}:{tag}", recorder=seen)
    assert contents(pulled.path) == {
        "toy-Q4_K_M.gguf": files["toy-Q4_K_M.gguf"],
        "mmproj-toy.mmproj-f16.gguf": files["toy.mmproj-f16.gguf"],
        "tokenizer.json": files["tokenizer.json"],
        "LICENSE": files["LICENSE"],
    }
    assert pulled.path.name == f"{COMMIT}.toy-Q4_K_M"
    assert pulled.manifest.gguf == "toy-Q4_K_M.gguf"
    assert any("toy.mmproj-f16.gguf comes along" in note for note in seen.notes)
    assert any("one of 2: half precision goes before others" in note for note in seen.notes)
    environment = {"HEARTH_MODELS_DIR": str(tmp_path)}
    for name in (REPO, f"{REPO}:{tag}", f"{REPO}:Q4_K_M@main", f"{REPO}:Q4_K_M@{COMMIT[:9]}"):
        assert resolve_model(name, environment) == pulled.path
    with pytest.raises(ModelNotFoundError, match=f"hearth pull {REPO}:Q8_0"):
        resolve_model(f"{REPO}:Q8_0", environment)


def test_parts_lie_at_the_top_and_are_one_model(tmp_path: Path) -> None:
    files = repository()
    with FakeHub(files) as hub:
        pulled = do_pull(tmp_path, hugging(hub), name=f"{REPO}:bf16")
        assert {path.name for path in pulled.path.glob("toy*.gguf")} == {
            "toy-BF16-00001-of-00002.gguf",
            "toy-BF16-00002-of-00002.gguf",
        }
        assert pulled.manifest.gguf == "toy-BF16-00001-of-00002.gguf"
        del hub.files["BF16/toy-BF16-00002-of-00002.gguf"]
        with pytest.raises(ModelNotFoundError, match="one of 2 parts, of which 1 are"):
            do_pull(tmp_path / "other", hugging(hub), name=f"{REPO}:BF16")


def test_several_without_a_tag_are_listed_with_size_and_memory(tmp_path: Path) -> None:
    files = {**repository(), "toy-Q6_K.gguf": bytes(660_000)}
    with FakeHub(files) as hub, pytest.raises(ConfigError) as caught:
        do_pull(tmp_path, hugging(hub))
    text = caught.value.message
    assert "has 6 GGUF models" in text
    assert "Q6_K: toy-Q6_K.gguf, 645 KiB, about 830 KiB in memory" in text
    assert "Q2_K: toy-Q2_K.gguf, 29.3 KiB, a form that hearth does not read" in text
    assert "BF16: BF16/toy-BF16-00001-of-00002.gguf in 2 parts, 146 KiB" in text
    assert "mmproj" not in text
    assert "imatrix" not in text
    assert f"hearth pull {REPO}:Q4_K_M" in (caught.value.hint or "")
    assert list(tmp_path.glob("*/*")) in ([], [tmp_path / ".locks" / "test-org--toy-model"])


def test_a_tag_that_none_has_or_two_have_is_an_error_with_what_there_is(tmp_path: Path) -> None:
    files = {**repository(), "sub/other-Q8_0.gguf": b"x" * 900}
    with FakeHub(files) as hub:
        with pytest.raises(ModelNotFoundError, match=r"(?s)no GGUF file Q5_K_M.*toy-Q2_K.gguf"):
            do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q5_K_M")
        with pytest.raises(ConfigError, match="2 GGUF models that are Q8_0") as caught:
            do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
        assert "--file sub/other-Q8_0.gguf" in (caught.value.hint or "")
        assert "other-Q8_0: sub/other-Q8_0.gguf" in caught.value.message
        store, order = Store(tmp_path), Order(ModelName(REPO, tag="sub/other-Q8_0.gguf"))
        pulled = pull(store, order, (hugging(hub),), Recorder())
        second = do_pull(tmp_path, hugging(hub), name=f"{REPO}:toy-Q8_0")
    assert (pulled.path / "other-Q8_0.gguf").read_bytes() == b"x" * 900
    for tag, expected in (("other-Q8_0", pulled), ("sub/other-Q8_0", pulled), ("toy-Q8_0", second)):
        found = store.find(parse_name(f"{REPO}:{tag}"))
        assert getattr(found, "path", None) == expected.path
    with pytest.raises(ModelNotFoundError, match="may be any of 2") as missed:
        store.find(parse_name(f"{REPO}:Q8_0"))
    assert "toy-Q8_0" in (missed.value.hint or "")


def test_the_only_one_is_taken_and_it_is_said(tmp_path: Path) -> None:
    seen = Recorder()
    with FakeHub({"a/toy.gguf": b"GGUF" * 99, "README.md": b"x"}) as hub:
        pulled = do_pull(tmp_path, hugging(hub), recorder=seen)
    assert contents(pulled.path) == {"toy.gguf": b"GGUF" * 99}
    assert any("the only GGUF model" in note for note in seen.notes)


def test_safetensors_win_where_no_tag_is_named_and_it_is_said(tmp_path: Path) -> None:
    seen = Recorder()
    with FakeHub({**repository(), "model.safetensors": b"s" * 5000}) as hub:
        plain = do_pull(tmp_path, hugging(hub), recorder=seen)
        tagged = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
        assert do_pull(tmp_path, hugging(hub)).path == plain.path
    assert not list(plain.path.glob("*.gguf"))
    assert (plain.manifest.gguf, plain.path.name) == ("", COMMIT)
    (said,) = (note for note in seen.notes if "safetensors" in note)
    assert f"hearth pull {REPO}:TAG" in said
    assert "Q4_K_M" in said
    environment = {"HEARTH_MODELS_DIR": str(tmp_path)}
    assert resolve_model(REPO, environment) == plain.path
    assert resolve_model(f"{REPO}:Q8_0", environment) == tagged.path


def test_of_several_pulled_ones_a_name_without_a_tag_says_which_there_are(tmp_path: Path) -> None:
    with FakeHub(repository()) as hub:
        first = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q4_K_M")
        second = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
        # What both have is fetched once: of the second only its own file.
        assert second.num_fetched_bytes <= 90_000
        assert len(hub.ranges("toy.mmproj-f16.gguf")) == 1
        hub.commit = OTHER_COMMIT
        newer = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
        assert newer.num_fetched_bytes == 0
    store = Store(tmp_path)
    with pytest.raises(ModelNotFoundError, match="may be any of 2") as caught:
        store.find(parse_name(REPO))
    assert f"{REPO}:Q4_K_M, {REPO}:Q8_0" in (caught.value.hint or "")
    for name, expected in (
        (f"{REPO}:q4_k_m", first),
        (f"{REPO}:Q8_0", newer),
        (f"{REPO}:Q8_0@{COMMIT}", second),
        (f"{REPO}:Q8_0@{OTHER_COMMIT[:12]}", newer),
    ):
        found = store.find(parse_name(name))
        assert getattr(found, "path", None) == expected.path, name


def test_a_pinned_commit_with_a_tag_is_found_without_asking_anybody(tmp_path: Path) -> None:
    name = f"{REPO}:Q4_K_M@{COMMIT}"
    with FakeHub(repository()) as hub:
        pulled = do_pull(tmp_path, hugging(hub), name=name)
        num_seen = len(hub.seen)
        assert do_pull(tmp_path, hugging(hub), name=name).path == pulled.path
        assert len(hub.seen) == num_seen
        with pytest.raises(ConfigError, match="GGUF models"):  # which one is not said
            do_pull(tmp_path, hugging(hub), name=f"{REPO}@{COMMIT}")


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    name, weights = f"{REPO}:Q8_0", "toy-Q8_0.gguf"
    with FakeHub(repository()) as hub:
        hub.fail(weights, *[Fault(cut=40_000)], *[Fault(status=503)] * 9)
        with pytest.raises(HearthError):
            do_pull(tmp_path, hugging(hub), name=name)
        assert Store(tmp_path).find(parse_name(name)) is None
        hub.heal()
        pulled = do_pull(tmp_path, scope(hub), name=name)  # another hub goes on with the part
        assert hub.requests("FilePath=toy-Q8_0.gguf", "hub")[-1].headers["range"] == "bytes=40000-"
    assert (pulled.path / weights).read_bytes() == repository()[weights]


def test_a_wrong_checksum_is_an_error_and_a_changed_file_is_found(tmp_path: Path) -> None:
    name, weights = f"{REPO}:Q8_0", "toy-Q8_0.gguf"
    with FakeHub(repository()) as hub:
        hub.wrong_digests[weights] = "0" * 64
        with pytest.raises(HearthError, match="the source says 0000"):
            do_pull(tmp_path, hugging(hub), name=name)
        hub.wrong_digests.clear()
        pulled = do_pull(tmp_path, hugging(hub), name=name)
    store = Store(tmp_path)
    model = store.find(parse_name(name))
    assert model is not None
    store.verify(model, lambda _: None)
    (pulled.path / weights).write_bytes(bytes(90_000))
    with pytest.raises(HearthError, match=f"{weights} has sha256"):
        store.verify(model, lambda _: None)


def test_what_does_not_fit_on_the_disk_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hearth.hub.pull.MARGIN_BYTES", 1 << 60)
    with FakeHub(repository()) as hub:
        with pytest.raises(HearthError, match=r"needs .* more \(4 files"):
            do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
        assert not hub.ranges("toy-Q8_0.gguf")


def test_one_is_removed_and_its_neighbours_stay(tmp_path: Path) -> None:
    with FakeHub(repository()) as hub:
        first = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q4_K_M")
        second = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
    store, name = Store(tmp_path), parse_name(f"{REPO}:Q4_K_M")
    model = store.find(name)
    assert model is not None
    store.remove(name, [model])
    assert not first.path.exists()
    assert contents(second.path)["mmproj-toy.mmproj-f16.gguf"]
    found = store.find(parse_name(REPO))
    assert getattr(found, "path", None) == second.path


def test_codes_are_not_made_of_codes(tmp_path: Path) -> None:
    def make(*arguments: object) -> ConvertingAttempt:
        return ConvertingAttempt(_Converter(), *arguments)  # type: ignore[arg-type]

    files = {"toy-Q8_0.gguf": b"GGUF", "config.json": b"{}"}
    with FakeHub(files) as hub, pytest.raises(ConfigError, match="converts safetensors"):
        pull(Store(tmp_path), Order(parse_name(REPO)), (hugging(hub),), Recorder(), make)


class _Converter:
    label = "int4-g128"


def test_without_any_weights_both_kinds_are_named(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "mmproj-f16.gguf": b"x", "pytorch_model.bin": b"x"}
    with FakeHub(files) as hub, pytest.raises(ModelError, match=r"safetensors .* and no \*.gguf"):
        do_pull(tmp_path, hugging(hub))


def test_a_label_is_a_directory_s_name_however_long_the_file_s_is() -> None:
    long = [RemoteFile(f"d/{'ä' * 90}{i}-Q4_0.gguf", 1, None, "") for i in range(2)]
    labels = {model.label for model in models_of(long)}
    assert len(labels) == 2
    for label in labels:
        assert len(quote(label, safe="")) < 200  # as it stands in the names of refs
        assert "/" not in label


def test_a_whole_file_goes_before_the_same_one_in_parts(tmp_path: Path) -> None:
    parts = {f"toy-Q8_0-0000{i}-of-00002.gguf": b"p" * 100 for i in (1, 2)}
    with FakeHub({**repository(), **parts}) as hub:
        pulled = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
    assert "toy-Q8_0.gguf" in {path.name for path in pulled.path.iterdir()}


def test_a_file_that_no_tag_can_name_is_named_as_it_must_be_typed(tmp_path: Path) -> None:
    files = {f"M (new) {i}.gguf": b"x" for i in (1, 2)}
    with FakeHub(files) as hub, pytest.raises(ConfigError) as caught:
        do_pull(tmp_path, hugging(hub))
    assert f"hearth pull {REPO} --file 'M (new) 1.gguf'" in (caught.value.hint or "")


def test_a_pinned_commit_is_asked_for_where_only_others_of_it_are_here(tmp_path: Path) -> None:
    with FakeHub({**repository(), "model.safetensors": b"s" * 5000}) as hub:
        for tag in ("Q4_K_M", "Q8_0"):
            do_pull(tmp_path, hugging(hub), name=f"{REPO}:{tag}@{COMMIT}")
        plain = do_pull(tmp_path, hugging(hub), name=f"{REPO}@{COMMIT}")
        assert (plain.path.name, plain.manifest.gguf) == (COMMIT, "")
        plain.path.rename(plain.path.with_name(f"{COMMIT}.int4-g128"))
        again = do_pull(tmp_path, hugging(hub), name=f"{REPO}@{COMMIT}")
    assert again.path.name == COMMIT
    assert (again.path / "model.safetensors").exists()


def test_a_report_that_was_measured_again_leaves_the_model_whole(tmp_path: Path) -> None:
    with FakeHub({**repository(), REPORT_FILE: b"{}"}) as hub:
        pulled = do_pull(tmp_path, hugging(hub), name=f"{REPO}:Q8_0")
    (pulled.path / REPORT_FILE).write_bytes(b'{"measured": "again"}')
    store = Store(tmp_path)
    found = store.find(parse_name(f"{REPO}:Q8_0"))
    assert found is not None
    store.verify(found, lambda _: None)


def test_the_hint_of_a_damaged_one_leaves_its_neighbours(tmp_path: Path) -> None:
    with FakeHub(repository()) as hub:
        for tag in ("Q4_K_M", "Q8_0"):
            pulled = do_pull(tmp_path, hugging(hub), name=f"{REPO}:{tag}")
    (pulled.path / "toy-Q8_0.gguf").write_bytes(bytes(90_000))
    store = Store(tmp_path)
    found = store.find(parse_name(f"{REPO}:Q8_0"))
    assert found is not None
    with pytest.raises(ChecksumError) as caught:
        store.verify(found, lambda _: None)
    assert f"hearth models remove {REPO}:Q8_0," in (caught.value.hint or "")


def test_a_pulled_one_is_staged_with_its_checksums(tmp_path: Path) -> None:
    with FakeHub(repository()) as hub:
        pulled = do_pull(tmp_path / "store", hugging(hub), name=f"{REPO}:Q8_0")
    staged = stage(pulled.path, tmp_path / "fast", None, Recorder())
    staged.release()
    assert contents(staged.path) == contents(pulled.path)
    (pulled.path / "toy-Q8_0.gguf").write_bytes(bytes(90_000))
    os.utime(pulled.path / "toy-Q8_0.gguf")
    with pytest.raises(HearthError, match="pulled was"):
        stage(pulled.path, tmp_path / "other", None, Recorder())
