"""GPUs of NVIDIA, as NVML tells them.

`pynvml` is the module of the package nvidia-ml-py: a wrapper in plain Python around the library
that comes with the driver. It is imported when asked for; without it, or without a driver, the
facts say so. Every value that a card does not tell is None with NVML's own reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from hearth.host.facts.fact import Fact, unknown
from hearth.host.files import whole_number

T = TypeVar("T")

INSTALL_HINT = "pip install nvidia-ml-py"
_TOPOLOGY = {
    0: "same board",
    10: "one PCIe switch",
    20: "several PCIe switches",
    30: "one host bridge",
    40: "one NUMA node",
    50: "between NUMA nodes",
}


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    name: Fact[str]
    used_bytes: Fact[int]


@dataclass(frozen=True, slots=True)
class PcieLink:
    """`generation` and `width` now: cards that idle lower both to save power."""

    generation: Fact[int]
    width: Fact[int]
    max_generation: Fact[int]
    max_width: Fact[int]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card; `compute_capability` such as 9.0."""

    index: int
    name: Fact[str]
    total_bytes: Fact[int]
    free_bytes: Fact[int]
    compute_capability: Fact[str]
    ecc: Fact[bool]
    pcie: PcieLink
    processes: Fact[tuple[GpuProcess, ...]]


@dataclass(frozen=True, slots=True)
class GpuPair:
    """How two cards are connected."""

    first: int
    second: int
    path: Fact[str]


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """`driver_cuda`: the newest CUDA that the driver serves, such as 12.8."""

    driver: Fact[str]
    driver_cuda: Fact[str]
    gpus: Fact[tuple[Gpu, ...]]
    pairs: tuple[GpuPair, ...]


def read_gpu(nvml: ModuleType | Any | None = None) -> GpuFacts:
    """Reads the cards. `nvml`: a module like pynvml; None imports it."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return _nothing(f"NVML cannot be asked without nvidia-ml-py ({INSTALL_HINT})")
        except Exception as error:  # noqa: BLE001 -- a broken package must not end a doctor
            return _nothing(f"pynvml cannot be imported: {error}")
    api = _Nvml(nvml)
    started = api.ask("nvmlInit")
    if started.why:
        return _nothing(started.why)
    try:
        return _read(api)
    finally:
        api.ask("nvmlShutdown")


class _Nvml:
    """Asks NVML; what it refuses is a fact without a value."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def ask(self, name: str, *arguments: Any) -> Fact[Any]:
        try:
            value = getattr(self._module, name)(*arguments)
        # The module's own error, and what a driver of another version makes of it: a missing
        # symbol, a structure of another size. There is nothing else to tell them apart by.
        except Exception as error:  # noqa: BLE001 -- see above
            return unknown(name, str(error).lower() or type(error).__name__)
        return Fact(value, name)

    def text(self, name: str, *arguments: Any) -> Fact[str]:
        return self.ask(name, *arguments).then(_text)

    def number(self, name: str, *arguments: Any) -> Fact[int]:
        return self.ask(name, *arguments).then(_number)


def _nothing(why: str) -> GpuFacts:
    return GpuFacts(unknown("NVML", why), unknown("NVML", why), unknown("NVML", why), ())


def _read(api: _Nvml) -> GpuFacts:
    count = api.number("nvmlDeviceGetCount")
    handles = [api.ask("nvmlDeviceGetHandleByIndex", i) for i in range(min(count.value or 0, 1024))]
    known = [(i, handle.value) for i, handle in enumerate(handles) if handle.value is not None]
    cuda = api.number("nvmlSystemGetCudaDriverVersion")
    return GpuFacts(
        driver=api.text("nvmlSystemGetDriverVersion"),
        # 12080 is 12.8.
        driver_cuda=cuda.then(lambda number: f"{number // 1000}.{number % 1000 // 10}"),
        gpus=count.then(lambda _: tuple(_gpu(api, i, handle) for i, handle in known)),
        pairs=tuple(
            GpuPair(i, j, api.number("nvmlDeviceGetTopologyCommonAncestor", a, b).then(_path))
            for n, (i, a) in enumerate(known)
            for j, b in known[n + 1 :]
        ),
    )


def _gpu(api: _Nvml, index: int, handle: Any) -> Gpu:
    memory = api.ask("nvmlDeviceGetMemoryInfo", handle)
    return Gpu(
        index=index,
        name=api.text("nvmlDeviceGetName", handle),
        total_bytes=memory.then(_field("total")),
        free_bytes=memory.then(_field("free")),
        compute_capability=api.ask("nvmlDeviceGetCudaComputeCapability", handle).then(_capability),
        ecc=api.ask("nvmlDeviceGetEccMode", handle).then(_current_mode),
        pcie=PcieLink(
            generation=api.number("nvmlDeviceGetCurrPcieLinkGeneration", handle),
            width=api.number("nvmlDeviceGetCurrPcieLinkWidth", handle),
            max_generation=api.number("nvmlDeviceGetMaxPcieLinkGeneration", handle),
            max_width=api.number("nvmlDeviceGetMaxPcieLinkWidth", handle),
        ),
        processes=_processes(api, handle),
    )


def _processes(api: _Nvml, handle: Any) -> Fact[tuple[GpuProcess, ...]]:
    listed = api.ask("nvmlDeviceGetComputeRunningProcesses", handle)

    def convert(records: Any) -> tuple[GpuProcess, ...] | None:
        if not isinstance(records, list | tuple):
            return None
        found: list[GpuProcess] = []
        for record in records:
            pid = _number(getattr(record, "pid", None))
            if pid is None:
                continue
            used = _number(getattr(record, "usedGpuMemory", None))
            why = "" if used is not None else "not told (WDDM, or another container)"
            name = api.text("nvmlSystemGetProcessName", pid)
            found.append(GpuProcess(pid, name, Fact(used, listed.source, why)))
        return tuple(found)

    return listed.then(convert)


def _field(name: str) -> Callable[[Any], int | None]:
    return lambda record: _number(getattr(record, name, None))


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # older versions of the package
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return whole_number(str(value)) if abs(value) < 1 << 63 else None


def _numbers(value: Any) -> list[int] | None:
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    numbers = [_number(item) for item in value]
    return [n for n in numbers if n is not None] if None not in numbers else None


def _capability(value: Any) -> str | None:
    numbers = _numbers(value)
    return None if numbers is None else f"{numbers[0]}.{numbers[1]}"


def _current_mode(value: Any) -> bool | None:
    """Of current and pending."""
    numbers = _numbers(value)
    return None if numbers is None else bool(numbers[0])


def _path(level: int) -> str:
    return _TOPOLOGY.get(level, f"level {level}")
