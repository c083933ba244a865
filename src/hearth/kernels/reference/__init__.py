"""The reference backend: plain, differentiable torch, the truth that tests compare with.

`sampling` needs numpy only; every other module here imports torch, so nothing imports them except
lazily, after `require_torch`.
"""

from __future__ import annotations

import importlib.util

from hearth.core.errors import KernelError


def is_available() -> bool:
    """Whether torch is installed (it is not imported)."""
    return importlib.util.find_spec("torch") is not None


def require_torch() -> None:
    """Raises KernelError, with what to install, where torch is missing."""
    if not is_available():
        raise KernelError(
            "the reference executor needs torch, which is not installed",
            hint="pip install 'hearth[torch]', or use the cpu executor",
        )
