"""GPUs through a module that stands for NVML."""

# ruff: noqa: N802 -- NVML's names

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from tests.unit.host.facts.fake_nvml import FakeNvml, NVMLError

from hearth.host.facts.gpu import read_gpu


def test_four_cards_with_their_links_and_processes() -> None:
    nvml = FakeNvml()
    facts = read_gpu(nvml)
    assert (facts.driver.value, facts.driver_cuda.value) == ("570.86.15", "12.8")
    gpus = facts.gpus.value
    assert gpus is not None
    assert [gpu.name.value for gpu in gpus] == ["NVIDIA H100 80GB HBM3"] * 4
    assert (gpus[0].total_bytes.value, gpus[0].free_bytes.value) == (80 << 30, 70 << 30)
    assert gpus[0].compute_capability.value == "9.0"
    assert gpus[0].ecc.value is True
    assert (gpus[3].ecc.value, gpus[3].ecc.why) == (None, "not supported")
    link = gpus[2].pcie
    assert (link.generation.value, link.width.value) == (1, 8)
    assert (link.max_generation.value, link.max_width.value) == (5, 16)
    assert not nvml.is_open


def test_who_uses_a_card_and_what_is_not_told() -> None:
    gpus = read_gpu(FakeNvml()).gpus.value
    assert gpus is not None
    first, second = gpus[0].processes.value or ()
    assert (first.pid, first.name.value, first.used_bytes.value) == (
        4711,
        "/usr/bin/python3",
        5 << 30,
    )
    assert second.used_bytes.why
    assert second.name.why == "not found"
    assert gpus[1].processes.value == ()
    assert gpus[3].processes.why == "insufficient permissions"


def test_every_pair_has_its_path() -> None:
    pairs = {(p.first, p.second): p.path.value for p in read_gpu(FakeNvml()).pairs}
    assert len(pairs) == 6
    assert pairs[0, 1] == pairs[2, 3] == "one PCIe switch"
    assert pairs[0, 3] == "between NUMA nodes"


def test_without_a_driver_everything_says_so() -> None:
    def refuse() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    facts = read_gpu(SimpleNamespace(nvmlInit=refuse))
    assert facts.gpus.value is None
    assert facts.gpus.why == facts.driver.why == "nvml shared library not found"


def test_an_old_module_without_a_function_loses_that_value_alone() -> None:
    class Old(FakeNvml):
        def __getattribute__(self, name: str) -> object:
            if name == "nvmlDeviceGetTopologyCommonAncestor":
                raise AttributeError(name)
            return super().__getattribute__(name)

    facts = read_gpu(Old())
    assert facts.pairs[0].path.value is None
    assert facts.gpus.value is not None


def test_values_of_another_kind_than_promised_are_no_values() -> None:
    class Odd(FakeNvml):
        def nvmlDeviceGetCount(self) -> int:
            return 1

        def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
            return "lots"

        def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
            return ()  # type: ignore[return-value]  # that is the point

        def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:
            return 1 << 70

    gpus = read_gpu(Odd()).gpus.value
    assert gpus is not None
    assert gpus[0].total_bytes.value is None
    assert gpus[0].compute_capability.value is None
    assert gpus[0].pcie.max_width.value is None


def test_without_the_package_the_command_that_brings_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in read_gpu().gpus.why
