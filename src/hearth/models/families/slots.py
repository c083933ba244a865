"""Collects the weight slots of a family: a family file names tensors, this keeps the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot, WeightSource
from hearth.models.sizes import DecoderSizes

Rows = tuple[str, int] | WeightSource  # checkpoint tensor and its number of rows, or some of them


@dataclass(slots=True)
class SlotTable:
    """Slots in the order in which they were named. Each method returns the slot's name.

    A vector whose name ends in `.bias` is a bias (random weights fill it with zeros), any other
    is the weight of a norm (ones).
    """

    dtype: DType
    slots: list[WeightSlot] = field(default_factory=list)

    def linear(self, name: str, cols: int, *sources: Rows) -> str:
        """A matrix: its sources' rows behind each other."""
        return self._append(name, SlotKind.LINEAR, cols, sources)

    def router(self, name: str, cols: int, source: WeightSource) -> str:
        """The matrix of a router; always float32: rounded, it would choose other experts."""
        quant = QuantSpec(DType.FLOAT32)
        slot = WeightSlot(name, SlotKind.LINEAR, source.num_rows, cols, (source,), quant)
        self.slots.append(slot)
        return name

    def stacked(self, name: str, rows: int, cols: int, sources: Iterable[WeightSource]) -> str:
        """Matrices of `rows` rows behind each other, one a source."""
        listed = tuple(sources)
        quant = QuantSpec(self.dtype)
        slot = WeightSlot(name, SlotKind.LINEAR, rows, cols, listed, quant, stack=len(listed))
        self.slots.append(slot)
        return name

    def table(self, name: str, cols: int, source: Rows) -> str:
        """A table that is only gathered from."""
        return self._append(name, SlotKind.TABLE, cols, (source,))

    def grid(self, name: str, cols: int, source: Rows) -> str:
        """A table of positions that is interpolated; always float32."""
        name = self._append(name, SlotKind.TABLE, cols, (source,))
        self.slots[-1] = replace(self.slots[-1], quant=QuantSpec(DType.FLOAT32))
        return name

    def vector(self, name: str, *sources: Rows, offset: float = 0.0) -> str:
        """Norm weights or a bias; always float32; `offset` is added to every element."""
        return self._append(name, SlotKind.VECTOR, 1, sources, offset)

    def bias(self, matrix: str, *sources: Rows) -> str:
        """The bias of the slot `matrix`."""
        return self.vector(f"{matrix}.bias", *sources)

    def _append(
        self,
        name: str,
        kind: SlotKind,
        cols: int,
        sources: tuple[Rows, ...],
        offset: float = 0.0,
    ) -> str:
        dtype = DType.FLOAT32 if kind is SlotKind.VECTOR else self.dtype
        listed = tuple(s if isinstance(s, WeightSource) else WeightSource(*s) for s in sources)
        rows = sum(source.num_rows for source in listed)
        self.slots.append(WeightSlot(name, kind, rows, cols, listed, QuantSpec(dtype), offset))
        return name


def with_older_names(
    slots: Iterable[WeightSlot], prefixes: Mapping[str, str]
) -> tuple[WeightSlot, ...]:
    """The slots; a tensor that a checkpoint lacks may stand there under an older prefix.

    `prefixes`: today's to the older one; of several that fit, the first.
    """

    def named(source: WeightSource) -> WeightSource:
        for now, before in prefixes.items():
            if source.tensor.startswith(now):
                older = f"{before}{source.tensor.removeprefix(now)}"
                return replace(source, otherwise=replace(source, tensor=older))
        return source

    return tuple(replace(slot, sources=tuple(map(named, slot.sources))) for slot in slots)


def embedding_and_head(
    table: SlotTable, sizes: DecoderSizes, *, tied: bool, prefix: str = "model."
) -> tuple[str, str]:
    """The slots of embedding and head: one LINEAR slot for both when tied."""
    embedding = (f"{prefix}embed_tokens.weight", sizes.vocab_size)
    if tied:
        name = table.linear("embedding", sizes.hidden_size, embedding)
        return name, name
    return (
        table.table("embedding", sizes.hidden_size, embedding),
        table.linear("head", sizes.hidden_size, ("lm_head.weight", sizes.vocab_size)),
    )
