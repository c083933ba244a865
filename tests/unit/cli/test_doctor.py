"""`hearth doctor`: a verdict, an exit code, JSON, an archive; nothing heavy is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest
import typer

from hearth.cli.doctor import EXIT_FAIL, EXIT_WARN, doctor, weight_cache_space
from hearth.cli.model_needs import read_needs
from hearth.cli.settings import BUILT_IN_DIR
from hearth.core.errors import ConfigError, HearthError, ModelError, ModelNotFoundError
from hearth.engine import planning
from hearth.engine.weight_cache import DISK_SHARE
from hearth.host.checks.registry import DoctorReport, report_json_schema
from hearth.host.memory import HostMemory, MemoryFact

REPOSITORY = Path(__file__).parents[3]


def hearth(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEARTH_")}
    return subprocess.run(
        [sys.executable, "-m", "hearth.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, **environment},
    )


def test_the_built_in_model_fits_here_and_nothing_fails() -> None:
    found = hearth(str(BUILT_IN_DIR))
    assert found.returncode in {0, EXIT_FAIL}, found.stderr
    assert "capacity: plan:" in found.stdout
    assert re.search(r"^verdict: \w+ \(", found.stdout, re.MULTILINE)
    assert found.returncode == (EXIT_FAIL if "verdict: fail" in found.stdout else 0)


def test_json_is_a_report_of_the_schema_and_names_every_source() -> None:
    found = hearth("--json")
    report = msgspec.json.decode(found.stdout.encode(), type=DoctorReport)
    assert report.schema == report.facts.schema == 1
    assert report.facts.cpu.usable_cores.value
    sources = re.findall(r'"source":"([^"]*)"', found.stdout)
    assert len(sources) > 50
    assert all(sources)
    values = re.findall(r'"value":null,"source":"[^"]*","why":"([^"]*)"', found.stdout)
    assert all(values)


def test_the_schema_in_the_docs_is_that_of_the_code() -> None:
    # Written by: python -c "import json; from hearth.host.checks.registry import
    #   report_json_schema as s; print(json.dumps(s(), indent=1))" > docs/doctor.schema.json
    # Fields may join. Who renames or removes one raises the schema's number.
    text = (REPOSITORY / "docs" / "doctor.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(report_json_schema()))


def test_exit_codes_are_not_those_of_errors() -> None:
    classes: list[type[HearthError]] = [HearthError, *HearthError.__subclasses__()]
    assert not {EXIT_WARN, EXIT_FAIL} & {cls.exit_code for cls in classes}


def test_no_torch_and_no_http_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['hearth', 'doctor', sys.argv[1]]\n"
        "from hearth.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'fastapi', 'rich'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(BUILT_IN_DIR)], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_what_is_no_model_is_an_error_of_the_command(tmp_path: Path) -> None:
    for model in ("./no/such", str(tmp_path)):
        found = hearth(model)
        assert found.returncode == 3
        assert "Traceback" not in found.stderr
    (tmp_path / "config.json").write_text("{")
    assert hearth(str(tmp_path / "config.json")).returncode == 3
    assert hearth("--max-model-len", "8K").returncode == 2


def test_a_config_under_another_name_is_planned_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    shutil.copyfile(BUILT_IN_DIR / "config.json", path)
    alone = read_needs(str(path), 1024)
    whole = read_needs(str(BUILT_IN_DIR), 1024)
    assert alone.num_parameters == whole.num_parameters > 1_000_000
    assert [s.scheme for s in alone.schemes] == ["none", "int8", "int4"]
    assert alone.schemes[0].weight_bytes == whole.schemes[0].weight_bytes


def test_a_model_that_does_not_fit_fails_with_the_plans_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = HostMemory((MemoryFact(1 << 20, "a test"),))
    monkeypatch.setattr(planning, "read_memory", lambda: tiny)
    needs = read_needs(str(BUILT_IN_DIR))
    assert not any(scheme.fits for scheme in needs.schemes)
    assert needs.schemes[-1].hint
    with pytest.raises(typer.Exit) as end:
        doctor(str(BUILT_IN_DIR))
    assert end.value.exit_code == EXIT_FAIL
    assert "fail    capacity: plan" in capsys.readouterr().out


def test_the_space_for_packed_weights_is_that_of_their_own_directory(tmp_path: Path) -> None:
    space = weight_cache_space({"HEARTH_WEIGHT_CACHE_DIR": str(tmp_path / "not" / "yet")})
    assert space is not None
    assert space.directory == str(tmp_path / "not" / "yet")
    assert 0 <= space.most_bytes <= shutil.disk_usage(tmp_path).total // DISK_SHARE
    named = weight_cache_space({"XDG_CACHE_HOME": str(tmp_path)})
    assert named is not None
    assert named.directory == str(tmp_path / "hearth" / "weights")
    assert weight_cache_space({}) is None  # nobody's home


def test_a_context_beyond_the_models_is_an_error_of_the_command() -> None:
    with pytest.raises(ConfigError, match="--max-model-len is 1,048,576"):
        read_needs(str(BUILT_IN_DIR), 1 << 20)


def test_a_file_that_is_no_config_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ModelError, match=r"notes\.txt: is not valid JSON"):
        read_needs(str(path))


def test_an_architecture_that_cannot_be_served_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["OddForCausalLM"]}')
    needs = read_needs(str(tmp_path))
    assert needs.architecture == "OddForCausalLM"
    assert not needs.schemes
    assert needs.needs_transformers or needs.refusal


def test_a_broken_config_is_a_finding_with_the_key(tmp_path: Path) -> None:
    values = json.loads((BUILT_IN_DIR / "config.json").read_text())
    values["text_config"]["hidden_size"] = -1
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "hidden_size is -1" in read_needs(str(tmp_path)).refusal


def test_no_model_raises(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_needs(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError):
        read_needs(str(tmp_path / "config.json"))


def test_the_archive_is_redacted_and_not_overwritten(tmp_path: Path) -> None:
    home = tmp_path / "home" / "someone-private"
    home.mkdir(parents=True)
    secrets = {"HF_TOKEN": "hf_averysecrettoken", "HEARTH_API_KEY": "word"}
    names = {"HOME": str(home), "LOGNAME": "someone-private", "HEARTH_MODEL": str(home / "m")}
    path = tmp_path / "support.tar.gz"
    found = hearth("--bundle", str(path), **secrets, **names)
    assert "look through it" in found.stderr
    with tarfile.open(path) as archive:
        text = {m.name: archive.extractfile(m).read().decode() for m in archive}  # type: ignore[union-attr]  # files all
    assert set(text) == {
        f"hearth-doctor/{name}.json" for name in ("facts", "checks", "versions", "environment")
    } | {"hearth-doctor/README.txt"}
    everything = "\n".join(text.values())
    for private in ("someone-private", "averysecret", '"word"', str(home)):
        assert private not in everything
    assert '"HEARTH_MODEL": "~/m"' in text["hearth-doctor/environment.json"]
    again = hearth("--bundle", str(path))
    assert again.returncode == 2
    assert "not overwritten" in again.stderr
