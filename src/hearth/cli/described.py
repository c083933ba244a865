"""The description of a model that is named on the command line: local, pulled, or on a hub."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hearth.cli.settings import find_model
from hearth.core.errors import ModelNotFoundError, UnreachableError
from hearth.core.paths import home_expanded
from hearth.hub.names import is_name, parse_name
from hearth.models.config_json import read_json
from hearth.models.gguf.view import find_gguf, view_of
from hearth.models.safetensors_file import GGUF_FILE

if TYPE_CHECKING:
    from hearth.hub.describe import Description, RemoteModel
    from hearth.models.safetensors_file import Checkpoint

_BESIDE = ("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# A plan is asked for by somebody who waits for it.
_LIMIT_S = 60.0
_ATTEMPTS, _TIMEOUT_S = 3, 10.0

ReadWeights: TypeAlias = "Callable[[], Checkpoint | None]"


@dataclass(frozen=True, slots=True)
class Described:
    """A directory with `config.json`; `remote` None: the model is on this machine.

    `read_weights`: the headers of its weights, None where it has none; within the context only.
    Raises WeightsError, and of a hub's model RemoteError and its kin.
    """

    directory: Path
    read_weights: ReadWeights
    remote: Description | None = None
    is_here: bool = True


@contextmanager
def described(model: str, source: str) -> Iterator[Described]:
    """A directory, a configuration file of any name, a pulled model, else a hub's.

    `source`: as of `hearth pull`. Raises ModelNotFoundError, ConfigError, and what the hub
    refuses with.
    """
    path = home_expanded(model)
    if path.is_file() and find_gguf(path) is None:
        _ = read_json(path)  # what is none is named as the user names it
        with tempfile.TemporaryDirectory(prefix="hearth-plan-") as name:
            _copy_beside(path, Path(name))
            yield Described(Path(name), lambda: None, is_here=False)
        return
    try:
        local = find_model(model)
    except ModelNotFoundError:
        if path.exists() or not _may_be_remote(model):
            raise
        with (
            tempfile.TemporaryDirectory(prefix="hearth-plan-") as name,
            _on_hub(model, source, Path(name)) as remote,
        ):
            yield remote
        return
    yield Described(local, lambda: _read_local(local))


def _read_local(directory: Path) -> Checkpoint | None:
    """None where no weight is there yet, as beside a description alone."""
    from hearth.models.safetensors_file import read_checkpoint

    if not any(
        path.suffix == ".safetensors" or path.name == GGUF_FILE for path in directory.iterdir()
    ):
        return None
    return read_checkpoint(directory)


def _may_be_remote(model: str) -> bool:
    """ORG/NAME, unless ORG is a directory here: then it is a path that leads nowhere."""
    repo = model.partition("@")[0].partition(":")[0]
    return is_name(model) and "/" in repo and not Path(repo).parent.exists()


@contextmanager
def _on_hub(model: str, source: str, directory: Path) -> Iterator[Described]:
    """Its description, put into the directory; the hub can be asked for more within the context."""
    from hearth.hub.describe import ask
    from hearth.hub.huggingface import user_token
    from hearth.hub.sources import sources_for
    from hearth.hub.transport import Retry, Transport
    from hearth.models.gguf.remote import fetch_headers
    from hearth.models.remote_checkpoint import read_remote_checkpoint
    from hearth.models.safetensors_file import read_checkpoint

    name = parse_name(model)
    print(f"{name} is not here: asking for its description ({source})", file=sys.stderr)

    def look(remote: RemoteModel) -> Described:
        shutil.rmtree(directory)  # of a hub that broke off
        directory.mkdir()
        if remote.may_be_gguf:
            for note in remote.selection.notes:
                _say(note)
        if remote.may_be_gguf and remote.selection.gguf:
            view = view_of(fetch_headers(remote, directory), {"XDG_CACHE_HOME": str(directory)})
            read = lambda: read_checkpoint(view)  # noqa: E731
            return Described(view, read, remote.description(), is_here=False)
        remote.fetch_description(directory)
        read = lambda: read_remote_checkpoint(remote, directory)  # noqa: E731
        return Described(directory, read, remote.description(), is_here=False)

    stopped = threading.Event()
    timer = threading.Timer(_LIMIT_S, stopped.set)
    timer.daemon = True
    timer.start()
    patience = Retry(attempts=_ATTEMPTS, timeout_s=_TIMEOUT_S, longest_wait_s=_TIMEOUT_S)
    transport = Transport(patience, _say)
    try:
        sources = sources_for(source, os.environ, user_token)
        try:
            found = ask(name, sources, transport, stopped, look)
        except UnreachableError as error:
            error.message = f"there is no directory {model}, no pulled model, and {error.message}"
            raise
        yield found
    finally:
        timer.cancel()
        transport.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _copy_beside(path: Path, directory: Path) -> None:
    """The configuration under its usual name, with what stands beside it."""
    shutil.copyfile(path, directory / "config.json")
    for name in _BESIDE:
        if path.with_name(name).is_file():
            shutil.copyfile(path.with_name(name), directory / name)
