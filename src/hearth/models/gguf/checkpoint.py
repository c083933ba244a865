"""A GGUF file's tensors under the names that family files ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hearth.core.errors import WeightsError
from hearth.models.gguf.config import architecture_of
from hearth.models.gguf.file import read_gguf
from hearth.models.gguf.names import ROPE_FACTORS, checkpoint_name
from hearth.models.safetensors_file import Checkpoint, TensorEntry


def read_gguf_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a language model's file. Raises WeightsError, UnknownArchitectureError."""
    file = read_gguf(path)
    architecture = architecture_of(file)
    tensors: dict[str, TensorEntry] = {}
    for name, entry in file.tensors.items():
        if name == ROPE_FACTORS:
            continue
        mapped = checkpoint_name(architecture, name)
        if mapped in tensors:
            raise WeightsError(f"{path.name}: {name} and another tensor are both {mapped}")
        tensors[mapped] = replace(entry, name=mapped)
    return Checkpoint(tensors, (path,))
