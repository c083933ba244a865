"""Help in sections, as plain text in one pass.

Typer's own drawing imports Rich with its Markdown and syntax highlighting and lays tables out:
that takes more processor time than everything else that `hearth serve --help` does (0.35 of
0.5 s, measured on a Zen 4 server), and help is what people wait for most often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer import Typer
from typer.core import TyperCommand
from typer.main import get_command

HELP_OPTIONS = ("-h", "--help")


class SectionedCommand(TyperCommand):
    """A command whose help shows its flags in the sections that they name."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # Typer's Click is private
        """Called by Click: arguments first, then flags by section, in their order."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_argument = param.param_type_name == "argument"
                default = "Arguments" if is_argument else "Options"
                title = getattr(param, "rich_help_panel", None) or default
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def show_command_help(app: Typer, arguments: Sequence[str]) -> bool:
    """`COMMAND --help` and nothing else: prints it and says True.

    Click would first read the group's own flags, for which newer versions of Typer import
    pydantic: 0.2 s, for the text alone.
    """
    if len(arguments) != 2 or arguments[1] not in HELP_OPTIONS:
        return False
    group: Any = get_command(app)
    command = group.commands.get(arguments[0])
    if command is None:
        return False
    parent = group.context_class(group, info_name=group.name, **group.context_settings)
    print(command.get_help(command.context_class(command, parent, arguments[0])))
    return True
