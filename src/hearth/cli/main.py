"""The `hearth` command: its sub-commands, and the one place where errors become messages.

Every error of the tree is printed as one message with its hint, and ends the process with the exit
code of its class. A trace is shown only with `--log-level debug`.
"""

from __future__ import annotations

import errno
import io
import os
import sys

import typer

from hearth.cli.arguments import ServeCommand
from hearth.cli.bench import bench
from hearth.cli.chat import chat
from hearth.cli.complete import complete
from hearth.cli.demo import demo
from hearth.cli.doctor import doctor
from hearth.cli.help import HELP_OPTIONS, SectionedCommand, show_command_help
from hearth.cli.models import models
from hearth.cli.options import environment_names
from hearth.cli.plan import plan
from hearth.cli.pull import pull
from hearth.cli.quality import quality
from hearth.cli.quantize import quantize
from hearth.cli.serve import serve
from hearth.cli.tune import tune
from hearth.cli.version import show_version, version
from hearth.core.errors import HearthError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE
# Commands whose flags are environment variables, too.
_CONFIGURED = (
    *(doctor, plan, pull, quantize, quality, models),
    *(tune, chat, complete, demo, bench),
)

app = typer.Typer(
    name="hearth",
    help="Serve Hugging Face models on hardware that people own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # see hearth.cli.help
    context_settings={"help_option_names": [*HELP_OPTIONS], "max_content_width": 100},
)
app.command(cls=ServeCommand)(serve)
for _command in (*_CONFIGURED, version):
    app.command(cls=SectionedCommand)(_command)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Serve Hugging Face models on hardware that people own."""


def known_variables() -> set[str]:
    """The environment variables of all commands."""
    return set().union(*(environment_names(command) for command in (serve, *_CONFIGURED)))


def main() -> None:
    """Entry point of the console script; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # "×" must not end a server whose log is ASCII
    code = 0
    try:
        try:
            if not show_command_help(app, sys.argv[1:]):
                code = app(prog_name="hearth", standalone_mode=True)
        finally:
            sys.stdout.flush()  # here, where a closed pipe or a full disk has its answer below
    except SystemExit as end:  # Click says 1 where a pipe was closed
        sys.exit(PIPE_CLOSED if isinstance(end.__context__, BrokenPipeError) else end.code)
    except HearthError as error:
        _report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # such as `hearth complete … | head`
        _drop_output()
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        _report(HearthError(f"the output cannot be written: {error.strerror}", hint="free space"))
        sys.exit(HearthError.exit_code)
    sys.exit(code or 0)


def _drop_output() -> None:
    """What stdout still holds goes nowhere: writing it at the exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: HearthError) -> None:
    """One message and what to do, on stderr."""
    is_color = sys.stderr.isatty()
    red, dim, plain = ("\033[1;31m", "\033[2m", "\033[0m") if is_color else ("", "", "")
    import logging

    if logging.getLogger().isEnabledFor(logging.DEBUG):
        import traceback

        traceback.print_exception(error)
    print(f"{red}error:{plain} {error.message} {dim}[{error.code}]{plain}", file=sys.stderr)
    if error.hint:
        print(f"  what to do: {error.hint}", file=sys.stderr)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
