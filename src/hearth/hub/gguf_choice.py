"""Which GGUF model of a repository is meant, and what comes along with it.

A repository holds one model in many quantizations, some of them in parts, and of a model that sees
its encoder (mmproj) in one or more precisions. One quantization is one model in the store: its own
directory, in which it is the only one. Files lie at the top there, wherever the repository has
them, and the encoder's name begins as readers expect.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hearth.core.errors import ConfigError, ModelNotFoundError
from hearth.core.units import format_bytes
from hearth.hub.gguf_files import (
    PROJECTOR,
    GgufModel,
    is_projector,
    matches,
    models_of,
    num_parts,
    projector_of,
    quantization_of,
)
from hearth.hub.listing import Listing, RemoteFile
from hearth.hub.names import is_name

# What a GGUF file's header has too, and better where it lies beside it: models/gguf/view reads it.
_BESIDE = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
)
_LICENSES = ("LICENSE", "NOTICE")
_MOST_LISTED = 40


@dataclass(frozen=True, slots=True)
class Selection:
    """Files of a repository. `notes`: choices that were made for the user, with their reasons.

    `gguf`: the first file of the GGUF model, as it is called in the store; empty: safetensors, or
    what patterns chose. `label` names the model's directory then.
    """

    files: tuple[RemoteFile, ...]
    gguf: str = ""
    label: str = ""
    notes: tuple[str, ...] = ()


NOTHING_CHOSEN = Selection(())


def choose_gguf(listing: Listing, tag: str | None) -> Selection:
    """The GGUF model that a tag means, or the only one; NOTHING_CHOSEN where there is none.

    Raises ConfigError where it is not clear which, ModelNotFoundError where none is meant.
    """
    models = models_of(listing.files)
    if tag is None:
        meant = models
    else:
        meant = [model for model in models if matches(tag, model.files[0].path)]
        if not meant:
            raise ModelNotFoundError(
                f"{listing.repo} has no GGUF file {tag} on {listing.source}{_listed(models)}",
                hint=_hint(listing, models),
            )
    if len(meant) > 1:
        what = "GGUF models" if tag is None else f"GGUF models that are {tag}"
        raise ConfigError(
            f"{listing.repo} has {len(meant)} {what} on {listing.source}{_listed(meant)}",
            hint=_hint(listing, meant),
        )
    return _selection(listing, meant[0], len(models)) if meant else NOTHING_CHOSEN


def gguf_beside(listing: Listing) -> tuple[str, ...]:
    """What is said where safetensors are taken and GGUF models lie beside them."""
    models = models_of(listing.files)
    if not models:
        return ()
    tags = ", ".join(dict.fromkeys(_tag(model, models) for model in models[:8]))
    note = (
        f"taken are the safetensors, the weights as they were made; {len(models)} GGUF models lie "
        f"beside them: hearth pull {listing.repo}:TAG takes one ({tags})"
    )
    return (note,)


def _selection(listing: Listing, model: GgufModel, num_models: int) -> Selection:
    _check_parts(model)
    files = [*model.files]
    notes = []
    if num_models == 1:
        notes.append(f"taken is {model.files[0].path}, the only GGUF model of {listing.repo}")
    projector = projector_of(listing.files)
    if projector is not None:
        count = sum(is_projector(file.path) for file in listing.files)
        why = f" (one of {count}: half precision goes before others)" if count > 1 else ""
        notes.append(f"{projector.path} comes along, the encoder of a model that sees{why}")
        files.append(_named_as_projector(projector))
    top = [_at_top(file) for file in files]
    beside = [file for file in listing.files if _is_beside(file.path)]
    first = _at_top(model.files[0]).path
    return Selection((*top, *beside), first, model.label, tuple(notes))


def _check_parts(model: GgufModel) -> None:
    """All parts are there. Raises ModelNotFoundError."""
    wanted = num_parts(model.files[0].path)
    if wanted != len(model.files):
        raise ModelNotFoundError(
            f"{model.files[0].path} is one of {wanted} parts, of which {len(model.files)} are "
            "listed",
            hint="the repository is not whole: name another file, or another revision",
        )


def _at_top(file: RemoteFile) -> RemoteFile:
    return replace(file, path=file.path.rpartition("/")[2])


def _named_as_projector(file: RemoteFile) -> RemoteFile:
    name = file.path.rpartition("/")[2]
    return replace(file, path=name if name.startswith(PROJECTOR) else f"{PROJECTOR}-{name}")


def _is_beside(path: str) -> bool:
    return path in _BESIDE or ("/" not in path and path.startswith(_LICENSES))


def _tag(model: GgufModel, models: Sequence[GgufModel]) -> str:
    """The shortest that means this model alone."""
    path = model.files[0].path
    for tag in (quantization_of(path), model.stem.rpartition("/")[2]):
        if tag and sum(matches(tag, other.files[0].path) for other in models) == 1:
            return tag
    return model.stem


def _listed(models: Sequence[GgufModel]) -> str:
    """What there is, the smallest first, one a line: tag, file, size, memory."""
    by_size = sorted(models, key=lambda model: model.num_bytes)
    lines = [_line(model, models) for model in by_size[:_MOST_LISTED]]
    if len(models) > _MOST_LISTED:
        lines.append(f"  and {len(models) - _MOST_LISTED} more")
    return ":\n" + "\n".join(lines) if lines else ""


def _line(model: GgufModel, models: Sequence[GgufModel]) -> str:
    parts = f" in {len(model.files)} parts" if len(model.files) > 1 else ""
    size, memory = format_bytes(model.num_bytes), model.memory_bytes
    takes = f"about {format_bytes(memory)} in memory" if memory else _unread(model)
    return f"  {_tag(model, models)}: {model.files[0].path}{parts}, {size}, {takes}"


def _unread(model: GgufModel) -> str:
    quantization = quantization_of(model.stem)
    return "its name says no form" if not quantization else "a form that hearth does not read"


def _hint(listing: Listing, models: Sequence[GgufModel]) -> str:
    readable = [model for model in models if model.memory_bytes] or list(models)
    if not readable:
        return "look for another repository of this model"
    best = min(readable, key=lambda model: "Q4_K_M" not in model.stem.upper())
    by_file = f"--file {shlex.quote(best.files[0].path)}"
    named = f"{listing.repo}:{_tag(best, models)}"
    if not is_name(named):
        return f"name its file: hearth pull {listing.repo} {by_file}"
    return f"name one, such as hearth pull {named}, or its file: {by_file}"
