"""transformers' decoder, one layer at a time.

It is built without weights, which come from the checkpoint for the layer that is at work and go
again.
The layers see what the whole model would give them: a first pass with stand-ins records what each
layer is called with beside its hidden states (masks, rotary embeddings). All sequences have one
length, so that these are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hearth.core.errors import HearthError, ModelError, UnknownArchitectureError
from hearth.models.automodel.load import transformers
from hearth.models.loader import LoadedSpec
from hearth.models.safetensors_file import Checkpoint, TensorEntry
from hearth.quant.calibrated.experts import SplitExperts, split_experts
from hearth.quant.calibrated.tensors import LayerTensors, Part, TensorReader, slice_of

_HINT = "quantize it with --method rtn, which needs no transformers"


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer with its weights in float32.

    `parts`: where each parameter and buffer comes from, by its name in `module`; `entries`: all
    tensors of the layer in the checkpoint.
    """

    index: int
    module: nn.Module
    parts: dict[str, list[Part]]
    entries: list[TensorEntry]


class _StopHereError(Exception):
    """Ends a pass: what was wanted is there."""


class _Recorder(nn.Module):
    """Stands in for a layer and keeps what it is called with."""

    def __init__(self, layer: nn.Module, *, is_last: bool) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._original = [layer]  # in a list, so that it is no part of this module
        self._is_last = is_last

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._original[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls = [(args, kwargs)]
        if self._is_last:
            raise _StopHereError
        return args[0] if args else kwargs["hidden_states"]


class StreamedModel:
    """The decoder of a model directory. Raises UnknownArchitectureError, ModelError."""

    def __init__(self, loaded: LoadedSpec, checkpoint: Checkpoint) -> None:
        self.architecture = loaded.architecture
        self._tensors = LayerTensors(checkpoint, loaded.spec.slots)
        self._checkpoint = checkpoint
        self._reader = TensorReader()
        self._model = _meta_model(loaded.path, loaded.architecture)
        self._decoder: Any = self._model.get_decoder()
        layers = getattr(self._decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) != len(loaded.spec.layers):
            raise UnknownArchitectureError(
                f"transformers' {self.architecture} has no list of {len(loaded.spec.layers)} "
                "layers",
                hint=_HINT,
            )
        self._layers = list(layers)
        _fill_buffers(self._model, [m for m in self._decoder.modules() if _has_buffers(m)])
        self._tokens = torch.empty(0, 0, dtype=torch.int64)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._layers)

    @property
    def reader(self) -> TensorReader:
        """Reads the checkpoint."""
        return self._reader

    def prefix(self, index: int) -> str:
        """What the names of a layer's tensors begin with in the checkpoint."""
        return self._tensors.prefix(index, [name for name, _ in _tensors_of(self._layers[index])])

    def entries(self, index: int) -> list[TensorEntry]:
        """All tensors of a layer."""
        return self._tensors.of_layer(self.prefix(index))

    def begin(self, tokens: NDArray[np.int64]) -> None:
        """Takes the sequences, [sequences, length], and records how layers are called."""
        self._load_embedding(tokens)
        calls = self._recorded(0, len(self._layers))
        shapes = {tuple(_hidden(args, kwargs).shape) for args, kwargs in calls}
        if len(calls) != len(self._layers) or len(shapes) != 1:
            raise UnknownArchitectureError(
                f"transformers' {self.architecture} does not call its layers one after the other",
                hint=_HINT,
            )
        self._calls = calls

    def embedded(self, index: int) -> Tensor:
        """What the first layer reads for a sequence: [1, length, hidden] float32."""
        (call,) = self._recorded(index, 1)
        return _hidden(*call)

    def run(self, layer: Layer, states: Tensor) -> Tensor:
        """What a layer makes of the states of a sequence."""
        args, kwargs = self._calls[layer.index]
        if args:
            args = (states, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": states}
        with torch.no_grad():
            found = layer.module(*args, **kwargs)
        result: Tensor = found[0] if isinstance(found, tuple) else found
        return result

    @contextmanager
    def layer(self, index: int) -> Iterator[Layer]:
        """A layer with its weights; they leave memory behind the context. Raises WeightsError."""
        module, prefix = self._layers[index], self.prefix(index)
        stacked = {n: self._tensors.parts(prefix, n) for n in _stacked_names(module)}
        # Experts of one tensor stay as they are, in the checkpoint as well.
        if stacked and all(part.is_whole and len(p) > 1 for p in stacked.values() for part in p):
            split_experts(module)
        _fill_buffers(self._model, [m for m in module.modules() if _has_buffers(m)])
        parts = {}
        for name, tensor in _tensors_of(module):
            parts[name] = _expert_parts(module, name, stacked) or self._tensors.parts(prefix, name)
            _assign(module, name, self._reader.rows(parts[name]).reshape(tensor.shape))
        try:
            yield Layer(index, module, parts, self._tensors.of_layer(prefix))
        finally:
            module.to("meta")

    def _recorded(self, index: int, count: int) -> list[Any]:
        """Calls of the first `count` layers for a sequence."""
        recorders = [
            _Recorder(layer, is_last=i + 1 == count) for i, layer in enumerate(self._layers)
        ]
        self._decoder.layers = nn.ModuleList(recorders)
        try:
            with torch.no_grad():
                embeds = self._decoder.get_input_embeddings()(self._tokens[index : index + 1])
                self._decoder(inputs_embeds=embeds, use_cache=False)
        except _StopHereError:
            pass
        except HearthError:
            raise
        except Exception as error:
            # Foreign code.
            raise UnknownArchitectureError(
                f"transformers' {self.architecture} cannot be run layer by layer: {error}",
                hint=_HINT,
            ) from error
        finally:
            self._decoder.layers = nn.ModuleList(self._layers)
        return [call for recorder in recorders for call in recorder.calls]

    def _load_embedding(self, tokens: NDArray[np.int64]) -> None:
        """The rows of those tokens alone, under new numbers."""
        embedding = self._decoder.get_input_embeddings()
        shape = (embedding.num_embeddings, embedding.embedding_dim)
        entries = [
            entry
            for name, entry in self._checkpoint.tensors.items()
            if name.endswith("embed_tokens.weight") and entry.shape == shape
        ]
        if len(entries) != 1:
            raise ModelError(
                f"the checkpoint has {len(entries)} tensors …embed_tokens.weight of shape {shape}; "
                "permitted: one",
                hint=_HINT,
            )
        used, numbers = np.unique(tokens, return_inverse=True)
        table = self._reader.some_rows(entries[0], used)
        embedding.weight = nn.Parameter(table, requires_grad=False)
        embedding.padding_idx = None
        self._tokens = torch.from_numpy(numbers.reshape(tokens.shape))


def _meta_model(path: Path, architecture: str) -> Any:
    """The model on the meta device, its attention in the plain form, which knows all options."""
    library = transformers()
    try:
        config = library.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            model = getattr(library, architecture)._from_config(
                config, dtype=torch.float32, attn_implementation="eager"
            )
    except Exception as error:
        # Foreign code that reads foreign files.
        raise UnknownArchitectureError(
            f"transformers {library.__version__} cannot build {architecture}: {error}", hint=_HINT
        ) from error
    return model.eval().requires_grad_(False)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    result: Tensor = args[0] if args else kwargs["hidden_states"]
    return result


def _tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, and the buffers that checkpoints hold."""
    kept = set(module.state_dict(keep_vars=True))
    buffers = [(name, b) for name, b in module.named_buffers() if name in kept]
    return [*module.named_parameters(), *buffers]


def _stacked_names(module: nn.Module) -> list[str]:
    """Of tensors that hold all experts of a layer."""
    from hearth.quant.calibrated.experts import STACKED, is_stacked

    owners = [name for name, child in module.named_modules() if name and is_stacked(child)]
    split = [name for name, child in module.named_modules() if isinstance(child, SplitExperts)]
    return [f"{owner}.{tensor}" for owner in (*owners, *split) for tensor in STACKED]


def _expert_parts(module: nn.Module, name: str, stacked: dict[str, list[Part]]) -> list[Part]:
    """Of one expert's matrix, such as mlp.experts.3.down_proj.weight; else nothing."""
    for whole, parts in stacked.items():
        owner, _, tensor = whole.rpartition(".")
        head, _, rest = name.removeprefix(f"{owner}.").partition(".")
        if name.startswith(f"{owner}.") and head.isdigit() and rest == f"{tensor}.weight":
            rows = module.get_parameter(name).shape[0]
            return slice_of(parts, int(head) * rows, rows)
    return []


def _has_buffers(module: nn.Module) -> bool:
    return any(b.is_meta for b in module.buffers(recurse=False))


def _fill_buffers(model: Any, modules: list[nn.Module]) -> None:
    """Values that are computed and not stored, such as rotary frequencies, by transformers' way."""
    with torch.no_grad():
        for module in modules:
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
            model._init_weights(module)


def _assign(module: nn.Module, name: str, values: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    parent = module.get_submodule(owner)
    if last in parent._parameters:
        parent._parameters[last] = nn.Parameter(values, requires_grad=False)
    else:
        parent._buffers[last] = values
