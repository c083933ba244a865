"""The flags of commands that talk to a running server: which one, which model, with what key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from hearth.cli.options import option

if TYPE_CHECKING:
    from hearth.client.blocking import BlockingClient

DEFAULT_URL = "http://127.0.0.1:8000"
_PANEL = "Server"

BaseUrl = Annotated[
    str,
    option("--base-url", "Address of the server.", metavar="URL", rich_help_panel=_PANEL),
]
OptionalBaseUrl = Annotated[
    str | None,
    option(
        "--base-url",
        f"Address of the server. Default: {DEFAULT_URL}, or a server of its own where none is.",
        metavar="URL",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
ModelName = Annotated[
    str | None,
    option(
        "--model",
        "A served model's name. Default: the first that the server lists.",
        metavar="NAME",
        prefix="REQUEST_",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
ServedName = Annotated[
    str | None,
    option(
        "--model-name",
        "A served model's name. Default: the first that the server lists.",
        metavar="NAME",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Temperature = Annotated[
    float | None,
    option("--temperature", "0 is greedy. Default: the model's.", min=0, max=2, show_default=False),
]
MaxTokens = Annotated[
    int | None, option("--max-tokens", "Longest answer, in tokens.", min=1, show_default=False)
]
ApiKey = Annotated[
    str | None,
    option(
        "--api-key",
        "Key to send, where the server asks for one.",
        metavar="KEY",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]


def given(**fields: Any) -> dict[str, Any]:
    """The fields of a request that were said."""
    return {name: value for name, value in fields.items() if value is not None}


def stdin_text() -> str:
    """All of stdin. Raises ConfigError where it is not UTF-8."""
    import io
    import sys

    from hearth.core.errors import ConfigError

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"stdin is not valid UTF-8: byte 0x{error.object[error.start]:02x}",
            hint="convert it first, with: iconv -f ENCODING -t UTF-8",
        ) from error


def first_name(client: BlockingClient) -> str:
    """The first served model. Raises RemoteError."""
    from hearth.core.errors import RemoteError

    names = client.model_names()
    if not names:
        raise RemoteError(f"{client.target.root} serves no model")
    return names[0]
