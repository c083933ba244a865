"""Streams checkpoint tensors into a `WeightSink`, slot by slot, by memory map.

Everything is checked against the slots before the first byte is packed. Tensors are handed over
in pieces of at most PIECE_BYTES, and a piece's mapped pages are dropped when it has been packed,
so that beside the packed weights no second copy stays resident (the page cache may keep the file).
Slots are packed by several threads, the pieces of one slot by one thread, in order.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import ConfigError, WeightsError
from hearth.core.quality import RoundingLoss
from hearth.core.spec import DType, WeightSlot
from hearth.host.memory import read_memory
from hearth.kernels.packing import HostTensor, WeightSink, arena_bytes
from hearth.models.formats.matrix import CodePiece
from hearth.models.formats.placing import Losses, put_piece
from hearth.models.loader import LoadedSpec
from hearth.models.read_ahead import ReadAhead, window_bytes
from hearth.models.safetensors_file import Checkpoint, TensorEntry, read_checkpoint
from hearth.models.weight_plan import (
    PIECE_BYTES,
    TIED_HEAD,
    AnyPiece,
    Piece,
    SlotPlan,
    WeightPlan,
    plan_weights,
)

LOAD_FORMATS = ("auto", "safetensors", "dummy")
MAX_THREADS = 8
# Around a page that is touched Linux maps what is in the page cache: 64 KiB, since 6.18 the whole
# large folio, which has up to 2 MiB.
_FAULT_AROUND_BYTES = 2 << 20

Progress = Callable[[int, int], None]
Task = Callable[[], None]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded, from which files; `warnings` name tensors that were left unread."""

    num_bytes: int
    num_tensors: int
    warnings: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    rounding: RoundingLoss | None = None  # where floating point became codes


def load_weights(
    loaded: LoadedSpec,
    sink: WeightSink,
    load_format: str = "auto",
    seed: int = 0,
    on_progress: Progress | None = None,
) -> LoadReport:
    """Fills every slot of the program.

    `load_format`: auto and safetensors read the model directory, dummy fills in random weights
    from `seed`. `on_progress(done, total)` is called in bytes, never by two threads at once.
    Raises ConfigError (load_format), WeightsError (files), and what the sink raises.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(
            f"--load-format is {load_format!r}; permitted: {', '.join(LOAD_FORMATS)}",
            param="load_format",
        )
    slots = loaded.program.slots
    if load_format == "dummy":
        total = sum(_slot_bytes(slot) for slot in slots)
        counter = _Counter(total, on_progress)
        _run([_fill_task(slot, sink, seed + i, counter) for i, slot in enumerate(slots)])
        return LoadReport(total, 0)
    checkpoint = read_checkpoint(loaded.path)
    plan = plan_weights(loaded.spec, checkpoint)
    maps = {path: map_file(path) for path in {e.path for e in checkpoint.tensors.values()}}
    _check_tied_head(loaded, checkpoint, maps)
    load = _Load(sink, maps, _Counter(plan.num_bytes, on_progress), Losses(with_rounding=True))
    with _read_ahead(loaded, plan) as ahead:
        _run([_pack_task(slot_plan, load, ahead) for slot_plan in plan.slots])
    warnings = (*plan.warnings, *load.losses.warnings())
    rounding = load.losses.rounding()
    return LoadReport(plan.num_bytes, plan.num_tensors, warnings, checkpoint.files, rounding)


def check_weights(loaded: LoadedSpec) -> LoadReport:
    """What `load_weights` would report, from the files' headers alone.

    For weights that were packed before. Raises WeightsError as `load_weights` does, except for
    what only the tensors' bytes could tell.
    """
    checkpoint = read_checkpoint(loaded.path)
    plan = plan_weights(loaded.spec, checkpoint)
    warnings = (*plan.warnings, *plan.conversions)
    return LoadReport(plan.num_bytes, plan.num_tensors, warnings, checkpoint.files)


@dataclass(slots=True)
class _Counter:
    """Bytes done, reported under a lock."""

    total: int
    on_progress: Progress | None
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, num_bytes: int) -> None:
        with self.lock:
            self.done += num_bytes
            if self.on_progress is not None:
                self.on_progress(self.done, self.total)


def _run(tasks: Sequence[Task]) -> None:
    """Runs the tasks by threads; the first failure cancels what has not begun and is raised."""
    num_threads = min(MAX_THREADS, len(os.sched_getaffinity(0)), max(1, len(tasks)))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hearth-load") as pool:
        futures = [pool.submit(task) for task in tasks]
        done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        for future in pending:
            future.cancel()
        for future in done:
            future.result()


def _fill_task(slot: WeightSlot, sink: WeightSink, seed: int, counter: _Counter) -> Task:
    def task() -> None:
        sink.fill_random(slot, seed)
        counter.add(_slot_bytes(slot))

    return task


def _read_ahead(loaded: LoadedSpec, plan: WeightPlan) -> ReadAhead:
    """Of the pieces in the order of the tasks."""
    packed = arena_bytes(loaded.program.slots)
    window = window_bytes(read_memory().available_bytes, packed)
    return ReadAhead([piece for slot in plan.slots for piece in slot.pieces], window)


@dataclass(frozen=True, slots=True)
class _Load:
    """What the tasks of one load share."""

    sink: WeightSink
    maps: Mapping[Path, mmap.mmap]
    counter: _Counter
    losses: Losses


def _pack_task(plan: SlotPlan, load: _Load, ahead: ReadAhead) -> Task:
    def task() -> None:
        for piece in plan.pieces:
            mapped = load.maps[piece.path]
            ahead.need(piece)
            hand_over(plan.slot, piece, load.maps, load.sink, load.losses)
            touched = piece.touched
            drop_pages(mapped, touched.start, len(touched))
            ahead.packed(piece)
            load.counter.add(piece.num_bytes)

    return task


def hand_over(
    slot: WeightSlot,
    piece: AnyPiece,
    maps: Mapping[Path, mmap.mmap],
    sink: WeightSink,
    losses: Losses,
) -> None:
    """Gives a piece to the sink, as codes where it is codes; what a conversion costs is added."""
    if isinstance(piece, CodePiece):
        put_piece(slot, piece, maps, sink, losses)
    else:
        rows = _host_tensor(slot, piece, maps[piece.path])
        sink.put(slot, piece.slot_row, rows)
        if slot.quant.bits:
            losses.sample(slot, rows)


def _host_tensor(slot: WeightSlot, piece: Piece, mapped: mmap.mmap) -> HostTensor:
    """The rows of a piece, in place; a copy where the file does not align its elements.

    A slot with an offset gets float32 rows with the offset added.
    """
    data = np.frombuffer(mapped, np.uint8, piece.num_bytes, piece.begin)
    if piece.begin % piece.dtype.num_bytes:
        data = data.copy()
    if slot.offset:
        moved = elements(data, piece.dtype) + np.float32(slot.offset)
        return HostTensor(moved.view(np.uint8), DType.FLOAT32, piece.shape)
    return HostTensor(data, piece.dtype, piece.shape)


def elements(data: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    """The elements of raw bytes."""
    if dtype is DType.BFLOAT16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float32 if dtype is DType.FLOAT32 else np.float16).astype(np.float32)


def map_file(path: Path) -> mmap.mmap:
    """Maps a file for reading; unmapped when the last view of it is gone."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be mapped: {error.strerror}") from error


