"""Platforms and software: WSL, containers, virtual machines, versions without an import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.host.facts import trees
from tests.unit.host.facts.trees import write

from hearth.host.facts.platform import read_platform
from hearth.host.facts.software import read_software


def test_wsl_2_with_its_memory_cap(tmp_path: Path) -> None:
    found = read_platform(write(tmp_path, trees.wsl2()), {})
    assert found.wsl is not None
    assert found.wsl.version == 2
    assert found.wsl.memory_cap_bytes.value == 8 << 30
    assert found.wsl.memory_cap_bytes.source == "/mnt/c/Users/someone/.wslconfig"
    assert found.distribution.value == "Ubuntu 24.04.1 LTS"


def test_a_wslconfig_of_a_windows_editor_begins_with_a_mark(tmp_path: Path) -> None:
    files = trees.wsl2() | {"mnt/c/Users/someone/.wslconfig": "\ufeff[wsl2]\r\nmemory=4GB\r\n"}
    found = read_platform(write(tmp_path, files), {})
    assert found.wsl is not None
    assert found.wsl.memory_cap_bytes.value == 4 << 30


def test_wsl_2_without_a_setting_says_what_windows_does(tmp_path: Path) -> None:
    files = trees.wsl2() | {"mnt/c/Users/someone/.wslconfig": "[experimental]\nmemory=4GB\n"}
    found = read_platform(write(tmp_path, files), {})
    assert found.wsl is not None
    assert found.wsl.memory_cap_bytes.value is None
    assert "half" in found.wsl.memory_cap_bytes.why


def test_wsl_1_is_told_apart(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/sys/kernel/osrelease": "4.4.0-19041-Microsoft\n"})
    found = read_platform(root, {})
    assert found.wsl is not None
    assert found.wsl.version == 1


@pytest.mark.parametrize(
    ("files", "environment", "kind"),
    [
        (trees.container_v2(), {}, "podman"),
        (trees.container_v1(), {}, "kubernetes"),
        ({".dockerenv": ""}, {}, "docker"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"run/systemd/container": "systemd-nspawn\n"}, {}, "systemd-nspawn"),
        ({}, {"container": "oci"}, "oci"),
        ({"proc/self/cgroup": "0::/user.slice\n"}, {}, "none"),
    ],
)
def test_containers(
    tmp_path: Path, files: dict[str, str], environment: dict[str, str], kind: str
) -> None:
    assert read_platform(write(tmp_path, files), environment).container.value == kind


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "QEMU"),
        ({"sys/class/dmi/id/product_name": "VMware Virtual Platform\n"}, "VMware"),
        ({"sys/hypervisor/type": "xen\n"}, "xen"),
        ({"proc/cpuinfo": "flags\t: fpu hypervisor\n"}, "of an unnamed kind"),
        ({"sys/class/dmi/id/sys_vendor": "Dell Inc.\n"}, "none"),
    ],
)
def test_virtual_machines(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    assert read_platform(write(tmp_path, files), {}).virtual_machine.value == kind


@pytest.mark.parametrize(
    ("text", "version", "cuda"),
    [
        ("cuda: Optional[str] = '12.8'\n", "2.8.0+cu128", "12.8"),
        ("cuda = '13.0'\n", "2.11.0", "13.0"),
        ("cuda: Optional[str] = None\n", "2.13.0+cpu", "none"),
        ("", "2.6.0+cu124", "12.4"),
        ("", "2.6.0+cpu", "none"),
        ("", "2.6.0", None),
    ],
)
def test_the_cuda_of_torch_without_importing_it(
    tmp_path: Path, text: str, version: str, cuda: str | None
) -> None:
    write(tmp_path, {"version.py": text})
    found = read_software(tmp_path, lambda name: version if name == "torch" else None, tmp_path, {})
    assert found.torch.value == version
    assert found.torch_cuda.value == cuda
    assert found.transformers.why == "not installed"


def test_the_driver_and_the_conda_environment(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC: 13\n"
    root = write(tmp_path, {"proc/driver/nvidia/version": text})
    found = read_software(root, lambda _: None, None, {"CONDA_PREFIX": "/opt/conda/envs/llm"})
    assert found.driver.value == "570.86.15"
    assert found.conda.value == "llm"


def test_the_open_kernel_modules_name_their_driver_too(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    root = write(tmp_path, {"proc/driver/nvidia/version": text})
    assert read_software(root, lambda _: None, None, {}).driver.value == "580.65.06"


def test_versions_are_read_without_importing_torch_or_numpy() -> None:
    code = (
        "import sys; from pathlib import Path; from hearth.host.facts.report import read_host; "
        "facts = read_host(Path('/')); "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
