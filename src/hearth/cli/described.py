"""The description of a model that is named on the command line: local, pulled, or on a hub."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.cli.settings import find_model
from hearth.core.errors import ModelNotFoundError, UnreachableError
from hearth.core.paths import home_expanded
from hearth.hub.names import is_repo, parse_name
from hearth.models.config_json import read_json

if TYPE_CHECKING:
    from hearth.hub.describe import Description

_BESIDE = ("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Described:
    """A directory with `config.json`; `remote` None: the model is on this machine."""

    directory: Path
    remote: Description | None = None
    is_here: bool = True


@contextmanager
def described(model: str, source: str) -> Iterator[Described]:
    """A directory, a configuration file of any name, a pulled model, else a hub's.

    `source`: as of `hearth pull`. Raises ModelNotFoundError, ConfigError, and what the hub
    refuses with.
    """
    path = home_expanded(model)
    if path.is_file():
        _ = read_json(path)  # what is none is named as the user names it
        with tempfile.TemporaryDirectory(prefix="hearth-plan-") as name:
            _copy_beside(path, Path(name))
            yield Described(Path(name), is_here=False)
        return
    try:
        local = find_model(model)
    except ModelNotFoundError:
        if path.exists() or not _may_be_remote(model):
            raise
        with tempfile.TemporaryDirectory(prefix="hearth-plan-") as name:
            remote = _from_hub(model, source, Path(name))
            yield Described(Path(name), remote, is_here=False)
        return
    yield Described(local)


def _may_be_remote(model: str) -> bool:
    """ORG/NAME, unless ORG is a directory here: then it is a path that leads nowhere."""
    repo = model.partition("@")[0]
    return is_repo(repo) and "/" in repo and not Path(repo).parent.exists()


def _from_hub(model: str, source: str, directory: Path) -> Description:
    from hearth.hub.describe import describe
    from hearth.hub.huggingface import user_token
    from hearth.hub.observer import Silent
    from hearth.hub.sources import sources_for
    from hearth.hub.transport import Retry, Transport

    name = parse_name(model)
    print(f"{name} is not here: asking for its description ({source})", file=sys.stderr)
    transport = Transport(Retry(), lambda _: None)
    try:
        sources = sources_for(source, os.environ, user_token)
        return describe(name, sources, transport, directory, Silent())
    except UnreachableError as error:
        error.message = f"there is no directory {model}, no pulled model, and {error.message}"
        raise
    finally:
        transport.close()


def _copy_beside(path: Path, directory: Path) -> None:
    """The configuration under its usual name, with what stands beside it."""
    shutil.copyfile(path, directory / "config.json")
    for name in _BESIDE:
        if path.with_name(name).is_file():
            shutil.copyfile(path.with_name(name), directory / name)
