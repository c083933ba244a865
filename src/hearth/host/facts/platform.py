"""The system: kernel, distribution, and what it runs in: container, virtual machine, WSL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hearth.host.facts.fact import Fact, Tree, first_known, unknown
from hearth.host.files import read_text, scaled, whole_number

_USERS = "mnt/c/Users"
_MOST_USERS = 32
_DMI = "sys/class/dmi/id"
_NO_VM = "no hypervisor flag and no product name of one"
_HYPERVISORS = {
    "kvm": "KVM",
    "qemu": "QEMU",
    "vmware": "VMware",
    "virtualbox": "VirtualBox",
    "microsoft corporation virtual machine": "Hyper-V",
    "xen": "Xen",
    "amazon ec2": "Amazon EC2",
    "google compute engine": "Google Compute Engine",
    "openstack": "OpenStack",
    "parallels": "Parallels",
}
_CGROUP_MARKS = ("kubepods", "docker", "libpod", "containerd", "lxc")


@dataclass(frozen=True, slots=True)
class WslFacts:
    """The Windows Subsystem for Linux; `memory_cap_bytes` from the user's .wslconfig."""

    version: int
    memory_cap_bytes: Fact[int]


@dataclass(frozen=True, slots=True)
class PlatformFacts:
    """`container`, `virtual_machine`: "none" where there is no sign of one. `wsl` None: not WSL."""

    kernel: Fact[str]
    distribution: Fact[str]
    container: Fact[str]
    virtual_machine: Fact[str]
    wsl: WslFacts | None


def read_platform(
    root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> PlatformFacts:
    """Reads what the system is. `environment`: None is this process's."""
    tree = Tree(root)
    kernel = tree.text("proc/sys/kernel/osrelease")
    return PlatformFacts(
        kernel=kernel,
        distribution=first_known(
            *(tree.text(n).then(_pretty_name) for n in ("etc/os-release", "usr/lib/os-release"))
        ),
        container=_container(tree, os.environ if environment is None else environment),
        virtual_machine=_virtual_machine(tree),
        wsl=_wsl(tree, kernel.value or ""),
    )


def read_container(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> str:
    """The kind of container that this process is in; "none" where there is no sign of one."""
    seen = _container(Tree(root), os.environ if environment is None else environment)
    return seen.value or "none"


def _pretty_name(text: str) -> str | None:
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        values[name.strip()] = value.strip().strip("\"'")
    return values.get("PRETTY_NAME") or values.get("NAME") or None


def _container(tree: Tree, environment: Mapping[str, str]) -> Fact[str]:
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return Fact("kubernetes", "KUBERNETES_SERVICE_HOST in the environment")
    for name, kind in (("run/.containerenv", "podman"), (".dockerenv", "docker")):
        if tree.has(name):
            return Fact(kind, f"/{name}")
    named = tree.text("run/systemd/container")
    if named.value is not None:
        return named
    if environment.get("container"):
        return Fact(environment["container"], "container in the environment")
    groups = read_text(tree.root / "proc/self/cgroup")
    for mark in _CGROUP_MARKS:
        if mark in groups:
            kind = {"kubepods": "kubernetes", "libpod": "podman"}.get(mark, mark)
            return Fact(kind, "/proc/self/cgroup")
    return Fact("none", "no sign of one in /run, / or /proc/self/cgroup")


def _virtual_machine(tree: Tree) -> Fact[str]:
    names = [read_text(tree.root / _DMI / name) for name in ("sys_vendor", "product_name")]
    shown = " ".join(name for name in names if name)
    for mark, kind in _HYPERVISORS.items():
        if mark in shown.lower():
            return Fact(kind, f"/{_DMI}")
    xen = tree.text("sys/hypervisor/type")
    if xen.value is not None:
        return xen
    for line in read_text(tree.root / "proc/cpuinfo").splitlines():
        if line.startswith("flags") and "hypervisor" in line.split():
            return Fact("of an unnamed kind", "the flag hypervisor in /proc/cpuinfo")
    return Fact("none", _NO_VM)


def _wsl(tree: Tree, kernel: str) -> WslFacts | None:
    release = kernel.lower()
    if "microsoft" not in release:
        return None
    # WSL 1 has no kernel of its own: it says 4.4.0-…-Microsoft, without "standard" or "WSL2".
    version = 2 if "wsl2" in release or "standard" in release else 1
    return WslFacts(version, _wsl_cap(tree))


def _wsl_cap(tree: Tree) -> Fact[int]:
    for user in tree.names(_USERS)[:_MOST_USERS]:
        text = tree.text(f"{_USERS}/{user}/.wslconfig")
        if text.value is not None:
            return text.then(_memory_setting, "no memory= in [wsl2], so half of the host's memory")
    return unknown(f"/{_USERS}/*/.wslconfig", "no such file: WSL takes half of the host's memory")


def _memory_setting(text: str) -> int | None:
    """Bytes of `memory=8GB` in the section [wsl2]."""
    section = ""
    for line in text.removeprefix("\ufeff").splitlines():  # Windows' editors put one there
        stripped = line.partition("#")[0].strip().lower()
        if stripped.startswith("["):
            section = stripped
        name, _, value = stripped.partition("=")
        if section == "[wsl2]" and name.strip() == "memory":
            return _size(value.strip())
    return None


def _size(text: str) -> int | None:
    for suffix, factor in (("gb", 1 << 30), ("mb", 1 << 20), ("kb", 1 << 10), ("", 1)):
        if text.endswith(suffix):
            return scaled(whole_number(text.removesuffix(suffix)), factor) or None
    return None
