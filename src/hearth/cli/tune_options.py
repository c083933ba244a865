"""Flags of `hearth tune`; what they change the machine by has no environment variable."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hearth.cli.options import option, quantity

JOURNAL = "/var/lib/hearth/tune.journal"
_CHANGES, _CHOICE = "Changing the machine", "Which settings"


def _switch(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=_CHANGES)


def _flag(name: str, text: str, panel: str | None = None, **settings: Any) -> Any:
    return option(name, text, prefix="TUNE_", rich_help_panel=panel, **settings)


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Model directory, config.json or name: its memory plan sizes the pool of huge pages, "
        "and its disk is the one that is meant.",
        show_default=False,
    ),
]
MaxModelLen = Annotated[
    int | None,
    _flag(
        "--max-model-len",
        "Context that MODEL is planned with, in tokens, such as 32K. Default: 8192.",
        _CHOICE,
        parser=quantity,
        metavar="TOKENS",
        show_default=False,
    ),
]
Apply = Annotated[bool, _switch("--apply", "Make the changes, for now: until the next boot.")]
Persist = Annotated[
    bool, _switch("--persist", "With --apply or --measure: write them to files in /etc, too.")
]
Measure = Annotated[
    bool,
    _switch(
        "--measure",
        "Measure each change before and after, in turns; keep what helps, undo the rest.",
    ),
]
Rollback = Annotated[
    bool, _switch("--rollback", "Put everything back that hearth tune has changed.")
]
Force = Annotated[
    bool,
    _switch(
        "--force",
        "With --rollback: also what somebody else has changed since; damaged lines of the journal "
        "are left out.",
    ),
]
Only = Annotated[
    list[str] | None,
    _flag("--only", "Only this setting; may be repeated.", _CHOICE, metavar="NAME"),
]
With = Annotated[
    list[str] | None,
    _flag(
        "--with",
        "This one, too, which is not applied by default; may be repeated.",
        _CHOICE,
        metavar="NAME",
    ),
]
HugepagesBytes = Annotated[
    int | None,
    _flag(
        "--hugepages-bytes",
        "Size of the HugeTLB pool, such as 4G, for other programs: hearth uses none of it. "
        "Default: what MODEL's plan gives, shown, and applied --with hugepages alone.",
        _CHOICE,
        parser=quantity,
        metavar="BYTES",
        show_default=False,
    ),
]
ModelsDir = Annotated[
    str,
    _flag(
        "--models-dir",
        "Where models lie: the readahead of that disk is meant. Default: MODEL's, else where "
        "hearth pull puts them.",
        _CHOICE,
        metavar="DIRECTORY",
        show_default=False,
    ),
]
JournalFile = Annotated[
    str, _flag("--journal", "Where former values are written down.", metavar="FILE")
]
Json = Annotated[bool, _flag("--json", "Plan and result as one JSON object.")]
