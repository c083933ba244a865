"""`hearth doctor [MODEL]`: is this host good enough, and what should be changed?

Reads facts, changes nothing, loads no model, and answers in under a second; see docs/doctor.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hearth.cli.config_file import Config
from hearth.cli.options import option, quantity
from hearth.cli.storage import storage_of
from hearth.core.errors import ConfigError
from hearth.core.paths import home_expanded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hearth.host.checks.check import WeightCacheSpace
    from hearth.host.checks.registry import DoctorReport
    from hearth.host.profile import MachineProfile

# Beyond the exit codes of the error tree, so that a finding is not taken for a failure of ours.
EXIT_WARN = 10  # with --strict
EXIT_FAIL = 20
_PREFIX = "DOCTOR_"
# Counters of the kernel need some time between two readings to say anything of now.
_INTERVAL_S = 0.2

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Model directory, GGUF file, config.json alone, or ORG/NAME: does it fit into this "
        "host?",
        show_default=False,
    ),
]
Json = Annotated[bool, option("--json", "Write facts and checks as JSON.", prefix=_PREFIX)]
Measure = Annotated[
    bool,
    option(
        "--measure",
        "Measure kernels, memory, disk and GPU copies first (some 20 s); the plan predicts with "
        "it.",
        prefix=_PREFIX,
    ),
]
Strict = Annotated[
    bool, option("--strict", f"Exit with {EXIT_WARN} where there are warnings.", prefix=_PREFIX)
]
Bundle = Annotated[
    str | None,
    option(
        "--bundle",
        "Write a support archive, without names, addresses and tokens.",
        metavar="FILE.tar.gz",
        prefix=_PREFIX,
        show_default=False,
    ),
]
ModelsDir = Annotated[
    str | None,
    option(
        "--models-dir",
        "Directory whose storage is looked at. Default: MODEL's, else hearth/models in the user's "
        "cache directory.",
        metavar="DIRECTORY",
        prefix=_PREFIX,
        show_default=False,
    ),
]
MaxModelLen = Annotated[
    int | None,
    option(
        "--max-model-len",
        "Context that the model is to have, in tokens, such as 32K. Default: 8192.",
        parser=quantity,
        metavar="TOKENS",
        prefix=_PREFIX,
        show_default=False,
    ),
]


def doctor(  # noqa: PLR0917 -- the parameters are the flags
    model: Model = None,
    max_model_len: MaxModelLen = None,
    models_dir: ModelsDir = None,
    measure: Measure = False,
    json: Json = False,
    strict: Strict = False,
    bundle: Bundle = None,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Check this host, or whether it is good enough for a model; changes nothing."""
    from hearth.host.checks.check import Level

    report = _examine(model, max_model_len, models_dir, _profile(model, models_dir, measure))
    if bundle is not None:
        _write_bundle(home_expanded(bundle), report)
        print(f"written: {bundle} (look through it before you send it)", file=sys.stderr)
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        from hearth.cli.doctor_view import print_report

        print_report(report)
    if report.verdict is Level.FAIL:
        raise typer.Exit(EXIT_FAIL)
    if strict and report.verdict is Level.WARN:
        raise typer.Exit(EXIT_WARN)


def _profile(model: str | None, models_dir: str | None, measure: bool) -> MachineProfile | None:
    """What is known of this machine's speeds; None also where its kernels do not load."""
    from hearth.cli.measure import known_profile, measure_machine
    from hearth.core.errors import KernelError
    from hearth.host.placement import place_threads
    from hearth.kernels.cpu.library import resolve_isa

    try:
        isa, placement = resolve_isa("auto"), place_threads("auto", None)
        if measure:
            return measure_machine(isa, placement, storage_of(model, models_dir))
        return known_profile(isa, placement)
    except KernelError as error:
        if measure:
            print(f"warning: nothing was measured: {error}", file=sys.stderr)
        return None


def _examine(
    model: str | None, context: int | None, models_dir: str | None, profile: MachineProfile | None
) -> DoctorReport:
    """Raises ModelNotFoundError and ModelError for a MODEL that is none."""
    import time

    from hearth.host.facts.pressure import read_counters

    earlier, began = read_counters(), time.monotonic()
    from hearth.host.checks.check import Examined
    from hearth.host.checks.registry import examine
    from hearth.host.facts.report import read_host

    needs = None
    if model is not None:
        from hearth.cli.model_needs import read_needs

        needs = read_needs(model, context)
    elif context is not None:
        raise ConfigError("--max-model-len needs a MODEL", hint="hearth doctor MODEL")
    time.sleep(max(0.0, began + _INTERVAL_S - time.monotonic()))
    facts = read_host(storage_of(model, models_dir), earlier=earlier)
    space = None if needs is None else weight_cache_space(os.environ)
    return examine(Examined(facts, needs, profile, space))


def weight_cache_space(environment: Mapping[str, str]) -> WeightCacheSpace | None:
    """Of the packed weights that hearth serve keeps there; None where it would keep none."""
    from hearth.engine.weight_cache import DISK_SHARE, default_directory
    from hearth.host.checks.check import WeightCacheSpace
    from hearth.host.disk import read_disk
    from hearth.kernels.packed_cache import PackedCache

    named = environment.get("HEARTH_WEIGHT_CACHE_DIR", "")
    directory = home_expanded(named).absolute() if named else default_directory(environment)
    if directory is None:
        return None
    try:
        most = read_disk(directory).free_bytes + PackedCache(directory, 0).used_bytes()
    except OSError:
        return None
    return WeightCacheSpace(str(directory), most // DISK_SHARE)


def _write_bundle(path: Path, report: DoctorReport) -> None:
    import getpass
    import platform

    import msgspec

    from hearth.host.bundle import write_bundle
    from hearth.host.redact import Identity, redact, redact_environment

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        user = ""
    others = tuple(filter(None, map(os.environ.get, ("SUDO_USER", "USER", "LOGNAME"))))
    identity = Identity(user, str(home_expanded("~")), platform.node(), others)
    plain = redact(msgspec.to_builtins(report), identity)
    variables = redact_environment(os.environ, identity)

    def text(value: object) -> str:
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"

    write_bundle(
        path,
        {
            "README.txt": _README,
            "facts.json": text(plain["facts"]),
            "checks.json": text({"verdict": plain["verdict"], "checks": plain["checks"]}),
            "versions.json": text(plain["facts"]["software"]),
            "environment.json": text(variables),
        },
    )


_README = """\
Written by `hearth doctor --bundle`: facts about a host, checks, versions and environment variables
of hearth and its libraries. No logs, prompts or answers.

Taken out: the user's name and home directory, the host's name, addresses (IP, MAC), the servers of
network file systems, logins in URLs, values that look like tokens or are named as secrets, and
variables whose names speak of secrets or machines.
Not known to be private, and so still here: other names in paths, and names of GPU processes.
Look through the files before you send them.
"""
