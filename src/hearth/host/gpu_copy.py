"""How fast memory is copied to a GPU and back, by the driver's own library (libcuda) alone.

Copies of COPY_BYTES between pinned memory and the card, through the card's primary context, the one
that other libraries of this process share. Nothing raises: what cannot be measured is said.
Functions and types: CUDA Driver API reference, sections 6.2 to 6.14.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hearth.core.units import MIB
from hearth.host.speed import Samples, samples_of

LIBRARY = "libcuda.so.1"
COPY_BYTES = 64 * MIB
NUM_COPIES = 8  # that are timed, each way
MOST_S = 0.5  # of one way
MOST_GPUS = 64
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class GpuCopy:
    """Bytes a second between pinned memory and a card; None, and `why`, where not measured.

    `index`: as CUDA counts the cards, which CUDA_VISIBLE_DEVICES may change.
    """

    index: int
    name: str
    to_gpu_bytes_s: Samples | None = None
    from_gpu_bytes_s: Samples | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class GpuCopies:
    """All cards. `why`: there is none, or the driver does not answer."""

    cards: tuple[GpuCopy, ...]
    why: str = ""


class _CudaError(Exception):
    """What the driver's library refused."""


def measure_gpu_copies(
    library: str = LIBRARY, clock: Callable[[], float] = time.perf_counter
) -> GpuCopies:
    """Some tenth of a second for each card."""
    try:
        cuda = _Cuda(ctypes.CDLL(library))
    except (OSError, AttributeError) as error:
        return GpuCopies((), f"not measured: {error}")
    try:
        cuda.call("cuInit", 0)
        count = ctypes.c_int()
        cuda.call("cuDeviceGetCount", ctypes.byref(count))
    except _CudaError as error:
        return GpuCopies((), f"not measured: {error}")
    if count.value < 1:
        return GpuCopies((), "not measured: the driver shows no card")
    return GpuCopies(tuple(_measure(cuda, i, clock) for i in range(min(count.value, MOST_GPUS))))


class _Cuda:
    """The functions that are used, by the names of their present versions."""

    _NAMES = (
        "cuInit",
        "cuGetErrorString",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxRelease_v2",
        "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent_v2",
        "cuCtxSynchronize",
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuMemHostAlloc",
        "cuMemFreeHost",
        "cuMemcpyHtoD_v2",
        "cuMemcpyDtoH_v2",
    )

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises AttributeError for a library without one of the functions."""
        self._functions = {name: getattr(library, name) for name in self._NAMES}
        for name, arguments in _argument_types().items():
            self._functions[name].argtypes = arguments

    def call(self, name: str, *arguments: object) -> None:
        """Raises _CudaError with the driver's own words."""
        code = self._functions[name](*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._functions["cuGetErrorString"](code, ctypes.byref(text))
        said = (text.value or b"no text").decode("utf-8", "replace")
        raise _CudaError(f"{name}: {said} (error {code})")


def _argument_types() -> dict[str, tuple[Any, ...]]:
    """Of the functions that are called with numbers, which are wider than C's int."""
    size, pointer, card = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64
    return {
        "cuInit": (ctypes.c_uint,),
        "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
        "cuCtxPushCurrent_v2": (pointer,),
        "cuMemFree_v2": (card,),
        "cuMemFreeHost": (pointer,),
        "cuMemcpyHtoD_v2": (card, pointer, size),
        "cuMemcpyDtoH_v2": (pointer, card, size),
    }


def _measure(cuda: _Cuda, index: int, clock: Callable[[], float]) -> GpuCopy:
    name = f"GPU {index}"
    try:
        device = ctypes.c_int()
        cuda.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        text = ctypes.create_string_buffer(_NAME_BYTES)
        cuda.call("cuDeviceGetName", text, ctypes.c_int(_NAME_BYTES), device)
        name = text.value.decode("utf-8", "replace")
        with _context(cuda, device.value), _host(cuda) as host, _card(cuda) as card:
            to_gpu = _rates(cuda, clock, "cuMemcpyHtoD_v2", card, host)
            from_gpu = _rates(cuda, clock, "cuMemcpyDtoH_v2", host, card)
    except _CudaError as error:
        return GpuCopy(index, name, why=f"not measured: {error}")
    return GpuCopy(index, name, to_gpu, from_gpu)


def _rates(cuda: _Cuda, clock: Callable[[], float], copy: str, target: int, source: int) -> Samples:
    """Copies of the same bytes; the first, in which memory is mapped, is not counted."""
    rates: list[float] = []
    begin = clock()
    for number in range(NUM_COPIES + 1):
        before = clock()
        cuda.call(copy, target, source, COPY_BYTES)
        cuda.call("cuCtxSynchronize")
        seconds = clock() - before
        if number > 0:
            rates.append(COPY_BYTES / max(seconds, 1e-9))
        if rates and clock() - begin > MOST_S:
            break
    return samples_of(rates)


@contextmanager
def _context(cuda: _Cuda, device: int) -> Iterator[None]:
    context = ctypes.c_void_p()
    cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(device))
    try:
        cuda.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            cuda.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        cuda.call("cuDevicePrimaryCtxRelease_v2", device)


@contextmanager
def _host(cuda: _Cuda) -> Iterator[int]:
    """Pinned memory."""
    address = ctypes.c_void_p()
    cuda.call(
        "cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(COPY_BYTES), ctypes.c_uint(0)
    )
    assert address.value, "the driver said that it had allocated"
    try:
        ctypes.memset(address.value, 1, COPY_BYTES)
        yield address.value
    finally:
        cuda.call("cuMemFreeHost", address)


@contextmanager
def _card(cuda: _Cuda) -> Iterator[int]:
    """Memory of the card."""
    address = ctypes.c_uint64()
    cuda.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(COPY_BYTES))
    try:
        yield address.value
    finally:
        cuda.call("cuMemFree_v2", address)
