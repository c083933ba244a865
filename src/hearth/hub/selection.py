"""Which of a repository's files are downloaded: what serving needs, or what the patterns say.

Repositories hold the same weights several times (PyTorch's own format, GGUF, ONNX, Mistral's
`consolidated` files); hearth reads safetensors in the top directory, or one GGUF model wherever it
lies (hub/gguf_choice). Code that comes with a model is never run, so it is not fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from hearth.core.errors import ConfigError, ModelError
from hearth.hub.gguf_choice import NOTHING_CHOSEN, Selection, choose_gguf, gguf_beside
from hearth.hub.listing import Listing, RemoteFile

_WEIGHTS = ".safetensors"
_SINGLE = "model.safetensors"
_DUPLICATES = ("consolidated*", "model.*.safetensors")  # Mistral's; variants such as model.fp16
_NEEDED = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
    "NOTICE*",
)
_NOT_NEEDED = (
    "*.bin.index.json",
    "*.msgpack.index.json",
    "*.h5.index.json",
    "*.gguf.json",
    "trainer_state.json",
    "training_args.json",
)
_TEMPLATES = "additional_chat_templates/"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ckpt")


def select(
    listing: Listing,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tag: str | None = None,
) -> Selection:
    """The files to have. `include` replaces what serving needs, `exclude` takes from either.

    `tag`: of the GGUF model that is meant; None: safetensors, where there are any, else the only
    GGUF model. Patterns are those of a shell, on whole paths; `*` stands for "/" too. Raises
    ConfigError where they leave nothing or several GGUF models are there, ModelNotFoundError for a
    tag that none has, ModelError where the model has no weights that hearth reads.
    """
    if include:
        files = [file for file in listing.files if _matches(file.path, include)]
        return Selection(_left(listing, files, exclude))
    if tag is None:
        files = _needed(listing.files)
        if any(file.path.endswith(_WEIGHTS) for file in files):
            notes = gguf_beside(listing)
            return Selection(_left(listing, files, exclude), notes=notes)
    chosen = choose_gguf(listing, tag)
    if chosen is NOTHING_CHOSEN:
        raise _no_weights(listing)
    return replace(chosen, files=_left(listing, chosen.files, exclude))


def _left(
    listing: Listing, files: Sequence[RemoteFile], exclude: Sequence[str]
) -> tuple[RemoteFile, ...]:
    chosen = tuple(file for file in files if not _matches(file.path, exclude))
    if not chosen:
        raise ConfigError(
            f"--include and --exclude leave none of the {len(listing.files)} files of "
            f"{listing.repo}",
            hint="patterns are matched with whole paths, such as '*.safetensors' or 'onnx/*'",
        )
    return chosen


def is_weight(path: str) -> bool:
    """Whether a file holds weights that hearth reads."""
    return path.endswith(_WEIGHTS) and "/" not in path


def is_needed(path: str) -> bool:
    """Whether serving may read a file of this name that is not a weight."""
    if "/" in path:
        return path.startswith(_TEMPLATES) and path.endswith(".jinja")
    return _matches(path, _NEEDED) and not _matches(path, _NOT_NEEDED)


def needed_weights(paths: Sequence[str]) -> list[str]:
    """Of a directory's paths, the weights that hearth reads."""
    found = [path for path in paths if path.endswith(_WEIGHTS) and "/" not in path]
    if _SINGLE in found:
        return [_SINGLE]
    plain = [path for path in found if not _matches(path, _DUPLICATES)]
    # Some name their shards model.safetensors-00001-of-00002.safetensors.
    return plain or [path for path in found if path.startswith("model.")]


def _needed(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    weights = set(needed_weights([file.path for file in files]))
    return [file for file in files if file.path in weights or is_needed(file.path)]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _no_weights(listing: Listing) -> ModelError:
    others = [file.path for file in listing.files if file.path.endswith(_OTHER_WEIGHTS)]
    found = f"; it has {', '.join(others[:3])}{' …' if len(others) > 3 else ''}" if others else ""
    return ModelError(
        f"{listing.repo} has no *.safetensors at its top and no *.gguf on {listing.source}{found}",
        hint="hearth reads safetensors and GGUF: look for another repository of this model, or "
        "fetch chosen files with --include",
    )
