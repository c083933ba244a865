"""The two texts that hearth brings: one that is calibrated with, one that is measured on.

They stay two files, and have nothing in common (a test looks): what is measured on a text that the
codes were fitted to looks better than it is. `tools/calibration_text.py` writes the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

BUILTIN = "builtin"  # as `--calibration` and `--text` name them
Purpose: TypeAlias = Literal["calibrating", "measuring"]
_DIRECTORY = Path(__file__).parent / "texts"


def text_path(source: str, purpose: Purpose) -> Path:
    """The file of a text that a user names: a path, or `builtin`."""
    return _DIRECTORY / f"{purpose}.txt" if source == BUILTIN else Path(source).expanduser()
