"""Decoders without a family file, run by transformers' own model with our paged attention.

`spec` is plain data and imports neither torch nor transformers; every other module here imports
both, so nothing imports them except lazily, after `require_installed`. What cannot be honoured is
refused by name: `trace` reads from the model itself, on the meta device, which attention it calls
with what mask, and `check` compares the paged answers with the model's own before serving.
"""

from __future__ import annotations

import importlib.util

PACKAGES = ("torch", "transformers", "safetensors")
INSTALL_HINT = "pip install 'hearth[torch]'"


def missing_packages() -> tuple[str, ...]:
    """The packages of the extra that are not installed; none is imported."""
    return tuple(name for name in PACKAGES if importlib.util.find_spec(name) is None)
