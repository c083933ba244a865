"""Finds, loads and checks `libhearth_cpu.so`; turns its codes into KernelError."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hearth.core.errors import CapacityError, ConfigError, KernelError
from hearth.kernels.cpu import abi

LIBRARY_NAME = "libhearth_cpu.so"
_OUT_OF_MEMORY = 2


def library_path() -> Path:
    """Where the build puts the library: beside this file."""
    return Path(__file__).parent / LIBRARY_NAME


@cache
def load_library() -> ctypes.CDLL:
    """The loaded library, with argument types declared.

    Raises KernelError when it was not built, does not load here, or is of another version.
    """
    path = library_path()
    if not path.exists():
        raise KernelError(
            "the CPU kernel library was not built with this installation",
            hint="install g++ (apt-get install g++) and install hearth again, "
            "or pip install 'hearth[torch]' to serve without it, slower",
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the CPU kernel library does not load: {error}") from error
    abi.declare(library)
    version = library.hearth_abi_version()
    if version != abi.ABI_VERSION:
        raise KernelError(
            f"the CPU kernel library has ABI version {version}, this package needs "
            f"{abi.ABI_VERSION}",
            hint="install hearth again",
        )
    return library


def runnable_isas() -> tuple[str, ...]:
    """The instruction sets that this processor and this build share, the best first."""
    names: bytes = load_library().hearth_isas()
    return tuple(names.decode().split())


def best_isa() -> str:
    """The first of `runnable_isas`."""
    return runnable_isas()[0]


def resolve_isa(asked: str) -> str:
    """The instruction set to run; "auto": the best. Raises ConfigError for one that cannot run."""
    runnable = runnable_isas()
    if asked == "auto":
        return runnable[0]
    if asked not in runnable:
        raise ConfigError(
            f"--isa (HEARTH_ISA) is {asked!r}; this processor and this build can run: "
            f"{', '.join(runnable)}",
            param="isa",
            hint="leave it out to take the best one",
        )
    return asked


def bind_threads(model: ctypes.c_void_p | None, cpus: Sequence[int]) -> None:
    """Binds thread i of a model to the logical CPU cpus[i] for good. Raises KernelError."""
    numbers = (ctypes.c_int32 * len(cpus))(*cpus)
    check(load_library().hearth_model_bind(model, numbers))


def check(code: int) -> None:
    """Raises the library's last error of this thread when `code` is not 0."""
    if code == 0:
        return
    message = load_library().hearth_last_error().decode() or f"kernel library error {code}"
    if code == _OUT_OF_MEMORY:
        raise CapacityError(message)
    raise KernelError(message)
