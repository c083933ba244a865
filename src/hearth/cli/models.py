"""`hearth models`: what `hearth pull` keeps: list, verify, remove, stage."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hearth.cli import pull_options as shared
from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.errors import ConfigError, HearthError, ModelNotFoundError

if TYPE_CHECKING:
    from hearth.hub.names import ModelName
    from hearth.hub.store import Store, StoredModel

_COLUMNS = ("model", "revision", "commit", "size", "pulled", "verified", "source")

Action = Annotated[
    Literal["list", "verify", "remove", "stage"],
    typer.Argument(metavar="ACTION", help="list, verify, remove or stage."),
]
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="ORG/NAME, ORG/NAME:Q4_K_M, ORG/NAME@REVISION.", show_default=False
    ),
]
Directory = Annotated[
    str | None,
    typer.Argument(
        metavar="DIRECTORY", help="With stage: a directory on a fast disk.", show_default=False
    ),
]
Yes = Annotated[bool, option("--yes/--no-yes", "With remove: do not ask.", prefix="MODELS_")]
Json = Annotated[bool, option("--json/--no-json", "With list: as JSON.", prefix="MODELS_")]


def models(  # noqa: PLR0917 -- the parameters are the flags
    action: Action = "list",
    model: Name = None,
    directory: Directory = None,
    yes: Yes = False,
    json: Json = False,
    models_dir: shared.ModelsDir = "",
    stage_bytes: shared.StageBytes = None,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """List the pulled models, compare them with their checksums, remove or stage one."""
    from hearth.hub.store import Store
    from hearth.hub.store import models_dir as find_dir

    store = Store(find_dir(os.environ, models_dir))
    if action == "list":
        _refuse(model, "hearth models list takes no model")
        _list(store, as_json=json)
        return
    if model is None:
        raise ConfigError(f"hearth models {action} needs a model", hint="hearth models lists them")
    if action == "stage":
        if directory is None:
            raise ConfigError(
                "hearth models stage needs a directory", hint=f"hearth models stage {model} DIR"
            )
        _stage(model, models_dir, directory, stage_bytes)
        return
    _refuse(directory, f"hearth models {action} takes no directory")
    if action == "verify":
        _verify(store, model)
    else:
        _remove(store, model, is_sure=yes)


def _refuse(value: str | None, problem: str) -> None:
    if value is not None:
        raise ConfigError(f"{problem}: {value!r}", hint="hearth models --help")


def _list(store: Store, *, as_json: bool) -> None:
    found = store.models()
    if as_json:
        _print_json(found)
    elif not found:
        print(f"no models in {store.root}; hearth pull ORG/NAME brings one", file=sys.stderr)
    else:
        _print_table([_COLUMNS, *(_row(model) for model in found)])


def _row(model: StoredModel) -> tuple[str, ...]:
    from hearth.core.units import format_bytes
    from hearth.hub.store import is_whole

    size, manifest = format_bytes(model.num_bytes), model.manifest
    commit = model.short or "-"
    if manifest is None or not is_whole(model):
        state = "not complete: pull it again" if model.commit else "parts of a pull that ended"
        return (model.name, ", ".join(model.labels) or "-", commit, size, state, "-", "-")
    when = manifest.pulled_at.partition("T")[0], manifest.verified_at.partition("T")[0]
    revisions = ", ".join(model.labels) or manifest.revision
    return (model.title, revisions, commit, size, *when, manifest.source)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns without a frame: names are to be copied, and a terminal is narrow."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def _print_json(found: list[StoredModel]) -> None:
    import json
    from dataclasses import asdict

    from hearth.hub.store import is_whole

    rows = [
        {
            "model": model.name,
            "commit": model.commit,
            "gguf": model.gguf,
            "revisions": list(model.labels),
            "path": str(model.path),
            "num_bytes": model.num_bytes,
            "is_whole": is_whole(model),
            "manifest": None if model.manifest is None else asdict(model.manifest),
        }
        for model in found
    ]
    print(json.dumps(rows, indent=1))


def _chosen(store: Store, name: ModelName) -> list[StoredModel]:
    """The revisions that a name means: all of a model where none is named."""
    from hearth.hub.names import ModelName
    from hearth.hub.store import is_tag_of

    found = store.revisions(name)
    if name.tag is not None:
        found = [model for model in found if model.gguf and is_tag_of(name.tag, model)]
    if name.revision is not None:
        whole = store.find(name)
        found = [model for model in found if model.is_meant(name.revision)]
        found = found or [model for model in (whole,) if model is not None]
    if not found:
        others = store.revisions(ModelName(name.repo))
        there = ", ".join(f"{m.title}@{m.short}" for m in others if m.commit)
        raise ModelNotFoundError(
            f"{name} is not in {store.root}",
            hint=f"there is {there}" if there else "hearth models lists what is there",
        )
    return found


def _verify(store: Store, text: str) -> None:
    from hearth.cli.interrupts import leave_on_signals
    from hearth.cli.pull import check
    from hearth.cli.pull_progress import PullProgress
    from hearth.hub.names import parse_name

    leave_on_signals()
    num_errors = 0
    for model in _chosen(store, parse_name(text)):
        if model.manifest is None and not model.commit:
            continue  # parts of a pull: there is nothing to compare
        with PullProgress() as progress:
            total = 0 if model.manifest is None else model.manifest.num_bytes
            progress.begin(f"verifying {model.title}@{model.short}", total, 0)
            manifest = store.verify(model, progress.advance)
        print(f"{model.title}@{model.short}: {len(manifest.files)} files are whole")
        num_errors += 0 if manifest.is_chosen else check(model.path)
    raise typer.Exit(1 if num_errors else 0)


def _remove(store: Store, text: str, *, is_sure: bool) -> None:
    from hearth.core.units import format_bytes
    from hearth.hub.names import parse_name

    name = parse_name(text)
    with store.locked(name, None):
        found = _chosen(store, name)
        size = format_bytes(sum(model.num_bytes for model in found))
        what = ", ".join(_what(model) for model in found)
        if not is_sure and not _agrees(f"remove {name.repo} ({what}; {size})?"):
            raise ConfigError("nothing was removed", hint="answer y, or add --yes")
        try:
            freed = store.remove(name, found)
        except OSError as error:
            raise HearthError(
                f"{error.filename} cannot be removed: {error.strerror}",
                hint="see its owner and permissions",
            ) from error
    print(f"removed {name.repo} ({what}): {format_bytes(freed)}")


def _what(model: StoredModel) -> str:
    tag = f"{model.tag} of " if model.gguf else ""
    return f"{tag}{model.short}" if model.commit else "parts"


def _agrees(question: str) -> bool:
    """Asks on the terminal; nobody there is a no."""
    if not sys.stdin.isatty():
        print(f"{question} there is nobody to ask", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _stage(model: str, models_dir: str, directory: str, max_bytes: int | None) -> None:
    from hearth.cli.interrupts import leave_on_signals
    from hearth.cli.pull_progress import PullProgress
    from hearth.core.paths import home_expanded
    from hearth.hub.stage import stage
    from hearth.hub.store import MODELS_VARIABLE, resolve_model

    leave_on_signals()
    source = home_expanded(model)
    if not source.is_dir():
        environment = {**os.environ, MODELS_VARIABLE: models_dir} if models_dir else os.environ
        source = resolve_model(model, environment)
    with PullProgress() as progress:
        staged = stage(Path(source), home_expanded(directory), max_bytes, progress)
    staged.release()
    print(staged.path)
