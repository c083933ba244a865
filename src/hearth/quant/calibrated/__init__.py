"""Quantization that looks at what layers read: GPTQ and AWQ, one decoder layer in memory at a time.

`text` makes sequences of tokens, `model` runs transformers' decoder layer by layer, `run` is the
whole. Everything but this module and `text` imports torch, so nothing imports it except lazily,
after `require_packages`.
"""

from __future__ import annotations

from hearth.core.errors import ConfigError
from hearth.models.automodel import INSTALL_HINT, missing_packages

METHODS = ("gptq", "awq")


def require_packages(method: str) -> None:
    """Raises ConfigError, with what to install, where the extra is missing."""
    if missing := missing_packages():
        raise ConfigError(
            f"--method {method} runs the model's layers, for which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            hint=f"{INSTALL_HINT}, or --method rtn, which needs none of it",
        )
