"""Attention of a transformers model over our paged KV cache.

Every call stores the keys and values of all rows of the step first and then reads those of each
sequence back, its own chunk's included, as every executor does. A sequence's keys are read in tiles
with a running softmax, so that scratch memory has a bound that the context does not move, and soft
caps, sinks and windows need no path of their own. Arithmetic is float32 whatever the model's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional

from hearth.core.errors import KernelError
from hearth.kernels.reference.kv import KvPlace, PagedKv, StepTensors
from hearth.models.automodel.interface import AttentionCall
from hearth.models.automodel.spec import AttentionLayer

# Scores of a tile: 64 MiB of float32. At least MIN_TILE keys are taken at once, at most MAX_TILE.
MAX_SCORES = 1 << 24
MIN_TILE, MAX_TILE = 16, 4096


@dataclass(slots=True)
class PassState:
    """The step in progress, shared by the attention modules of a model; None between steps."""

    step: StepTensors | None = None
    kv: PagedKv | None = None
    slots: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def begin(self, step: StepTensors, kv: PagedKv) -> None:
        """A pass over `step` follows."""
        self.step, self.kv = step, kv
        self.slots.clear()

    def end(self) -> None:
        """The pass is over; nothing of it is kept."""
        self.step = self.kv = None
        self.slots.clear()


class PagedSite:
    """Stands at one attention module: a place in the cache and a window."""

    def __init__(self, state: PassState, layer: AttentionLayer, place: KvPlace) -> None:
        self._state = state
        self._layer = layer
        self._place = place

    def attend(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """See `interface.Site`. Raises KernelError outside of a pass."""
        step, kv = self._state.step, self._state.kv
        if step is None or kv is None:
            raise KernelError(f"attention {self._layer.module} was called outside of a step")
        _, width, _ = self._layer.kv_shape
        keys, values = call.key[0].transpose(0, 1), call.value[0].transpose(0, 1)
        kv.write(step, self._place, _padded(keys, width), _padded(values, width))
        queries = call.query[0].transpose(0, 1)
        mixed = [
            self._sequence(queries[rows.first_row : rows.last_row], call, index)
            for index, rows in enumerate(step.sequences)
        ]
        return torch.cat(mixed).to(call.query.dtype)[None]

    def _sequence(self, queries: torch.Tensor, call: AttentionCall, index: int) -> torch.Tensor:
        """The rows [n, heads, key_dim] of one sequence to [n, heads, value_dim]."""
        state, layer = self._state, self._layer
        assert state.step is not None, "called within a pass"
        assert state.kv is not None, "called within a pass"
        group = self._place.group
        if (slots := state.slots.get((group, index))) is None:
            slots = state.kv.slots_of(state.step, group, index)
            state.slots[group, index] = slots
        context = state.step.sequences[index].context
        num_rows = queries.shape[0]
        # The first key that any of the rows sees; blocks before it may not be listed.
        end = context + num_rows
        listed = end - slots.shape[0]
        first = max(listed, context - layer.window + 1) if layer.window else listed
        tile = tile_keys(num_rows * layer.num_heads)
        softmax = _RunningSoftmax(queries, call, layer, context)
        for start in range(first, end, tile):
            part = slots[start - listed : min(start + tile, end) - listed]
            stored = state.kv.gather(self._place, part, start)
            softmax.add(stored.keys, stored.values, start)
        return softmax.result()


def tile_keys(num_rows: int) -> int:
    """Keys that are read at once for so many rows of scores (rows of the step × heads)."""
    return max(MIN_TILE, min(MAX_TILE, MAX_SCORES // num_rows))


def scratch_bytes(layers: tuple[AttentionLayer, ...], max_tokens: int) -> int:
    """The most that attention allocates at once: scores and what comes of them, rows, a tile."""
    most = 0
    for layer in layers:
        num_rows = max_tokens * layer.num_heads
        scores = 3 * num_rows * tile_keys(num_rows)
        rows = num_rows * (2 * layer.key_dim + 3 * layer.value_dim)
        tile = 3 * MAX_TILE * layer.num_kv_heads * (layer.key_dim + layer.value_dim)
        most = max(most, 4 * (scores + rows + tile))
    return most


class _RunningSoftmax:
    """softmax(q·k)·v over tiles of keys (Milakov and Gimelshein, arXiv 1805.02867).

    Rows are [kv_heads, heads of a kv head · n], so that a KV head is read once for its queries.
    """

    def __init__(
        self, queries: torch.Tensor, call: AttentionCall, layer: AttentionLayer, context: int
    ) -> None:
        num_rows, num_heads, _ = queries.shape
        self._layer, self._call = layer, call
        self._repeats = num_heads // layer.num_kv_heads
        grouped = (num_rows, layer.num_kv_heads, self._repeats, layer.key_dim)
        scaled = (queries.float() * call.scale).reshape(grouped)
        self._queries = scaled.permute(1, 2, 0, 3).flatten(1, 2)
        device = queries.device
        self._positions = (context + torch.arange(num_rows, device=device)).repeat(self._repeats)
        shape = (*self._queries.shape[:2], 1)
        self._largest = torch.full(shape, float("-inf"), device=device)
        self._total = torch.zeros(shape, device=device)
        self._mixed = torch.zeros((*shape[:2], layer.value_dim), device=device)

    def add(self, keys: torch.Tensor, values: torch.Tensor, first_index: int) -> None:
        """A tile, [t, kv_heads, width] each, whose first key is that of token `first_index`."""
        layer = self._layer
        k, v = keys[..., : layer.key_dim], values[..., : layer.value_dim]
        scores = torch.bmm(self._queries, k.permute(1, 2, 0))
        if cap := self._call.soft_cap:
            scores = torch.tanh(scores / cap) * cap
        indices = first_index + torch.arange(keys.shape[0], device=keys.device)
        hidden = indices > self._positions[:, None]
        if layer.window:
            hidden |= indices <= self._positions[:, None] - layer.window
        scores.masked_fill_(hidden, float("-inf"))
        largest = torch.maximum(self._largest, scores.amax(-1, keepdim=True))
        # A row may see no key of its first tiles: exp(−∞ − 0) is 0 there, and no NaN.
        shift = torch.where(largest.isinf(), 0.0, largest)
        weights = scores.sub_(shift).exp_()
        kept = torch.exp(self._largest - shift)
        self._total = self._total * kept + weights.sum(-1, keepdim=True)
        self._mixed = self._mixed * kept + torch.bmm(weights, v.transpose(0, 1))
        self._largest = largest

    def result(self) -> torch.Tensor:
        """[n, heads, value_dim]. A sink takes its share of the softmax and gives nothing."""
        if self._call.sinks is not None:
            sinks = self._call.sinks.float().view(self._layer.num_kv_heads, self._repeats, 1)
            per_row = sinks.expand(-1, -1, self._positions.shape[0] // self._repeats)
            self._total = self._total + torch.exp(per_row.flatten(1, 2)[..., None] - self._largest)
        mixed = self._mixed / self._total
        by_head = mixed.reshape(mixed.shape[0], self._repeats, -1, mixed.shape[-1])
        return by_head.permute(2, 0, 1, 3).flatten(1, 2)


def _padded(rows: torch.Tensor, width: int) -> torch.Tensor:
    """[T, kv_heads, width], zeros behind what is narrower."""
    return functional.pad(rows, (0, width - rows.shape[-1]))
