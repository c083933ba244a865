"""The command line: every flag has a variable, errors are messages, help is quick."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hearth import __version__
from hearth.cli import launch as launch_module
from hearth.cli.arguments import repeat_flag
from hearth.cli.options import ENV_PREFIX, environment_names, unknown_variables
from hearth.cli.serve import serve
from hearth.cli.settings import BUILT_IN_DIR, ServeSettings


def hearth(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    return subprocess.run(
        [sys.executable, "-m", "hearth.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, "COLUMNS": "200", "TERM": "dumb", **environment},
    )


HEAVY = {"numpy", "fastapi", "uvicorn", "pydantic", "httpx", "rich", "tokenizers", "jinja2"}
HEAVY |= {"torch", "transformers", "msgspec", "asyncio"}


COMMANDS = [
    "",
    "serve",
    "doctor",
    "plan",
    "pull",
    "models",
    "quality",
    "tune",
    "chat",
    "complete",
    "bench",
    "version",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command: str) -> None:
    # What is imported decides how long it takes, on a busy machine as on an idle one.
    words = [command] if command else []
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hearth.cli", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: hearth" in found.stdout
    modules = set(re.findall(r"\|\s*([\w.]+)$", found.stderr, re.MULTILINE))
    assert {"typer", "hearth.cli.main"} <= modules
    assert not {name.partition(".")[0] for name in modules} & HEAVY


def test_help_is_the_same_text_whichever_way_it_is_asked_for() -> None:
    assert hearth("serve", "-h").stdout == hearth("serve", "--port", "1", "--help").stdout


def test_help_shows_the_flags_in_their_sections() -> None:
    text = hearth("serve", "--help").stdout
    places = [text.index(title) for title in ("Arguments:", "HTTP:", "Model:", "Engine:")]
    assert places == sorted(places)
    assert text.index("HTTP:") < text.index("--port") < text.index("Model:")


def test_every_flag_is_an_environment_variable_shown_in_the_help() -> None:
    text = hearth("serve", "--help").stdout
    flags = set(re.findall(r"--([a-z][a-z-]+)", text)) - {"help"}
    flags = {flag for flag in flags if not flag.startswith("no-")}
    names = environment_names(serve)
    assert names >= {ENV_PREFIX + flag.replace("-", "_").upper() for flag in flags}
    for name in names:
        assert name in text


def test_every_flag_stands_in_the_readme() -> None:
    root = Path(__file__).parents[3]
    for name in ("README.md", "README.zh-CN.md"):
        text = (root / name).read_text(encoding="utf-8")
        for variable in environment_names(serve) - {"HEARTH_MODEL"}:
            flag = variable.removeprefix(ENV_PREFIX).replace("_", "-").lower()
            assert f"`--{flag}`" in text, f"{flag} is not in {name}"


def test_version() -> None:
    assert hearth("version").stdout.startswith(f"hearth {__version__}\n")
    assert hearth("--version").stdout == f"hearth {__version__}\n"


def test_an_unknown_flag_is_an_error_with_a_suggestion() -> None:
    result = hearth("serve", "--max-model-length", "5")
    assert result.returncode == 2
    assert "--max-model-len" in result.stderr.replace("--max-model-length", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "70000"], "--port"),
        (["--port", "http"], "--port"),
        (["--dtype", "int3"], "bfloat16"),
        (["--max-num-seqs", "-1"], "--max-num-seqs"),
        (["--kv-cache-memory-bytes", "lots"], "permitted"),
        (["--kv-cache-memory-bytes=-1G"], "permitted"),
    ],
)
def test_a_wrong_value_is_named(arguments: list[str], text: str) -> None:
    result = hearth("serve", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_does_not_exist_is_one_clear_message(tmp_path: Path) -> None:
    for model, text in [
        ("org/model", "there is no directory org/model"),
        (str(tmp_path), "holds no config.json"),
        (__file__, "is a file"),
    ]:
        result = hearth("serve", model)
        assert result.returncode == 3
        assert text in result.stderr
        assert "what to do:" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_trace_is_shown_only_when_debugging() -> None:
    result = hearth("serve", "org/model", "--log-level", "debug")
    assert result.returncode == 3
    assert "Traceback" in result.stderr


def test_unknown_variables_are_warned_about() -> None:
    known = environment_names(serve)
    found = unknown_variables({"HEARTH_PROT": "1", "HEARTH_PORT": "1", "HOME": "/"}, known)
    assert found == [
        "the environment variable HEARTH_PROT has no meaning here; did you mean HEARTH_PORT?"
    ]


def test_a_flag_wins_over_its_variable_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hearth.cli.main import app

    seen: list[ServeSettings] = []

    def record(settings: ServeSettings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(launch_module, "launch", record)
    monkeypatch.setenv("HEARTH_PORT", "1234")
    monkeypatch.setenv("HEARTH_BLOCK_SIZE", "16")
    monkeypatch.setenv("HEARTH_ENABLE_PREFIX_CACHING", "false")
    monkeypatch.setenv("HEARTH_SERVED_MODEL_NAME", "a b")
    app(
        ["serve", "--port", "99", "--kv-cache-memory-bytes", "2G", "--max-model-len", "4K"],
        standalone_mode=False,
    )
    (settings,) = seen
    assert settings.port == 99
    assert settings.names == ("a", "b")
    assert settings.engine.cache.block_size == 16
    assert not settings.engine.cache.enable_prefix_caching
    assert settings.engine.cache.memory_bytes == 2 << 30
    assert settings.engine.model.max_model_len == 4096
    assert settings.engine.scheduler.max_num_seqs == 64
    assert settings.model_dir.name == "demo_model"


FLAGS = {"--served-model-name": True, "--port": True, "--on": False}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("M --served-model-name a b", "M --served-model-name a --served-model-name b"),
        (
            "M --served-model-name a b c --port 1",
            "M --served-model-name a --served-model-name b --served-model-name c --port 1",
        ),
        ("M --served-model-name=a b", "M --served-model-name=a --served-model-name b"),
        ("--port 1 M --on --served-model-name a", "--port 1 M --on --served-model-name a"),
        ("--served-model-name a M", "--served-model-name a M"),  # the value may be MODEL
        ("--served-model-name a M b", "--served-model-name a M b"),  # Click refuses b
        ("M --served-model-name a --port 1 b", "M --served-model-name a --port 1 b"),
        ("M --served-model-name a -- b", "M --served-model-name a -- b"),
        ("M --served-model-name", "M --served-model-name"),  # Click asks for the value
        ("M --served-model-name --port 1", "M --served-model-name --port 1"),
    ],
)
def test_several_names_may_follow_one_flag(line: str, expected: str) -> None:
    assert repeat_flag(line.split(), "--served-model-name", FLAGS) == expected.split()


def test_several_names_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from hearth.cli.main import app

    seen: list[ServeSettings] = []
    monkeypatch.setattr(launch_module, "launch", seen.append)
    monkeypatch.delenv("HEARTH_SERVED_MODEL_NAME", raising=False)
    arguments = [str(BUILT_IN_DIR), "--served-model-name", "a", "org/b", "--port", "99"]
    app(["serve", *arguments], standalone_mode=False)
    assert seen[0].names == ("a", "org/b")
    assert seen[0].port == 99


def test_an_empty_name_is_refused() -> None:
    result = hearth("serve", "--served-model-name", "")
    assert result.returncode == 2
    assert "--served-model-name is empty" in result.stderr


URL = ("--base-url", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("serve", "~no-such-user/model"), 3, "there is no directory ~no-such-user/model"),
        (("serve", "a" * 300), 3, "File name too long"),
        (("serve", "--config", "~no-such-user/x.yaml"), 2, "cannot be read"),
        (("complete", *URL, os.fsdecode(b"\xff")), 7, "cannot be sent as JSON"),
        (("complete", *URL, "--api-key", "ключ", "x"), 7, "API key"),
        (("complete", "--base-url", "http://[::1", "x"), 7, "not an address"),
        (("bench", *URL, "--request-timeout", "nan"), 2, "--request-timeout nan"),
        (("bench", *URL, "--burstiness", "1e308"), 2, "--burstiness at most"),
        (("bench", *URL, "--save-detailed"), 2, "--save-result FILE"),
        (("bench", *URL, "--endpoint", "/x\r\nA: b"), 2, "is not a path"),
        (("bench", *URL, "--save-result", "/tmp"), 2, "Is a directory"),
    ],
)
def test_what_cannot_be_is_one_message(arguments: tuple[str, ...], code: int, said: str) -> None:
    arguments = (*arguments, "--model-name", "m") if arguments[0] == "complete" else arguments
    found = hearth(*arguments)
    assert (found.returncode, "Traceback" in found.stderr) == (code, False), found.stderr
    assert said in found.stderr


@pytest.mark.parametrize("command", ["complete", "chat"])
@pytest.mark.parametrize(("stdin", "said"), [(b"\xff", "not valid UTF-8"), (b"", "is empty")])
def test_stdin_must_be_text(command: str, stdin: bytes, said: str) -> None:
    words = [sys.executable, "-m", "hearth.cli", command, *URL, "--model-name", "m"]
    found = subprocess.run(words, input=stdin, capture_output=True, timeout=60, check=False)
    assert found.returncode == 2, found.stderr
    assert said in found.stderr.decode()


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["version"]])
def test_a_closed_pipe_and_a_full_disk_are_no_traces(words: list[str]) -> None:
    command = [sys.executable, "-m", "hearth.cli", *words]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed, Path("/dev/full").open("wb") as full:
        for target, code in ((closed, 141), (full, 1)):
            found = subprocess.run(
                command, stdout=target, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
            assert (found.returncode, "Traceback" in found.stderr) == (code, False), found.stderr
