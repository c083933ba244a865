"""`--served-model-name a b`: several values after one flag, as vLLM's command line takes them.

Click knows one value a flag. The arguments are rewritten before it reads them: each further value
gets the flag in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperOption

from hearth.cli.help import SectionedCommand

SERVED_MODEL_NAME = "--served-model-name"


class ServeCommand(SectionedCommand):
    """A command with one flag that takes several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Typer's Click is private
        """Click's own, on the rewritten arguments."""
        flags = {
            name: not option.is_flag
            for option in self.params
            if isinstance(option, TyperOption)
            for name in (*option.opts, *option.secondary_opts)
        }
        return super().parse_args(ctx, repeat_flag(args, SERVED_MODEL_NAME, flags))


def repeat_flag(args: Sequence[str], flag: str, takes_value: Mapping[str, bool]) -> list[str]:
    """`MODEL --flag a b --other` becomes `MODEL --flag a --flag b --other`.

    Where MODEL has not been named yet, a further value may be MODEL, so that only the first is
    the flag's. `takes_value`: every flag, and whether a value follows it.
    """
    found: list[str] = []
    has_model = False
    is_flags = False  # the value before was one of `flag`
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*found, arg, *rest]
        if arg.startswith("-"):
            found.append(arg)
            is_flags = arg.partition("=")[0] == flag
            if takes_value.get(arg, False) and (value := next(rest, None)) is not None:
                found.append(value)
                is_flags = is_flags and not value.startswith("-")
        elif has_model and is_flags:
            found += [flag, arg]
        else:
            found.append(arg)
            has_model, is_flags = True, False
    return found
