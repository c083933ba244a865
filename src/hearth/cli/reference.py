"""docs/settings.md, written from the commands themselves: `python -m hearth.cli.reference`.

A test compares the file with what this module writes, so that no setting stays undocumented.
"""

from __future__ import annotations

from typing import Any

HEAD = """\
# Settings

Written by `python -m hearth.cli.reference > docs/settings.md` from the commands themselves; a test
keeps this page and the flags in step.

Every setting can be given in three ways. The first that says something wins:

1. the **flag**: `--max-model-len 8192`
2. the **environment variable**: `HEARTH_MAX_MODEL_LEN=8192`
3. the **file** that `--config FILE` (or `HEARTH_CONFIG`) names: YAML, a line for each flag under
   its own name without dashes in front: `max-model-len: 8192`. A flag that may be repeated takes a
   list; `--no-…` is `false`. An unknown key is an error and names the nearest one.

and else the **default** holds.

Sizes take `K`, `M`, `G` (powers of 1024) or `k`, `m`, `g` (powers of 1000).

Shell completion: `hearth --install-completion` sets it up for the shell that you use (bash, zsh,
fish); `hearth --show-completion` prints what it would install.
"""


def settings_page() -> str:
    """The whole page."""
    from typer.main import get_command

    from hearth.cli.main import app

    group: Any = get_command(app)  # Typer's Click is private
    parts = [HEAD]
    for name, command in group.commands.items():
        rows = [row for param in command.params if (row := _row(param))]
        if rows:
            summary = str(command.help or "").strip().partition("\n")[0]
            head = ["| setting | variable | default | meaning |", "|---|---|---|---|"]
            parts.append("\n".join([f"\n## `hearth {name}`\n\n{summary}\n", *head, *rows, ""]))
    return "".join(parts)


def _row(param: Any) -> str:
    """One line of the table; nothing for --help and hidden arguments."""
    if param.envvar is None and (param.name == "help" or getattr(param, "hidden", False)):
        return ""
    is_argument = param.param_type_name == "argument"
    flags = [param.metavar or param.name] if is_argument else [*param.opts, *param.secondary_opts]
    shown = " / ".join(f"`{flag}`" for flag in flags)
    variable = f"`{param.envvar}`" if param.envvar else ""
    text = str(getattr(param, "help", "") or "").replace("|", "\\|")
    return f"| {shown} | {variable} | {_default(param)} | {text} |"


def _default(param: Any) -> str:
    value = param.default
    if value is None or callable(value) or not (value or isinstance(value, int | float)):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


if __name__ == "__main__":
    print(settings_page(), end="")
