"""The flags about images, hearth's and vLLM's: what they say together, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.test_commands import hearth
from tools.demo_model import TEXT_MODEL_DIR

from hearth.cli import launch as launch_module
from hearth.cli.arguments import dashed, repeat_flag
from hearth.cli.image_settings import ImageFlags, image_warnings, images_config, media_config
from hearth.cli.settings import ServeSettings
from hearth.core.config import ImagesConfig, MediaConfig
from hearth.core.errors import ConfigError


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ServeSettings:
    """What `hearth serve` with these arguments would be started with."""
    from hearth.cli.main import app

    for name in [name for name in os.environ if name.startswith("HEARTH_")]:
        monkeypatch.delenv(name)
    seen: list[Any] = []
    monkeypatch.setattr(launch_module, "launch", seen.append)
    app(["serve", str(TEXT_MODEL_DIR), *arguments], standalone_mode=False)
    (found,) = seen
    assert isinstance(found, ServeSettings)
    return found


def test_a_command_line_of_vllm_works_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch,
        *("--served-model-name", "autoglm-phone-9b"),
        *("--allowed-local-media-path", "/"),
        *("--mm_processor_kwargs", '{"max_pixels":5000000}'),
        *("--max-model-len", "25480"),
        *("--chat-template-content-format", "string"),
        *("--limit-mm-per-prompt", '{"image":10}'),
        *("--port", "8000"),
    )
    assert settings.engine.images == ImagesConfig(max_pixels=5_000_000)
    assert settings.media == MediaConfig(limit_images=10, allowed_local_path="/")
    assert settings.engine.model.max_model_len == 25_480
    assert settings.names == ("autoglm-phone-9b",)
    format_warning, path_warning = settings.warnings
    assert "string has no effect: the chat template decides" in format_warning
    assert "every image on this machine" in path_warning


def test_hearth_s_own_flags_say_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = settings_of(
        monkeypatch,
        *("--max-pixels", "5m", "--min_pixels=100K", "--limit-images", "3"),
        *("--image-cache-bytes", "0", "--allowed-local-media-path", str(tmp_path)),
        *("--allowed-media-domains", "A.example", "b.example"),
        "--allow_private_media_addresses",
    )
    assert settings.engine.images == ImagesConfig(102_400, 5_000_000, 0, 3)
    assert settings.media == MediaConfig(3, str(tmp_path), ("a.example", "b.example"), True)
    assert settings.warnings == ()


def test_without_flags_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(monkeypatch)
    assert settings.engine.images == ImagesConfig()
    assert settings.media == MediaConfig()
    assert settings.media.limit_images == 10


def test_variables_and_files_reach_them_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "hearth.yaml"
    path.write_text(
        "mm-processor-kwargs: '{\"min_pixels\": 5000}'\nallowed-media-domains: [a, b]\n"
        "limit-images: 2\n"
    )
    settings = settings_of(monkeypatch, "--config", str(path))
    assert settings.engine.images.min_pixels == 5000
    assert settings.media.allowed_media_domains == ("a", "b")
    assert settings.media.limit_images == 2


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ('{"image": 3}', 3),
        ('{"image": 0, "video": 0}', 0),
        ('{"image": {"count": 4, "width": 512}}', 4),
        ('{"video": 1}', 10),
        ("image=5", 5),
        ("image=5,video=2", 5),
    ],
)
def test_the_limit_in_vllm_s_forms(text: str, limit: int) -> None:
    assert media_config(ImageFlags(limit_mm_per_prompt=text)).limit_images == limit


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ('{"max_pixels": 5000000}', (None, 5_000_000)),
        ('{"min_pixels": 1, "max_pixels": 2}', (1, 2)),
        ('{"size": {"shortest_edge": 3, "longest_edge": 4}}', (3, 4)),
        ('{"size": {"longest_edge": 4}, "max_pixels": 5}', (None, 5)),
        ("{}", (None, None)),
    ],
)
def test_the_bounds_in_vllm_s_forms(text: str, bounds: tuple[int | None, int | None]) -> None:
    found = images_config(ImageFlags(mm_processor_kwargs=text))
    assert (found.min_pixels, found.max_pixels) == bounds


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mm_processor_kwargs": "{max_pixels: 5}"}, "is not valid JSON"),
        ({"mm_processor_kwargs": "[5]"}, "is no JSON object"),
        ({"mm_processor_kwargs": '{"fps": 2}'}, "'fps' is not a setting of the image processor"),
        ({"mm_processor_kwargs": '{"max_pixels": "5"}'}, "max_pixels is '5'; permitted: a whole"),
        ({"mm_processor_kwargs": '{"max_pixels": true}'}, "max_pixels is True"),
        ({"mm_processor_kwargs": '{"size": 5}'}, "size is 5"),
        (
            {"mm_processor_kwargs": '{"max_pixels": 5}', "max_pixels": 6},
            "--max-pixels is 6 and --mm-processor-kwargs says 5",
        ),
        ({"limit_mm_per_prompt": "10"}, "is no JSON object"),
        ({"limit_mm_per_prompt": '{"image": -1}'}, "image is -1; permitted: a whole number from 0"),
        ({"limit_mm_per_prompt": '{"image": 1.5}'}, "image is 1.5"),
        ({"limit_mm_per_prompt": "image=many"}, "image is 'many'"),
        ({"limit_mm_per_prompt": '{"pictures": 1}'}, "'pictures' is not a kind of input"),
        (
            {"limit_mm_per_prompt": '{"image": 1}', "limit_images": 2},
            "--limit-images is 2 and --limit-mm-per-prompt says 1",
        ),
        ({"allowed_local_media_path": "/does/not/exist"}, "is not a directory"),
        ({"allowed_media_domains": ["https://x"]}, "is not the name of a host"),
        ({"allowed_media_domains": ["x:80"]}, "is not the name of a host"),
        ({"allowed_media_domains": ["*.x"]}, "is not the name of a host"),
        ({"allowed_media_domains": [""]}, "is not the name of a host"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    read = images_config if {"max_pixels", "mm_processor_kwargs"} & set(fields) else media_config
    with pytest.raises(ConfigError) as caught:
        read(ImageFlags(**fields))
    assert said in caught.value.message


def test_equal_values_of_both_flags_are_no_contradiction() -> None:
    flags = ImageFlags(max_pixels=5, mm_processor_kwargs='{"max_pixels": 5}')
    assert images_config(flags).max_pixels == 5


def test_private_addresses_without_hosts_are_warned_about() -> None:
    (warning,) = image_warnings(ImageFlags(allow_private_media_addresses=True))
    assert "--allowed-media-domains" in warning


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--context-length", "did you mean --max-model-len?"),
        ("--context_length=25480", "did you mean --max-model-len?"),
        ("--mm-process-config", "did you mean --max-pixels, or --mm-processor-kwargs"),
        ("--model-path", "did you mean MODEL, without a flag"),
        ("--max-pixel", "--max-pixels"),
    ],
)
def test_flags_of_other_servers_are_named_with_ours(argument: str, said: str) -> None:
    result = hearth("serve", argument, "5")
    assert result.returncode == 2
    assert said in result.stderr


def test_a_wrong_setting_is_one_message() -> None:
    result = hearth("serve", "--mm-processor-kwargs", "{")
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert "--mm-processor-kwargs '{' is not valid JSON" in result.stderr
    assert "what to do:" in result.stderr


FLAGS = {"--max-pixels": True, "--on-off": False, "--names": True}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--max_pixels 5 --on_off", "--max-pixels 5 --on-off"),
        ("--max_pixels=a_b", "--max-pixels=a_b"),
        ("--names --max_pixels --max_pixels 1", "--names --max_pixels --max-pixels 1"),
        ("--un_known a_b", "--un_known a_b"),
        ("M_x --on_off -- --max_pixels", "M_x --on-off -- --max_pixels"),
        ("--max_pixels", "--max-pixels"),
    ],
)
def test_underscores_in_the_names_of_flags_are_dashes(line: str, expected: str) -> None:
    assert dashed(line.split(), FLAGS) == expected.split()


def test_each_of_two_flags_takes_several_values() -> None:
    line = "M --names a b --more x y --on-off"
    flags = {"--names": True, "--more": True, "--on-off": False}
    found = repeat_flag(repeat_flag(line.split(), "--names", flags), "--more", flags)
    expected = "M --names a --names b --more x --more y --on-off"
    assert found == expected.split()
