"""What the writers of step programs share: buffers by name, and linear layers with their rounding.

A buffer is reused by all layers that need the same name, width and rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hearth.core.program import BufferRows, BufferSpec, Linear, Norm, Op, Quantize, Select
from hearth.core.spec import NormSpec, QuantSpec


@dataclass(slots=True, kw_only=True)
class ProgramWriter:
    """Collects operations and hands out buffers.

    `rows`: those of a buffer for which nothing else is said.
    """

    quants: dict[str, QuantSpec]  # of the weight slots
    rows: BufferRows = BufferRows.TOKENS
    ops: list[Op] = field(default_factory=list)
    buffers: list[BufferSpec] = field(default_factory=list)

    def buffer(self, name: str, width: int, rows: BufferRows | None = None) -> int:
        """The number of the buffer with these properties, made when first asked for."""
        return self._number(BufferSpec(name, width, self.rows if rows is None else rows))

    def selected(self, x: int) -> int:
        """A buffer like `x` for the rows whose logits are wanted, which are copied to it."""
        out = self._number(replace(self.buffers[x], rows=BufferRows.LOGITS))
        self.ops.append(Select(x, out))
        return out

    def linear(self, x: int, weight: str, bias: str | None, out: int) -> list[Op]:
        """A linear layer, and before it the rounding of its rows where the weight asks for it."""
        if not self.quants[weight].int8_rows:
            return [Linear(x, weight, bias, out)]
        rounding = self.rounding(x, weight)
        return [rounding, Linear(rounding.out, weight, bias, out)]

    def rounding(self, x: int, weight: str) -> Quantize:
        """The rounding of rows to int8, as a weight asks for it."""
        rows = self.buffers[x]
        quant = self.quants[weight]
        codes = BufferSpec("codes", rows.width, rows.rows, quant.group_size, quant.residual_rows)
        return Quantize(x, self._number(codes))

    def _number(self, buffer: BufferSpec) -> int:
        if buffer not in self.buffers:
            self.buffers.append(buffer)
        return self.buffers.index(buffer)


def norm_op(norm: NormSpec, x: int, out: int) -> Norm:
    """The operation of a norm."""
    return Norm(x, norm.weight, norm.eps, out, bias=norm.bias, centered=norm.centered)
