"""`--config file.yaml`: flags from a file, under their own names.

    max-model-len: 8192
    served-model-name: [small, org/small]

Precedence: flag > environment variable > file > default. The file's values become Click's default
map, which stands exactly there and goes through the same checks as everything else. Whatever is not
a flag of the command is an error.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from hearth.cli.options import option
from hearth.core.errors import ConfigError
from hearth.core.paths import home_expanded

_NOT_IN_FILES = ("config", "help")


def _apply(ctx: Any, path: str | None) -> str | None:  # Typer's Click is private
    """Called by Click before any other flag is read. Raises ConfigError."""
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **_values(ctx, path)}
    return path


Config = Annotated[
    str | None,
    option(
        "--config",
        "YAML file with flags by their names. A flag and its variable win over the file.",
        metavar="FILE",
        callback=_apply,
        is_eager=True,
        show_default=False,
    ),
]


def read_settings(path: str) -> dict[str, Any]:
    """The file's keys and values as they stand. Raises ConfigError."""
    import msgspec

    try:
        found = msgspec.yaml.decode(home_expanded(path).read_bytes() or b"{}")
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"--config {path} is not valid YAML: {error}") from error
    if found is None:  # comments only
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path} holds no settings", hint="write lines like port: 9000")
    return {str(key): value for key, value in found.items()}


def _values(ctx: Any, path: str) -> dict[str, Any]:
    """Values by parameter name. Raises ConfigError."""
    known = {_flag_name(param): param for param in ctx.command.params}
    for name in _NOT_IN_FILES:
        known.pop(name, None)
    values: dict[str, Any] = {}
    for key, value in read_settings(path).items():
        name = key.removeprefix("--").replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            guess = f"did you mean {close[0]}?" if close else f"permitted: {', '.join(known)}"
            raise ConfigError(f"--config {path}: {key} is not a flag of this command", hint=guess)
        if value is not None:
            values[known[name].name] = _value_of(known[name], value, f"--config {path}: {key}")
    return values


def _flag_name(param: Any) -> str:
    """`--enable-x/--no-enable-x` is `enable-x`; an argument is its own name."""
    longest = max(param.opts, key=len)
    return str(longest).removeprefix("--").replace("_", "-")


def _value_of(param: Any, value: Any, where: str) -> Any:
    """A list only where the flag may be repeated; what is one value otherwise."""
    is_many = getattr(param, "multiple", False) or param.nargs == -1
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float | bool) for item in items):
        raise ConfigError(f"{where} is not a plain value (permitted: text, a number, true, false)")
    if is_many:
        return [str(item) for item in items]
    if isinstance(value, list):
        raise ConfigError(f"{where} takes one value, not a list")
    return value
