"""Weights of a program in one arena on the device, filled row by row.

Dense rows are brought to the model's float type on the host, in the copy to a pinned buffer, and
go from there to the device on a stream of their own, while the next rows fill the other buffer.
Codes are laid out as `layout` says on the device. Slots whose codes are made while loading get them
from the rule of the CPU's kernels, so that both serve the same weights.

`put` and `put_codes` may be called by several threads; `finish` by the one that is done.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.errors import CapacityError, KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.core.units import ceil_div, format_bytes
from hearth.kernels.packing import CodeRows, HostTensor
from hearth.kernels.reference.quantize import coded_weights
from hearth.kernels.reference.weights import torch_dtype
from hearth.kernels.triton.layout import (
    CodedMatrix,
    DenseMatrix,
    Matrix,
    pack_words,
    words_a_row,
)
from hearth.kernels.triton.memory import (
    STAGING_BYTES,
    weight_places,
)

_NUM_STAGINGS = 2
# Random codes of 4 bits, uniform around the middle one, have this standard deviation; of 8 bits
# and of FP8 see `_random_codes`.
_SPREAD_OF_4_BITS = 4.61
_SPREAD_OF_8_BITS = 32.0

Quantizer: TypeAlias = Callable[[WeightSlot, HostTensor], CodeRows]


@dataclass(frozen=True, slots=True)
class QuantizerChoice:
    """What makes codes of rows while loading, and why."""

    quantize: Quantizer
    reason: str


def choose_quantizer() -> QuantizerChoice:
    """The C++ kernels' search where they are built, else the same rule in torch."""
    try:
        from hearth.kernels.cpu.library import load_library
        from hearth.kernels.cpu.quantize import quantize_rows

        load_library()
    except (KernelError, ImportError) as error:
        return QuantizerChoice(_reference_rows, f"the rule in torch, slower: {error}")
    return QuantizerChoice(quantize_rows, "the search of the C++ kernels: the CPU's codes")


def _reference_rows(slot: WeightSlot, tensor: HostTensor) -> CodeRows:
    codes = coded_weights(_host_rows(tensor), slot.quant)
    if not codes.scales.isfinite().all():
        raise KernelError(f"{slot.name} cannot be quantized: it has values that are not finite")
    zeros = None if slot.quant.symmetric else codes.zeros.numpy()
    return CodeRows(codes.codes.numpy(), codes.scales.numpy(), zeros)


