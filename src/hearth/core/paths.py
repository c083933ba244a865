"""Paths as people write them."""

from __future__ import annotations

import os.path
from pathlib import Path


def home_expanded(name: str) -> Path:
    """The path with a leading `~` or `~user` replaced; that of an unknown user stays as it is.

    `Path.expanduser` raises RuntimeError there, where "no such file" is what there is to say.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 -- see above
