"""What the writers of step programs share: buffers by name, and linear layers with their rounding.

A buffer is reused by all layers that need the same name, width and rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hearth.core.program import BufferRows, BufferSpec, Linear, Norm, Op, Quantize
from hearth.core.spec import NormSpec, QuantSpec


@dataclass(slots=True, kw_only=True)
class ProgramWriter:
    """Collects operations and hands out buffers."""

    quants: dict[str, QuantSpec]  # of the weight slots
    ops: list[Op] = field(default_factory=list)
    buffers: list[BufferSpec] = field(default_factory=list)

    def buffer(self, name: str, width: int, rows: BufferRows = BufferRows.TOKENS) -> int:
        """The number of the buffer with these properties, made when first asked for."""
        wanted = BufferSpec(name, width, rows)
        if wanted not in self.buffers:
            self.buffers.append(wanted)
        return self.buffers.index(wanted)

    def linear(self, x: int, weight: str, bias: str | None, out: int) -> list[Op]:
        """A linear layer, and before it the rounding of its rows where the weight asks for it."""
        if not self.quants[weight].int8_rows:
            return [Linear(x, weight, bias, out)]
        rounding = self.rounding(x, weight)
        return [rounding, Linear(rounding.out, weight, bias, out)]

    def rounding(self, x: int, weight: str) -> Quantize:
        """The rounding of rows to int8, as a weight asks for it."""
        rows = self.buffers[x]
        codes = BufferSpec("codes", rows.width, rows.rows, self.quants[weight].group_size)
        if codes not in self.buffers:
            self.buffers.append(codes)
        return Quantize(x, self.buffers.index(codes))


def norm_op(norm: NormSpec, x: int, out: int) -> Norm:
    """The operation of a norm."""
    return Norm(x, norm.weight, norm.eps, out, bias=norm.bias, centered=norm.centered)
