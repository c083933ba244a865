"""Settings from a file: where they stand among flags and variables, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.cli.test_commands import hearth

from hearth.cli import launch as launch_module
from hearth.cli.main import app, known_variables
from hearth.cli.options import ENV_PREFIX, unknown_variables
from hearth.cli.reference import settings_page
from hearth.cli.settings import ServeSettings

ROOT = Path(__file__).parents[3]


def test_a_flag_wins_over_its_variable_that_over_the_file_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[ServeSettings] = []

    def record(settings: ServeSettings) -> int:
        seen.append(settings)
        return 0

    path = tmp_path / "hearth.yaml"
    path.write_text(
        "# a comment\nport: 1\nblock_size: 16\nmax-num-seqs: 5\nmax-model-len: 4K\n"
        "enable-prefix-caching: false\nserved-model-name: [a, b]\nthreads: null\n"
    )
    monkeypatch.setattr(launch_module, "launch", record)
    monkeypatch.setenv("HEARTH_PORT", "2")
    monkeypatch.setenv("HEARTH_BLOCK_SIZE", "64")
    app(["serve", "--config", str(path), "--port", "3"], standalone_mode=False)
    monkeypatch.setenv("HEARTH_CONFIG", str(path))
    app(["serve"], standalone_mode=False)
    first, second = seen
    assert (first.port, second.port) == (3, 2)
    for settings in seen:
        assert settings.engine.cache.block_size == 64
        assert settings.engine.scheduler.max_num_seqs == 5
        assert settings.engine.model.max_model_len == 4096
        assert not settings.engine.cache.enable_prefix_caching
        assert settings.names == ("a", "b")
        assert settings.engine.device.threads is None
        assert settings.engine.scheduler.max_num_batched_tokens == 512
        assert settings.warnings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-model-length: 5", "did you mean max-model-len?"),
        ("config: x", "not a flag"),
        ("port: 70000", "--port"),
        ("port: [1, 2]", "takes one value"),
        ("host: {a: 1}", "not a plain value"),
        ("kv-cache-memory-bytes: lots", "permitted"),
        ("[1]", "holds no settings"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hearth.yaml"
    path.write_text(text)
    done = hearth("serve", "--config", str(path))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there() -> None:
    done = hearth("serve", "--config", "/no/such/file.yaml")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_every_setting_is_documented() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(), (
        "run: python -m hearth.cli.reference > docs/settings.md"
    )
    for name in known_variables():
        assert f"`{name}`" in settings_page()


def test_the_variables_of_other_commands_are_known_when_serving() -> None:
    environment = {f"{ENV_PREFIX}BASE_URL": "x", f"{ENV_PREFIX}BENCH_SEED": "1"}
    assert unknown_variables(environment, known_variables()) == []


def test_shell_completion_knows_the_commands() -> None:
    """Asked as the installed script asks; which shell runs the tests makes no difference."""
    asked = {"_HEARTH_COMPLETE": "complete_bash", "COMP_WORDS": "hearth se", "COMP_CWORD": "1"}
    assert hearth(**asked).stdout.split() == ["serve"]


def test_a_shell_can_print_its_completion_script() -> None:
    # The command looks at the process that started it, so it is a bash that stays alive.
    line = f"{sys.executable} -m hearth.cli --show-completion; true"
    shell = ["bash", "-c", line]
    done = subprocess.run(shell, check=True, capture_output=True, text=True, timeout=60)
    assert "_HEARTH_COMPLETE" in done.stdout
