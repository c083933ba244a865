"""What is a model's name, and where its files lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.core.errors import ConfigError, ModelNotFoundError
from hearth.hub.listing import check_path
from hearth.hub.names import ModelName, is_repo, parse_name
from hearth.hub.sources import sources_for
from hearth.hub.store import Store, models_dir, resolve_model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ModelName("org/name")),
        ("zai-org/AutoGLM-Phone-9B", ModelName("zai-org/AutoGLM-Phone-9B")),
        ("gpt2", ModelName("gpt2")),
        ("org/name@main", ModelName("org/name", "main")),
        ("org/na.me_1@refs/pr/3", ModelName("org/na.me_1", "refs/pr/3")),
    ],
)
def test_names_are_read(text: str, expected: ModelName) -> None:
    assert parse_name(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "a--b/c",
        "../a",
        "a/..",
        "-a/b",
        "a/b.",
        "a@b/c@d/",
        "é/a",
        "a/b@",
        "a/b@../x",
        "a/b@-x",
        "a/b@x//y",
        "https://hf.co/a/b",
        "a/b@x.lock",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    for bad in (text, f"{text} ", f"{text}\n"):
        with pytest.raises(ConfigError):
            parse_name(bad)


def test_a_name_that_is_too_long_is_refused() -> None:
    assert parse_name("a" * 96).repo == "a" * 96
    with pytest.raises(ConfigError, match="up to 96 characters"):
        parse_name("a" * 97)


@given(st.text(max_size=40))
def test_a_name_that_is_taken_is_one_directory_and_can_be_read_back(text: str) -> None:
    if is_repo(text):
        directory = ModelName(text).directory
        assert Path(directory).name == directory
        assert not directory.startswith(".")
        assert directory.replace("--", "/") == text


@given(st.text(st.sampled_from("ab./\\:\0\n"), max_size=12))
def test_a_path_that_is_taken_stays_inside(text: str) -> None:
    from hearth.core.errors import RemoteError

    try:
        path = check_path(text, "hub")
    except RemoteError:
        return
    root = Path("/store/model")
    assert (root / path).resolve().is_relative_to(root)
    assert (root / path) != root


@pytest.mark.parametrize(
    ("environment", "given_dir", "expected"),
    [
        ({"HOME": "/home/u"}, "", "/home/u/.cache/hearth/models"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "/c"}, "", "/c/hearth/models"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "relative"}, "", "/home/u/.cache/hearth/models"),
        ({"HOME": "/home/u", "HEARTH_MODELS_DIR": "/m"}, "", "/m"),
        ({"HEARTH_MODELS_DIR": "/m"}, "/flag", "/flag"),
    ],
)
def test_the_store_lies_where_it_was_said(
    environment: dict[str, str], given_dir: str, expected: str
) -> None:
    assert models_dir(environment, given_dir) == Path(expected)


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match="HEARTH_MODELS_DIR"):
        models_dir({})
    with pytest.raises(ConfigError, match="is not known"):
        models_dir({}, "~nobody-of-this-name/x")


def test_an_empty_store_has_no_models(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").models() == []
    with pytest.raises(ModelNotFoundError, match="hearth pull org/name@v1"):
        resolve_model("org/name@v1", {"HEARTH_MODELS_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"),
    [
        ("auto", {}, ["huggingface.co", "hf-mirror.com", "modelscope.cn"]),
        ("auto", {"HF_ENDPOINT": "https://hf.example/"}, ["hf.example", "modelscope.cn"]),
        ("hf", {"HF_ENDPOINT": "http://h:8080"}, ["h:8080"]),
        ("modelscope", {"MODELSCOPE_DOMAIN": "www.modelscope.ai"}, ["www.modelscope.ai"]),
        ("https://hf-mirror.com", {}, ["hf-mirror.com"]),
        ("https://www.modelscope.cn", {}, ["www.modelscope.cn"]),
        ("modelscope+http://localhost:1", {}, ["localhost:1"]),
    ],
)
def test_sources_are_asked_in_their_order(
    wanted: str, environment: dict[str, str], expected: list[str]
) -> None:
    found = sources_for(wanted, environment, lambda: None)
    assert [source.label for source in found] == expected


def test_nobody_s_mirror_gets_no_token() -> None:
    hub, mirror, _ = sources_for("auto", {}, lambda: "hf_secret")
    assert hub._find_token() == "hf_secret"  # type: ignore[attr-defined]
    assert mirror._find_token() is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://x", "https://", "https://u:p@h", "http://h?q=1"]
)
def test_what_is_no_source_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a hub"):
        sources_for(url, {}, lambda: None)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        sources_for("hf", {"HF_ENDPOINT": url}, lambda: None)
