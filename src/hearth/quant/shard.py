"""One file of a checkpoint, with the tensors that a recipe names turned into codes.

Read by memory map in pieces whose pages are dropped behind, written at known places: beside the
file that comes and the one that goes, a few pieces are in memory, however large the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError, WeightsError
from hearth.core.spec import DType, WeightSlot
from hearth.kernels.cpu.quantize import quantize_rows
from hearth.kernels.packing import CodeRows, HostTensor
from hearth.models.safetensors_file import TensorEntry, read_header, read_metadata
from hearth.models.safetensors_writer import SafetensorsWriter, TensorSpec
from hearth.models.weight_plan import READABLE
from hearth.models.weights import drop_pages, map_file
from hearth.quant.recipe import Recipe
from hearth.quant.rows import whole_row_codes

PIECE_BYTES = 8 << 20
INT8, FP8 = "I8", "F8_E4M3"  # types of matrices with a scale a row
_WORD_BITS = 32
_ROWS = 64  # pieces are of whole words of packed zero points, and of whole panels
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ConvertedShard:
    """What came of a file.

    `tensors`: all that were written, with their bytes; `coded` and `plain`: the source's matrices.
    """

    tensors: dict[str, int]
    coded: dict[str, WeightSlot]
    plain: tuple[str, ...]


def convert_shard(
    source: Path,
    target: Path,
    recipe: Recipe,
    metadata: dict[str, str],
    on_bytes: Progress,
    num_threads: int = 1,
    left_out: Collection[str] = (),
) -> ConvertedShard:
    """Writes `target`, whole or not at all; `on_bytes(n)`: n more bytes of the source are done.

    `left_out`: tensors that go elsewhere.

    Raises WeightsError for a source that is damaged or has values that are not finite,
    CapacityError for a full disk, HearthError where the target cannot be written.
    """
    entries = [e for e in read_header(source).values() if e.name not in left_out]
    coded = {e.name: slot for e in entries if (slot := recipe.slot_of(e.name, e.shape)) is not None}
    for name in coded:
        _check_dtype(next(e for e in entries if e.name == name))
    specs = [spec for e in entries for spec in _specs_of(e, coded.get(e.name), recipe)]
    kept = {k: v for k, v in read_metadata(source).items() if k not in metadata}
    mapped = map_file(source) if entries else None
    with SafetensorsWriter(target, specs, {**kept, **metadata}) as writer:
        sink = CodesWriter(writer, per_row=recipe.per_row)
        tasks = [_Task(e, coded.get(e.name), mapped, sink, on_bytes) for e in entries]
        _run(tasks, num_threads)
    plain = tuple(e.name for e in entries if len(e.shape) > 1 and e.name not in coded)
    return ConvertedShard({spec.name: spec.num_bytes for spec in specs}, coded, plain)


def coded_specs(
    tensor: str, slot: WeightSlot, rows: int, *, per_row: bool = False
) -> list[TensorSpec]:
    """The tensors that take the place of a coded matrix of `rows` rows."""
    if per_row:
        dtype = FP8 if slot.quant.is_float else INT8
        return [
            TensorSpec(tensor, dtype, (rows, slot.cols)),
            TensorSpec(f"{tensor}_scale", "BF16", (rows, 1)),
        ]
    quant, groups = slot.quant, slot.cols // slot.quant.group_size
    per_word = _WORD_BITS // quant.bits
    specs = [
        TensorSpec(f"{tensor}_packed", "I32", (rows, -(-slot.cols // per_word))),
        TensorSpec(f"{tensor}_scale", "BF16", (rows, groups)),
        TensorSpec(f"{tensor}_shape", "I64", (2,)),
    ]
    if not quant.symmetric:
        shape = (-(-rows // per_word), groups)
        specs.append(TensorSpec(f"{tensor}_zero_point", "I32", shape))
    return specs


def _specs_of(entry: TensorEntry, slot: WeightSlot | None, recipe: Recipe) -> list[TensorSpec]:
    if slot is None:
        return [TensorSpec(entry.name, entry.dtype, entry.shape)]
    return coded_specs(entry.name, slot, entry.shape[0], per_row=recipe.per_row)


def _check_dtype(entry: TensorEntry) -> None:
    if entry.dtype not in READABLE:
        raise WeightsError(
            f"{entry.path.name}: tensor {entry.name}: dtype is {entry.dtype}; permitted: "
            f"{', '.join(READABLE)}",
            hint="it seems to be quantized already",
        )


@dataclass(frozen=True, slots=True)
class CodesWriter:
    """Writes matrices as codes into the tensors that `coded_specs` names."""

    writer: SafetensorsWriter
    per_row: bool = False

    def write(self, tensor: str, slot: WeightSlot, rows: CodeRows, first: int = 0) -> None:
        """Rows from `first` on, a multiple of a word's zero points. Raises as the writer does."""
        bits, scales = slot.quant.bits, (rows.scales.view(np.uint32) >> 16).astype(np.uint16)
        if self.per_row:
            middle = np.uint8(0 if slot.quant.is_float else 128)
            codes = (rows.codes[:, : slot.cols] - middle).view(np.int8)
            self.writer.write(tensor, codes, first * slot.cols)
        else:
            packed = packed_columns(rows.codes, bits)
            self.writer.write(f"{tensor}_packed", packed, first * packed.shape[1] * 4)
        self.writer.write(f"{tensor}_scale", scales, first * scales.shape[1] * 2)
        if rows.zeros is not None:
            words = packed_columns(np.ascontiguousarray(rows.zeros.T), bits).T
            offset = first * bits // _WORD_BITS * words.shape[1] * 4
            self.writer.write(f"{tensor}_zero_point", np.ascontiguousarray(words), offset)

    def finish(self, tensor: str, shape: tuple[int, int]) -> None:
        """Once for each matrix, of this shape."""
        if not self.per_row:
            self.writer.write(f"{tensor}_shape", np.array(shape, np.int64))


