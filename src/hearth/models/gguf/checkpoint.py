"""A GGUF file's tensors under the names that family files ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hearth.core.errors import WeightsError
from hearth.models.gguf.config import architecture_of
from hearth.models.gguf.file import read_gguf
from hearth.models.gguf.names import ROPE_FACTORS, checkpoint_name, encoder_name
from hearth.models.gguf.parts import read_parts
from hearth.models.safetensors_file import GGUF_FILE, Checkpoint, TensorEntry

PROJECTOR_FILE = "mmproj.gguf"  # in a view, beside model.gguf
_PART = "model-part-{:05}.gguf"  # the second and following ones


def part_file(number: int) -> str:
    """What a view calls a part of the model; the first is number 1."""
    return GGUF_FILE if number == 1 else _PART.format(number)


def read_gguf_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a language model's file, and of what lies beside it in a view.

    That are its other parts, and the file of the encoder. Raises WeightsError,
    UnknownArchitectureError.
    """
    parts = (path, *sorted(path.parent.glob(_PART.replace("{:05}", "*"))))
    file = read_parts(parts, with_texts=False)
    architecture = architecture_of(file)
    tensors: dict[str, TensorEntry] = {}
    for name, entry in file.tensors.items():
        if name != ROPE_FACTORS:
            _add(tensors, checkpoint_name(architecture, name), entry)
    projector = path.with_name(PROJECTOR_FILE)
    if not projector.exists():
        return Checkpoint(tensors, parts)
    for name, entry in read_gguf(projector, with_texts=False).tensors.items():
        _add(tensors, encoder_name(name), entry)
    return Checkpoint(tensors, (*parts, projector))


def _add(tensors: dict[str, TensorEntry], name: str, entry: TensorEntry) -> None:
    if name in tensors:
        raise WeightsError(f"{entry.path.name}: {entry.name} and another tensor are both {name}")
    tensors[name] = replace(entry, name=name)
