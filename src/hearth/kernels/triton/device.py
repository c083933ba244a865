"""Which device there is, and whether the kernels run on it. Imports torch when it is asked."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.core.errors import KernelError
from hearth.core.spec import DType
from hearth.kernels.triton.floats import FloatChoice, choose_float

if TYPE_CHECKING:
    import torch

INSTALL_HINT = "pip install 'hearth[cuda]' on a machine with an NVIDIA card and its driver"
# Of the driver on Linux, and of Windows' under WSL.
_DRIVER_FILES = ("dev/nvidiactl", "dev/dxg")
_LEAST_CAPABILITY = (7, 5)  # Turing: what Triton's matrix products need


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """What may still be taken on a device, and which it is."""

    num_bytes: int
    name: str


def has_driver(root: Path = Path("/")) -> bool:
    """Whether a GPU's driver is loaded, without asking it."""
    return any((root / name).exists() for name in _DRIVER_FILES)


def cuda_refusal() -> str:
    """Why the kernels cannot run on a GPU here; empty: they can. Imports torch if it is there."""
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    import torch

    if torch.version.cuda is None:
        return f"the installed torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: no NVIDIA card, or no driver for it"
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        shown = "".join(map(str, capability))
        return f"{torch.cuda.get_device_name()} is sm_{shown}; the kernels need sm_75 or newer"
    return ""


def require_cuda(why: str) -> None:
    """Raises KernelError, with what to install, where there is no GPU for the kernels."""
    if refusal := cuda_refusal():
        raise KernelError(f"{why}, and {refusal}", hint=INSTALL_HINT)


def float_on(device: torch.device, model: DType) -> FloatChoice:
    """What a model that is kept as `model` is computed in on a device."""
    import torch

    is_cuda = device.type == "cuda"
    return choose_float(model, torch.cuda.get_device_capability(device) if is_cuda else None)


def free_memory(device: torch.device) -> FreeMemory:
    """Of a card, its context included: that is taken by asking."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return FreeMemory(free, f"free on {torch.cuda.get_device_name(device)}")
