"""`hearth version`: what is installed."""

from __future__ import annotations

import sys

import typer

from hearth import __version__


def version() -> None:
    """Show the versions of hearth and Python, and the machine."""
    import platform

    print(f"hearth {__version__}")
    print(f"python {platform.python_version()} ({sys.executable})")
    print(f"machine {platform.system()} {platform.machine()}")


def show_version(asked: bool) -> None:
    """`hearth --version`."""
    if asked:
        print(f"hearth {__version__}")
        raise typer.Exit
