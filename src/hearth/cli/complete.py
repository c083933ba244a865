"""`hearth complete`: goes on from a text, on stdout; made for pipes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hearth.cli import connection as to
from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.errors import ConfigError

Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT", help="The text to go on from. Default: stdin.", show_default=False
    ),
]
Start = Annotated[
    str | None,
    option(
        "--start",
        "Serve this model directory meanwhile.",
        metavar="MODEL",
        prefix="COMPLETE_",
        show_default=False,
    ),
]
Echo = Annotated[bool, option("--echo", "Write the prompt, too.", prefix="COMPLETE_")]


def complete(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    prompt: Prompt = None,
    base_url: to.OptionalBaseUrl = None,
    model_name: to.ServedName = None,
    api_key: to.ApiKey = None,
    start: Start = None,
    temperature: to.Temperature = None,
    max_tokens: to.MaxTokens = 128,
    echo: Echo = False,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Go on from a text: the prompt, or stdin; the model's text goes to stdout."""
    from hearth.cli.own_server import connect
    from hearth.client.blocking import BlockingClient

    text = to.stdin_text() if prompt is None else prompt
    if not text:
        raise ConfigError("the prompt is empty", hint="hearth complete 'Once upon a time'")
    with connect(base_url, api_key, start) as target, BlockingClient(target) as client:
        body = {
            "model": model_name or to.first_name(client),
            "prompt": text,
            "echo": echo,
            **to.given(temperature=temperature, max_tokens=max_tokens),
        }
        for piece in client.stream("/v1/completions", body):
            for warning in piece.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            print(piece.text, end="", flush=True)
    print(flush=True)
