"""A module like pynvml, of four cards."""

# ruff: noqa: N802 -- NVML's names

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    pass


class FakeNvml:
    """Four cards: two pairs on a switch each; the last one tells no ECC and no processes."""

    def __init__(self, num_gpus: int = 4, driver: str = "570.86.15", cuda: int = 12080) -> None:
        self._num_gpus = num_gpus
        self._driver = driver
        self._cuda = cuda
        self.is_open = False

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self._cuda

    def nvmlDeviceGetCount(self) -> int:
        return self._num_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return b"NVIDIA H100 80GB HBM3" if handle == 1 else "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80 << 30, free=70 << 30, used=10 << 30)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetEccMode(self, handle: int) -> list[int]:
        if handle == 3:
            raise NVMLError("Not Supported")
        return [1, 1]

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: int) -> int:
        return 1

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: int) -> int:
        return 8 if handle == 2 else 16

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> int:
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:
        return 16

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        if handle == 3:
            raise NVMLError("Insufficient Permissions")
        if handle == 0:
            return [
                SimpleNamespace(pid=4711, usedGpuMemory=5 << 30),
                SimpleNamespace(pid=4712, usedGpuMemory=None),
            ]
        return []

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        if pid == 4712:
            raise NVMLError("Not Found")
        return "/usr/bin/python3"

    def nvmlDeviceGetTopologyCommonAncestor(self, first: int, second: int) -> int:
        return 10 if first // 2 == second // 2 else 50