@dataclass(frozen=True, slots=True)
class _Task:
    """One tensor of the source."""

    entry: TensorEntry
    slot: WeightSlot | None
    mapped: mmap.mmap | None
    sink: CodesWriter
    on_bytes: Progress

    def run(self) -> None:
        if self.mapped is None or self.entry.begin == self.entry.end:
            return
        if self.slot is None:
            self._copy(self.mapped)
        else:
            self._code(self.slot, self.mapped)

    def _copy(self, mapped: mmap.mmap) -> None:
        entry = self.entry
        for begin in range(entry.begin, entry.end, PIECE_BYTES):
            count = min(PIECE_BYTES, entry.end - begin)
            self.sink.writer.write(entry.name, _view(mapped, begin, count), begin - entry.begin)
            drop_pages(mapped, begin, count)
            self.on_bytes(count)

    def _code(self, slot: WeightSlot, mapped: mmap.mmap) -> None:
        entry, dtype = self.entry, READABLE[self.entry.dtype]
        rows, cols = entry.shape
        row_bytes = cols * dtype.num_bytes
        step = max(_ROWS, PIECE_BYTES // row_bytes // _ROWS * _ROWS)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            begin = entry.begin + first * row_bytes
            data = _view(mapped, begin, count * row_bytes)
            self.sink.write(entry.name, slot, self._quantized(slot, data, dtype, count), first)
            drop_pages(mapped, begin, count * row_bytes)
            self.on_bytes(count * row_bytes)
        self.sink.finish(entry.name, (rows, cols))

    def _quantized(
        self, slot: WeightSlot, data: NDArray[np.uint8], dtype: DType, count: int
    ) -> CodeRows:
        if data.ctypes.data % dtype.num_bytes:
            data = data.copy()
        try:
            if self.sink.per_row:
                return whole_row_codes(slot, HostTensor(data, dtype, (count, slot.cols)))
            return quantize_rows(slot, HostTensor(data, dtype, (count, slot.cols)))
        except KernelError as error:
            raise WeightsError(
                f"{self.entry.path.name}: tensor {self.entry.name}: {error.message}",
                hint="the weights are damaged: fetch the file again, or ask the model's owner",
            ) from error


def packed_columns(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Codes of 4 or 8 bits in words of 32, the first in the lowest bits, [n, ceil(cols / word)]."""
    per_word = _WORD_BITS // bits
    missing = -codes.shape[1] % per_word
    if missing:
        codes = np.pad(codes, ((0, 0), (0, missing)))
    if bits == 4:
        codes = np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(codes).view("<u4")


def _view(mapped: mmap.mmap, begin: int, num_bytes: int) -> NDArray[np.uint8]:
    return np.frombuffer(mapped, np.uint8, num_bytes, begin)


def _run(tasks: list[_Task], num_threads: int) -> None:
    """The largest first; the first failure cancels what has not begun and is raised."""
    ordered = sorted(tasks, key=lambda task: task.entry.begin - task.entry.end)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hearth-quantize") as pool:
        futures = [pool.submit(task.run) for task in ordered]
        done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        for future in pending:
            future.cancel()
        for future in done:
            future.result()