def drop_pages(mapped: mmap.mmap, begin: int, num_bytes: int) -> None:
    """Gives the mapped pages back; a neighbour's bytes in them are read again when needed.

    Also those that the kernel mapped around the piece: of small tensors (experts) that neighbour
    in the file and are read at other times, half would stay.
    """
    first = max(0, begin - _FAULT_AROUND_BYTES)
    start = first - first % mmap.PAGESIZE
    end = min(len(mapped), begin + num_bytes + _FAULT_AROUND_BYTES)
    mapped.madvise(mmap.MADV_DONTNEED, start, end - start)


def _check_tied_head(
    loaded: LoadedSpec, checkpoint: Checkpoint, maps: Mapping[Path, mmap.mmap]
) -> None:
    """A tied model may carry its head a second time, but not another one.

    transformers does not tie in that case, so that serving the embedding would answer otherwise.
    """
    head = checkpoint.tensors.get(TIED_HEAD)
    if not loaded.spec.tied or head is None:
        return
    slot = next(s for s in loaded.spec.slots if s.name == loaded.spec.embedding)
    embedding = checkpoint.tensors.get(slot.sources[0].tensor)
    if embedding is None or slot.stored is not None:
        return  # codes: nothing to compare a second head with
    if _is_equal(head, embedding, maps):
        return
    raise WeightsError(
        f"{head.path.name}: tensor {TIED_HEAD} differs from {embedding.name}, but "
        "tie_word_embeddings is true",
        hint="set tie_word_embeddings to false in config.json",
    )


def _is_equal(a: TensorEntry, b: TensorEntry, maps: Mapping[Path, mmap.mmap]) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    for offset in range(0, a.end - a.begin, PIECE_BYTES):
        num_bytes = min(PIECE_BYTES, a.end - a.begin - offset)
        left, right = (
            np.frombuffer(maps[entry.path], np.uint8, num_bytes, entry.begin + offset)
            for entry in (a, b)
        )
        equal = np.array_equal(left, right)
        for entry in (a, b):
            drop_pages(maps[entry.path], entry.begin + offset, num_bytes)
        if not equal:
            return False
    return True


def _slot_bytes(slot: WeightSlot) -> int:
    return slot.total_rows * slot.cols * slot.quant.dtype.num_bytes
