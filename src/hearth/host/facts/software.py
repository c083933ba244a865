"""Versions of what is installed, read from metadata: nothing heavy is imported for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hearth import __version__
from hearth.core.errors import HearthError
from hearth.host.facts.fact import Fact, Tree, first_known, unknown
from hearth.host.files import read_file

FindVersion = Callable[[str], str | None]

_CUDA_LINE = re.compile(r"^cuda\b[^=\n]*=\s*(.+?)\s*$", re.MULTILINE)
_VERSION = re.compile(r"['\"](\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)['\"]", re.ASCII)
# Such as: NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 …
_DRIVER = re.compile(r"NVRM version:.*?\s(\d{3,4}(?:\.\d{1,4}){1,2})\b", re.ASCII)
CPU_BUILD = "none"


@dataclass(frozen=True, slots=True)
class SoftwareFacts:
    """`torch_cuda`: what torch was built for, CPU_BUILD for a build without.

    `kernels`: ISAs, the best first. `conda`: the name of the environment, where there is one.
    """

    python: Fact[str]
    hearth: Fact[str]
    torch: Fact[str]
    torch_cuda: Fact[str]
    transformers: Fact[str]
    tokenizers: Fact[str]
    numpy: Fact[str]
    driver: Fact[str]
    kernels: Fact[tuple[str, ...]]
    conda: Fact[str]


def read_software(
    root: Path = Path("/"),
    find_version: FindVersion | None = None,
    torch_directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> SoftwareFacts:
    """Reads the versions. The last three are what tests put in: None asks this installation."""
    find = find_version or installed_version
    variables = os.environ if environment is None else environment
    torch = _package(find, "torch")
    prefix = variables.get("CONDA_PREFIX", "")
    return SoftwareFacts(
        python=Fact(platform.python_version(), "this interpreter"),
        hearth=Fact(__version__, "this package"),
        torch=torch,
        torch_cuda=_torch_cuda(torch, torch_directory),
        transformers=_package(find, "transformers"),
        tokenizers=_package(find, "tokenizers"),
        numpy=_package(find, "numpy"),
        driver=Tree(root)
        .text("proc/driver/nvidia/version")
        .then(_driver_version, "no version there"),
        kernels=_kernels(),
        conda=Fact(Path(prefix).name, "CONDA_PREFIX")
        if prefix
        else unknown("CONDA_PREFIX", "not set"),
    )


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it, or its metadata, is not there."""
    try:
        found: str | None = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        return None
    return found or None


def _package(find: FindVersion, name: str) -> Fact[str]:
    version = find(name)
    return Fact(version, "its metadata", "" if version else "not installed")


def _torch_cuda(torch: Fact[str], directory: Path | None) -> Fact[str]:
    """From torch/version.py, which the build writes; else from the version's own suffix."""
    if torch.value is None:
        return unknown("torch/version.py", torch.why)
    suffix = Fact(torch.value, "the version's suffix").then(_from_suffix, "no suffix")
    where = directory if directory is not None else _torch_directory()
    if where is None:
        return first_known(unknown("torch/version.py", "not found"), suffix)
    found = read_file(where / "version.py")
    text = Fact(found.text or None, "torch/version.py", found.why)
    return first_known(text.then(_cuda_of, "no CUDA there"), suffix)


def _torch_directory() -> Path | None:
    """Where torch lies; finding a top-level package does not import it."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError, AttributeError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _cuda_of(text: str) -> str | None:
    line = _CUDA_LINE.search(text)
    if line is None:
        return None
    version = _VERSION.search(line[1])
    return version[1] if version else CPU_BUILD if line[1] == "None" else None


def _from_suffix(version: str) -> str | None:
    """2.8.0+cu128 was built for 12.8, +cpu for none."""
    local = version.partition("+")[2]
    if local == "cpu":
        return CPU_BUILD
    match = re.fullmatch(r"cu(\d{2})(\d)", local, re.ASCII)
    return f"{match[1]}.{match[2]}" if match else None


def _driver_version(text: str) -> str | None:
    match = _DRIVER.search(text)
    return match[1] if match else None


def _kernels() -> Fact[tuple[str, ...]]:
    source = "the C++ kernel library"
    try:
        from hearth.kernels.cpu.library import runnable_isas

        return Fact(runnable_isas(), source)
    except (HearthError, ImportError, OSError) as error:
        return unknown(source, str(error))
