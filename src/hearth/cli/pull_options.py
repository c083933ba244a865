"""The flags that `hearth pull` and `hearth models` share."""

from __future__ import annotations

from typing import Annotated

from hearth.cli.options import option, quantity

ModelsDir = Annotated[
    str,
    option(
        "--models-dir",
        "Where models are kept. Default: hearth/models in the user's cache directory.",
        metavar="DIRECTORY",
        show_default=False,
    ),
]
StageBytes = Annotated[
    int | None,
    option(
        "--stage-bytes",
        "Disk space for all staged copies, such as 200G; the least recently used go first. "
        "Default: four fifths of what is free or staged.",
        parser=quantity,
        metavar="BYTES",
        show_default=False,
    ),
]
