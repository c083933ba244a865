"""Reads from a model, without its weights, which attention it calls and what a step allocates.

The model stands on the meta device: a pass runs all of its Python code, allocates nothing and takes
milliseconds. Every call of the attention interface is recorded with its shapes, its mask and its
arguments; what our attention could not honour is refused here.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hearth.core.errors import UnknownArchitectureError
from hearth.models.automodel.interface import AttentionCall, attach
from hearth.models.automodel.mask import causal_window
from hearth.models.automodel.spec import AttentionLayer
from hearth.models.families import supported_names

# Arguments that change nothing in causal attention over given positions.
_HARMLESS = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "layer_head_mask",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class TraceSizes:
    """The largest step: its tokens and wanted rows; and the longest context."""

    max_tokens: int
    max_logit_rows: int
    num_positions: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What a pass showed. `activation_bytes`: the most that lives at once, attention aside."""

    layers: tuple[AttentionLayer, ...]
    vocab_size: int
    activation_bytes: int
    selects_logits: bool


def trace(model: Any, sizes: TraceSizes) -> Trace:
    """Runs a pass of `model`, which is on the meta device and uses our attention.

    Raises UnknownArchitectureError with what cannot be honoured.
    """
    name = type(model).__name__
    accepted = inspect.signature(model.forward).parameters
    if "position_ids" not in accepted:
        raise refusal(name, "it takes no position_ids (ALiBi, or positions of its own)")
    recorder = _Recorder(model, sizes.num_positions)
    selects = "logits_to_keep" in accepted
    try:
        with torch.no_grad(), _PeakMeter() as meter:
            logits = _forward(model, sizes, selects_logits=selects)
    except UnknownArchitectureError:
        raise
    except Exception as error:
        # Foreign code: whatever it raises, the model is refused with what it said.
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        never = "" if recorder.layers else " before any call of transformers' attention interface"
        raise refusal(name, f"tracing a pass failed{never}: {text}") from error
    _check_layers(model, recorder.layers)
    return Trace(tuple(recorder.layers), int(logits.shape[-1]), meter.peak_bytes, selects)


def refusal(name: str, why: str) -> UnknownArchitectureError:
    """The error for an architecture that cannot be served through transformers."""
    return UnknownArchitectureError(
        f"{name} cannot be served through transformers' AutoModelForCausalLM: {why}",
        hint=f"served by kernels of hearth's own: {supported_names()}",
        param="architectures",
    )


def _forward(model: Any, sizes: TraceSizes, *, selects_logits: bool) -> torch.Tensor:
    """Logits of a pass over meta tensors.

    A mask of ones keeps transformers from looking for several sequences in the positions, which
    have no values there.
    """
    indices = torch.zeros((1, sizes.max_tokens), dtype=torch.long, device="meta")
    arguments: dict[str, Any] = {}
    if selects_logits:
        arguments["logits_to_keep"] = indices[0, : sizes.max_logit_rows]
    output = model(
        input_ids=indices,
        attention_mask=torch.ones_like(indices),
        position_ids=indices,
        use_cache=False,
        **arguments,
    )
    logits: torch.Tensor = output.logits
    return logits


class _Recorder:
    """Stands at every module of the traced model and notes the calls."""

    def __init__(self, model: Any, num_positions: int) -> None:
        self.layers: list[AttentionLayer] = []
        self._architecture = type(model).__name__
        self._num_positions = num_positions
        self._names = {module: name for name, module in model.named_modules()}
        self._windows: dict[int, int] = {}
        for module in self._names:
            attach(module, self)

    def attend(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """Notes a call, and answers with values of the right shape."""
        where = self._names[module]
        if any(layer.module == where for layer in self.layers):
            raise self._refuse(where, "is called twice in a pass (one cache for each is needed)")
        unknown = sorted(set(call.others) - _HARMLESS)
        if unknown:
            raise self._refuse(where, f"is given {', '.join(unknown)}, which is not implemented")
        _, num_heads, num_tokens, key_dim = call.query.shape
        batch, num_kv_heads, num_keys, _ = call.key.shape
        if batch != 1 or num_keys != num_tokens or num_heads % num_kv_heads:
            shapes = f"queries {list(call.query.shape)}, keys {list(call.key.shape)}"
            raise self._refuse(where, f"is no causal self-attention over the tokens: {shapes}")
        value_dim = int(call.value.shape[-1])
        window = self._window(where, call.mask)
        self.layers.append(
            AttentionLayer(where, num_heads, num_kv_heads, key_dim, value_dim, window)
        )
        return call.query.new_empty((1, num_tokens, num_heads, value_dim))

    def _window(self, where: str, mask: torch.Tensor | None) -> int:
        predicate = getattr(mask, "predicate", None)
        if predicate is None:
            raise self._refuse(where, "is given a mask that is not made by transformers' own rules")
        window = causal_window(predicate, self._num_positions)
        if window is None:
            raise self._refuse(where, "has a mask that is neither causal nor a sliding window")
        return window

    def _refuse(self, where: str, why: str) -> UnknownArchitectureError:
        return refusal(self._architecture, f"attention {where} {why}")


def _check_layers(model: Any, layers: list[AttentionLayer]) -> None:
    """Every layer of the config must have called attention, once.

    What mixes tokens in another way (a state-space model, linear attention, a convolution) has a
    state that nobody would keep.
    """
    name = type(model).__name__
    expected = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    if not layers:
        raise refusal(name, "it does not call transformers' attention interface")
    if len(layers) != expected:
        calls = f"{len(layers)} of its {expected} layers call attention"
        raise refusal(name, f"{calls}; the others mix tokens otherwise")
    if getattr(model, "_is_stateful", False):
        raise refusal(name, "it keeps a state beside keys and values")


class _PeakMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the bytes of the tensors that operations make and that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.peak_bytes = 0
        self._alive: dict[int, tuple[Any, int]] = {}  # StorageWeakRef and bytes, by address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in inputs:
                    self._alive[storage._cdata] = (_watch(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return result


def _watch(storage: torch.UntypedStorage) -> Any:
    """A weak reference that tells whether the storage is gone."""
    untyped: Any = reductions.StorageWeakRef
    return untyped(storage)
