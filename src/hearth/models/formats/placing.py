"""Rows of stored matrices into a sink: exactly where a kernel has the form, else converted.

What is converted becomes int8 in groups of 32 columns, to nearest, or floating point; either way
the squares of what changed are summed, so that the user can be told what it cost. The same is done
for floating point that the sink rounds to codes, on a sample of the rows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError, WeightsError
from hearth.core.quality import RoundingLoss
from hearth.core.spec import CodesForm, DType, QuantSpec, WeightSlot
from hearth.kernels.codes import row_values, widened
from hearth.kernels.cpu.quantize import quantize_rows
from hearth.kernels.e4m3 import e4m3_values
from hearth.kernels.packing import CodeRows, HostTensor, WeightSink
from hearth.models.formats.fp8 import group_size_of
from hearth.models.formats.matrix import CodePiece, Maps, StoredRows, host_tensor

_MIDDLE = 128  # of 8 bits
_LARGEST = 127
# Of rows that the sink rounds, one in so many is rounded once more to see what that loses, and in
# pieces of few rows so many, for 5 % of what packing takes. 16 rows of 4,096 columns tell the share
# of their matrix to some hundredths of it, all together that of a model far better.
SAMPLE_STRIDE, LEAST_SAMPLE = 256, 4


@dataclass(slots=True)
class _Loss:
    matrices: set[str] = field(default_factory=set)
    changed: float = 0.0
    total: float = 0.0

    @property
    def share(self) -> float:
        return self.changed / self.total if self.total else 0.0


@dataclass(slots=True)
class Losses:
    """What conversions cost, by what was converted into what; for several threads.

    `with_rounding`: what the sink's own rounding costs, too.
    """

    with_rounding: bool = False
    found: dict[tuple[str, str], _Loss] = field(default_factory=dict)
    rounded: dict[tuple[str, str], _Loss] = field(default_factory=dict)  # by bits and slot
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, slot: WeightSlot, piece: CodePiece, before: NDArray[np.float32],
        after: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Values of the same rows before and after."""
        changed = float(np.square(after - before, dtype=np.float64).sum())
        total = float(np.square(before, dtype=np.float64).sum())
        with self.lock:
            key = (piece.source.form.converted, slot.quant.name)
            loss = self.found.setdefault(key, _Loss())
            loss.matrices.add(piece.source.tensor)
            loss.changed += changed
            loss.total += total
            if slot.quant.bits:
                self._add_rounded(slot, changed, total)

    def sample(self, slot: WeightSlot, rows: HostTensor) -> None:
        """Rows that a sink has rounded to the codes of `slot`."""
        if not self.with_rounding:
            return
        sampled = _sample_of(rows)
        try:
            codes = quantize_rows(slot, sampled)
        except KernelError:  # the sink is torch's, and there are no C++ kernels
            return
        before = _values(sampled)
        error = _coded_values(codes, slot.quant)[:, : slot.cols]
        error -= before
        weight = rows.shape[0] / sampled.shape[0]
        changed, total = (weight * float(np.vdot(x, x)) for x in (error, before))
        with self.lock:
            self._add_rounded(slot, changed, total)

    def _add_rounded(self, slot: WeightSlot, changed: float, total: float) -> None:
        form = "fp8" if slot.quant.is_float else f"int{slot.quant.bits}"
        loss = self.rounded.setdefault((form, slot.name), _Loss())
        loss.changed += changed
        loss.total += total

    def rounding(self) -> RoundingLoss | None:
        """What codes that were made here lose; None: none were."""
        if not self.rounded:
            return None
        by_bits: dict[str, _Loss] = {}
        for (bits, _), loss in self.rounded.items():
            sums = by_bits.setdefault(bits, _Loss())
            sums.changed += loss.changed
            sums.total += loss.total
        (_, worst), most = max(self.rounded.items(), key=lambda item: item[1].share)
        shares = {bits: loss.share for bits, loss in sorted(by_bits.items())}
        return RoundingLoss(shares, worst, most.share)

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each kind of conversion."""
        return tuple(
            f"{_converted(key, len(loss.matrices))}; relative squared error {loss.share:.2g}"
            for key, loss in sorted(self.found.items())
        )


def planned_conversions(slots: Sequence[WeightSlot]) -> tuple[str, ...]:
    """The same sentences from the forms alone, without what it cost."""
    matrices: dict[tuple[str, str], set[str]] = {}
    for slot in slots:
        for index, source in enumerate(slot.sources):
            form = slot.form(index)
            is_asked = slot.stored is not None and not slot.stored.bits and slot.quant.bits
            if form is not None and form.converted and not is_asked:
                key = (form.converted, slot.quant.name)
                matrices.setdefault(key, set()).add(source.tensor)
    return tuple(
        f"{_converted(key, len(names))}; what that costs is measured when they are packed"
        for key, names in sorted(matrices.items())
    )


def _converted(key: tuple[str, str], count: int) -> str:
    plural = "matrices are" if count > 1 else "matrix is"
    return f"{count} {plural} stored as {key[0]}, for which there is no kernel: kept as {key[1]}"


def put_piece(
    slot: WeightSlot, piece: CodePiece, maps: Maps, sink: WeightSink, losses: Losses
) -> None:
    """Reads a piece and packs it. Raises WeightsError for scales that are not finite."""
    with np.errstate(all="ignore"):  # what is not finite is told of below
        rows = piece.source.read(piece.first_row, piece.num_rows, maps)
    if isinstance(rows, StoredRows) and rows.is_float and not slot.quant.is_float:
        _require_finite(piece, rows.scales)
        floats = host_tensor(_fp8_values(piece.source.form, rows))
        sink.put(slot, piece.slot_row, floats)
        if slot.quant.bits:
            losses.sample(slot, floats)
        return
    if isinstance(rows, StoredRows):
        _require_finite(piece, rows.scales)
        sink.put_codes(slot, piece.slot_row, fitted(slot, rows))
        return
    is_converted = bool(piece.source.form.converted)
    if slot.stored is not None and not slot.stored.bits:  # floating point: the sink rounds it
        if is_converted and not slot.quant.bits:
            values = _values(rows)
            _require_finite(piece, values)
            losses.add(slot, piece, values, _as_kept(values, slot.quant.dtype))
        sink.put(slot, piece.slot_row, rows)
        if slot.quant.bits:
            losses.sample(slot, rows)
        return
    values = _values(rows)
    _require_finite(piece, values)
    codes = rounded_to_int8(values, slot.quant.group_size, wide=slot.quant.wide_scales)
    losses.add(slot, piece, values, row_values(codes, slot.quant)[:, : slot.cols])
    sink.put_codes(slot, piece.slot_row, codes)


def fitted(slot: WeightSlot, rows: StoredRows) -> CodeRows:
    """The rows as the slot has them; no value changes.

    A scale that holds for more columns than the slot's groups have is repeated; 4 bits may become
    8, whose zero point is the middle.
    """
    quant, middle = slot.quant, 0 if rows.is_float else 1 << rows.bits - 1
    groups = -(-slot.cols // quant.group_size)
    scales, zeros = rows.scales, rows.zeros
    if scales.shape[1] != groups:
        repeats = -(-groups // scales.shape[1])
        scales = np.repeat(scales, repeats, axis=1)[:, :groups]
        zeros = None if zeros is None else np.repeat(zeros, repeats, axis=1)[:, :groups]
    padded = np.full((len(rows.codes), groups * quant.group_size), middle, np.uint8)
    padded[:, : slot.cols] = rows.codes
    if quant.bits == rows.bits and quant.symmetric == (zeros is None):
        return CodeRows(padded, scales, zeros)
    each = middle if zeros is None else np.repeat(zeros, quant.group_size, axis=1)
    return CodeRows((padded - each + np.uint8(_MIDDLE)).astype(np.uint8), scales)


def _fp8_values(form: CodesForm, rows: StoredRows) -> NDArray[np.float32]:
    """What rows of FP8 stand for, [n, cols]."""
    num_columns = rows.codes.shape[1]
    scales = np.repeat(rows.scales, group_size_of(form, num_columns), axis=1)
    result: NDArray[np.float32] = e4m3_values()[rows.codes] * scales[:, :num_columns]
    return result


def rounded_to_int8(
    values: NDArray[np.float32], group_size: int, *, wide: bool = False
) -> CodeRows:
    """[n, cols] to nearest, symmetric around 128; a scale is the group's largest value / 127.

    Scales are rounded to bfloat16 unless `wide`, before the codes are chosen.
    """
    num_rows, cols = values.shape
    groups = -(-cols // group_size)
    if groups * group_size != cols:
        values = np.pad(values, ((0, 0), (0, groups * group_size - cols)))
    grouped = values.reshape(num_rows, groups, group_size)
    scales = np.maximum(grouped.max(axis=2), -grouped.min(axis=2)) / np.float32(_LARGEST)
    if not wide:
        scales = nearest_bfloat16(scales)
    divisors = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(grouped / divisors[:, :, None])
    np.clip(codes, -_MIDDLE, _LARGEST, out=codes)
    unsigned = (codes + np.float32(_MIDDLE)).astype(np.uint8)
    return CodeRows(unsigned.reshape(num_rows, -1), scales)


def nearest_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to bfloat16, ties to even; finite values only."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return widened(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))


def _as_kept(values: NDArray[np.float32], dtype: DType) -> NDArray[np.float32]:
    if dtype is DType.BFLOAT16:
        return nearest_bfloat16(values)
    return values if dtype is DType.FLOAT32 else values.astype(np.float16).astype(np.float32)


def _coded_values(rows: CodeRows, quant: QuantSpec) -> NDArray[np.float32]:
    """As `row_values`, in half of its time: nothing is repeated."""
    num_rows, groups = rows.scales.shape
    codes = rows.codes.reshape(num_rows, groups, quant.group_size)
    if quant.is_float:
        grouped = e4m3_values()[codes]
    else:
        grouped = codes.astype(np.float32)
        grouped -= 1 << quant.bits - 1 if rows.zeros is None else rows.zeros[:, :, None]
    grouped *= rows.scales[:, :, None]
    values: NDArray[np.float32] = grouped.reshape(num_rows, -1)
    return values


def _sample_of(rows: HostTensor) -> HostTensor:
    """Some of the rows, evenly spread."""
    num_rows = rows.shape[0]
    count = min(num_rows, max(LEAST_SAMPLE, num_rows // SAMPLE_STRIDE))
    chosen = (2 * np.arange(count) + 1) * num_rows // (2 * count)
    data = rows.data.reshape(num_rows, -1)[chosen]
    return HostTensor(data.reshape(-1), rows.dtype, (count, *rows.shape[1:]))


def _values(rows: HostTensor) -> NDArray[np.float32]:
    data = np.ascontiguousarray(rows.data)
    if rows.dtype is DType.BFLOAT16:
        values = widened(data.view(np.uint16))
    else:
        name = np.float32 if rows.dtype is DType.FLOAT32 else np.float16
        values = data.view(name).astype(np.float32)
    return values.reshape(rows.shape)


def _require_finite(piece: CodePiece, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise WeightsError(
            f"{piece.path.name}: the matrix {piece.source.tensor} has values that are not finite",
            hint="the file is damaged, or was quantized from weights that were",
        )


def form_name(form: CodesForm) -> str:
    """For messages, such as "gptq, 4 bits, groups of 128"."""
    groups = f"groups of {form.group_size}" if form.group_size else "a scale a row"
    return f"{form.format}, {form.bits} bits, {groups}"