class _Staging:
    """A buffer that rows pass through; free again once its last copy is done."""

    def __init__(self, num_bytes: int, *, pinned: bool) -> None:
        self.buffer = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the device has read it."""
        if self._copied is not None:
            self._copied.synchronize()

    def mark(self, stream: torch.cuda.Stream) -> None:
        """The copies so far are those to wait for."""
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types
        self._copied.record(stream)


class TritonWeights:
    """A `WeightSink`: `matrix(name)` and `vector(name)` are what kernels take."""

    def __init__(
        self,
        program: StepProgram,
        dtype: DType,
        device: torch.device,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        """`dtype` of dense matrices. Raises CapacityError where the device has no room."""
        self._slots = {slot.name: slot for slot in program.slots}
        self._dtype = dtype
        self._device = device
        self._places, num_bytes = weight_places(program.slots, dtype)
        self._arena = _allocate(num_bytes, device)
        is_cuda = device.type == "cuda"
        # torch's streams have no types.
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._staging_bytes = staging_bytes
        self._stagings: queue.SimpleQueue[_Staging] = queue.SimpleQueue()
        for _ in range(_NUM_STAGINGS):
            self._stagings.put(_Staging(staging_bytes, pinned=is_cuda))
        self._is_finished = False
        self.quantizer = choose_quantizer()

    @property
    def num_bytes(self) -> int:
        """Of the arena."""
        return self._arena.numel()

    @property
    def dtype(self) -> DType:
        """Of dense matrices."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the arena is."""
        return self._device

    def matrix(self, name: str) -> Matrix:
        """A linear slot or a table; views of the arena."""
        slot = self._slot(name)
        place, quant, rows = self._places[name], slot.quant, slot.total_rows
        if not quant.bits:
            data = self._view(place.data, torch_dtype(self._dtype), (rows, slot.cols))
            return DenseMatrix(data)
        groups = ceil_div(slot.cols, quant.group_size)
        codes = (
            self._view(place.data, torch.int32, (words_a_row(slot.cols), rows))
            if quant.bits == 4
            else self._view(place.data, torch.uint8, (rows, slot.cols))
        )
        scales = self._view(place.scales, torch.float32, (groups, rows))
        zeros = None
        if place.zeros >= 0:
            zeros = self._view(place.zeros, torch.uint8, (groups, rows))
        return CodedMatrix(
            codes, scales, zeros, quant.bits, quant.group_size, slot.cols, quant.is_float
        )

    def vector(self, name: str) -> torch.Tensor:
        """[rows] float32."""
        slot = self._slot(name)
        return self._view(self._places[name].data, torch.float32, (slot.rows,))

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """See `WeightSink.put`. Raises KernelError for what float16 does not hold."""
        num_rows = tensor.shape[0]
        is_vector = slot.kind is SlotKind.VECTOR
        expected = (num_rows,) if is_vector else (num_rows, slot.cols)
        if tensor.shape != expected or first_row + num_rows > slot.total_rows:
            raise KernelError(
                f"a tensor of shape {list(tensor.shape)} does not fit rows {first_row} … of "
                f"slot {slot.name} [{slot.total_rows}, {slot.cols}]"
            )
        if slot.quant.bits and not is_vector:
            self.put_codes(slot, first_row, self.quantizer.quantize(slot, tensor))
            return
        target = self.vector(slot.name) if is_vector else self._dense(slot.name)
        source = tensor.data.reshape(num_rows, -1)
        stored = torch_dtype(tensor.dtype)
        for first, last in self._pieces(num_rows, target[:1].numel() * target.element_size()):
            with self._staged(target.dtype, (last - first, *target.shape[1:])) as staged:
                _fill_staged(staged, source[first:last], stored)
                if target.dtype is torch.float16 and not staged.isfinite().all():
                    raise KernelError(
                        f"slot {slot.name} has values beyond 65,504, the largest of float16",
                        hint="serve it on a card with bfloat16 (sm_80 or newer), or on the CPU",
                    )
                target[first_row + first : first_row + last].copy_(staged, non_blocking=True)

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        """See `WeightSink.put_codes`."""
        num_rows, groups = rows.scales.shape
        quant = slot.quant
        width = groups * quant.group_size
        if rows.codes.shape != (num_rows, width) or first_row + num_rows > slot.total_rows:
            raise KernelError(
                f"codes of shape {list(rows.codes.shape)} do not fit rows {first_row} … of slot "
                f"{slot.name} [{slot.total_rows}, {slot.cols}]"
            )
        matrix = self.matrix(slot.name)
        assert isinstance(matrix, CodedMatrix), "a slot of codes"
        zeros = rows.zeros
        if (zeros is None) != (matrix.zeros is None):
            raise KernelError(f"slot {slot.name} is {quant.name}: zero points do not fit")
        for first, last in self._pieces(num_rows, width):
            moved = self._moved(rows.codes[first:last])
            with self._on_stream():
                _lay_codes(matrix, first_row + first, moved)
        own = slice(first_row, first_row + num_rows)
        for target, values in ((matrix.scales, rows.scales), (matrix.zeros, zeros)):
            if target is None or values is None:
                continue
            for first, last in self._pieces(num_rows, groups * target.element_size()):
                moved = self._moved(values[first:last])
                with self._on_stream():
                    target[:, own][:, first:last] = moved.T

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """See `WeightSink.fill_random`: made on the device; deviation 1/√cols, biases zero."""
        generator = torch.Generator(self._device).manual_seed(seed)
        with self._on_stream():
            if slot.kind is SlotKind.VECTOR:
                self.vector(slot.name).fill_(0.0 if slot.name.endswith(".bias") else 1.0)
                return
            matrix = self.matrix(slot.name)
            if isinstance(matrix, DenseMatrix):
                _fill_normal(matrix.data, slot.cols**-0.5, generator)
            else:
                _fill_codes(matrix, generator)

    def finish(self) -> None:
        """Waits until everything lies on the device and gives the buffers back; nothing follows."""
        for _ in range(_NUM_STAGINGS):
            self._stagings.get().wait()
        if self._stream is not None:
            self._stream.synchronize()
        self._is_finished = True

    def _dense(self, name: str) -> torch.Tensor:
        matrix = self.matrix(name)
        assert isinstance(matrix, DenseMatrix), "a slot without codes"
        return matrix.data

    def _pieces(self, num_rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Rows first … last − 1 that fit a buffer together. Raises KernelError: not even one."""
        if self._is_finished:
            raise KernelError("the weights are complete: nothing can be put any more")
        count = self._staging_bytes // max(1, row_bytes)
        if not count:
            raise KernelError(f"a row of {row_bytes:,} bytes exceeds the buffers of the loader")
        for first in range(0, num_rows, count):
            yield first, min(num_rows, first + count)

    def _moved(self, rows: NDArray[np.uint8] | NDArray[np.float32]) -> torch.Tensor:
        """Rows that fit a buffer, on the device."""
        dtype = torch.uint8 if rows.dtype == np.uint8 else torch.float32
        with self._staged(dtype, rows.shape) as staged:
            np.copyto(staged.numpy(), rows)
            return staged.to(self._device, non_blocking=True, copy=True)

    @contextmanager
    def _staged(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """A piece of a pinned buffer; what is copied from it within goes to the copy stream."""
        staging = self._stagings.get()
        try:
            staging.wait()
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            with self._on_stream():
                yield staging.buffer[:num_bytes].view(dtype).view(shape)
                if self._stream is not None:
                    staging.mark(self._stream)
        finally:
            self._stagings.put(staging)

    def _on_stream(self) -> torch.cuda.StreamContext | nullcontext[None]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        return self._arena[offset : offset + num_bytes].view(dtype).view(shape)

    def _slot(self, name: str) -> WeightSlot:
        try:
            return self._slots[name]
        except KeyError:
            raise KernelError(f"the program has no weight slot {name}") from None


def _allocate(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Zeroed. Raises CapacityError."""
    try:
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        message = f"cannot allocate {format_bytes(num_bytes)} for weights on {device}"
        raise CapacityError(message, hint="free memory on the device, or --quantize") from error


def _fill_staged(staged: torch.Tensor, source: NDArray[np.uint8], stored: torch.dtype) -> None:
    """Rows of bytes, elements of type `stored`, as elements of the buffer's type.

    numpy takes read-only memory maps, which torch warns of, and lets other threads run meanwhile.
    """
    if stored is staged.dtype:
        np.copyto(staged.view(torch.uint8).numpy().reshape(source.shape), source)
        return
    values = torch.from_numpy(np.array(source)).view(stored)
    staged.copy_(values.reshape(staged.shape))


def _host_rows(tensor: HostTensor) -> torch.Tensor:
    """A copy of a tensor, on the host."""
    raw = torch.from_numpy(np.array(tensor.data, np.uint8))
    return raw.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def _lay_codes(matrix: CodedMatrix, first_row: int, codes: torch.Tensor) -> None:
    """Writes codes [n, padded cols], on the device, to rows `first_row` …; columns are padded."""
    rows = slice(first_row, first_row + codes.shape[0])
    if matrix.bits == 8:
        matrix.codes[rows] = codes[:, : matrix.cols]
        return
    matrix.codes[:, rows] = pack_words(codes[:, : matrix.cols])


def _fill_normal(out: torch.Tensor, deviation: float, generator: torch.Generator) -> None:
    """Row blocks of a matrix, so that float32 is there for some at a time only."""
    rows = max(1, STAGING_BYTES // (4 * out.shape[1]))
    for part in torch.split(out, rows):
        values = torch.empty(part.shape, dtype=torch.float32, device=out.device)
        part.copy_(values.normal_(0.0, deviation, generator=generator))


def _fill_codes(matrix: CodedMatrix, generator: torch.Generator) -> None:
    """Codes at random, with scales that give deviation 1/√cols; zero points are the middle code."""
    deviation = matrix.cols**-0.5
    if matrix.is_float:
        rows = max(1, STAGING_BYTES // (4 * matrix.cols))
        for part in torch.split(matrix.codes, rows):
            values = torch.empty(part.shape, dtype=torch.float32, device=part.device)
            values.normal_(0.0, 64.0, generator=generator).clamp_(-448.0, 448.0)
            part.copy_(values.to(torch.float8_e4m3fn).view(torch.uint8))
        spread = 64.0
    elif matrix.bits == 4:
        rows = max(1, STAGING_BYTES // (8 * matrix.cols))
        for first in range(0, matrix.codes.shape[1], rows):
            count = min(rows, matrix.codes.shape[1] - first)
            codes = torch.empty((count, matrix.cols), dtype=torch.uint8, device=matrix.codes.device)
            _lay_codes(matrix, first, codes.random_(0, 16, generator=generator))
        spread = _SPREAD_OF_4_BITS
    else:
        matrix.codes.random_(128 - 55, 128 + 56, generator=generator)
        spread = _SPREAD_OF_8_BITS
    matrix.scales.fill_(deviation / spread)
    if matrix.zeros is not None:
        matrix.zeros.fill_(1 << matrix.bits - 1)
