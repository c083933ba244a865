"""`hearth chat`: talk to a model in the terminal; answers stream, Ctrl-C stops one.

Without a terminal the whole of stdin is one message and stdout gets the answer alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from hearth.cli import connection as to
from hearth.cli.config_file import Config
from hearth.cli.keyboard import CtrlC, read_line
from hearth.cli.options import Model, option
from hearth.core.errors import ConfigError, HearthError

if TYPE_CHECKING:
    from hearth.cli.conversation import Conversation
    from hearth.client.blocking import BlockingClient

PROMPT, MORE = "> ", ". "
QUOTES = '"""'

System = Annotated[
    str,
    option("--system", "System prompt.", prefix="CHAT_", show_default=False),
]


def chat(  # noqa: PLR0917 -- the parameters are the flags
    model: Model = None,
    base_url: to.OptionalBaseUrl = None,
    model_name: to.ServedName = None,
    api_key: to.ApiKey = None,
    system: System = "",
    temperature: to.Temperature = None,
    max_tokens: to.MaxTokens = None,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Talk to a model: one that is served already, or one that this command serves meanwhile."""
    from hearth.cli.conversation import Conversation
    from hearth.cli.own_server import connect
    from hearth.client.blocking import BlockingClient

    with connect(base_url, api_key, model) as target, BlockingClient(target) as client:
        name = model_name or to.first_name(client)
        settings = to.given(temperature=temperature, max_tokens=max_tokens)
        conversation = Conversation(name, system, settings)
        if sys.stdin.isatty():
            _talk(client, conversation)
        else:
            text = to.stdin_text().rstrip("\n")
            if not text:
                raise ConfigError(
                    "the message is empty", hint="echo 'What is hearth?' | hearth chat"
                )
            conversation.say(text)
            if not answer(client, conversation, CtrlC()):
                raise typer.Exit(130)


def answer(client: BlockingClient, conversation: Conversation, ctrl_c: CtrlC) -> bool:
    """Prints the answer as it comes and adds it to the conversation; False after a Ctrl-C.

    What had come before a Ctrl-C or an error stays in the conversation. Raises RemoteError.
    """
    said: list[str] = []
    reason: str | None = None
    try:
        stream = client.stream("/v1/chat/completions", conversation.body())
        with ctrl_c, contextlib.closing(stream) as pieces:
            for piece in pieces:
                for warning in piece.warnings:
                    print(f"warning: {warning}", file=sys.stderr)
                print(piece.text, end="", flush=True)
                said.append(piece.text)
                reason = piece.finish_reason or reason
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr, flush=True)
        return False
    finally:
        conversation.answered("".join(said))
    print(flush=True)
    if reason == "length":
        print("(cut: max_tokens or the context's end)", file=sys.stderr)
    return True


def _talk(client: BlockingClient, conversation: Conversation) -> None:
    """The loop of a terminal."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- gives input() its history and editing keys
    from hearth.cli.conversation import QuitError

    ctrl_c = CtrlC()
    ctrl_c.install()
    print(f"{conversation.model} at {client.target.root}; /help lists the commands")
    while True:
        try:
            with ctrl_c:
                text = read_message(read_line)
                if text.startswith("/"):
                    print(conversation.command(text))
                    continue
            if text.strip():
                conversation.say(text)
                answer(client, conversation, ctrl_c)
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D ends)")
        except (EOFError, QuitError):
            print()
            return
        except HearthError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)


def read_message(read_line: Callable[[str], str]) -> str:
    """One message of one or more lines. Raises what `read_line` raises.

    A line that ends in a backslash goes on in the next one; a line that begins with three quotes
    goes on until one that ends with them.
    """
    line = read_line(PROMPT)
    if line.startswith(QUOTES):
        text = line.removeprefix(QUOTES)
        while not text.endswith(QUOTES):
            text += "\n" + read_line(MORE)
        return text.removesuffix(QUOTES).strip("\n")
    while line.endswith("\\"):
        line = line.removesuffix("\\") + "\n" + read_line(MORE)
    return line
