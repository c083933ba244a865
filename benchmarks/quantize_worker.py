"""Quantizes one checkpoint in a process of its own, so that its peak memory is its own.

    python -m benchmarks.quantize_worker MODEL OUT --scheme w4a16 --group-size 128 --method rtn

Runs `hearth quantize` in this process. A hearth without that command is left its round-to-nearest
by `quantize_directory`. The last line printed is JSON: `seconds` (imports left out where that
command makes none), `peak_bytes` and `how`, or `refused` with hearth's own message.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path

from benchmarks.peers.workers.protocol import status_bytes

from hearth.core.errors import ConfigError, HearthError

# What `quantize_directory` can make: scheme → its name there, zero points.
_DIRECT = {"w4a16": ("int4", False), "w4a16-asym": ("int4", True), "w8a16": ("int8", False)}
_FRAME = re.compile(r"[│╭╮╰╯─]+")


def has_command() -> bool:
    """Whether this hearth has `quantize`."""
    from hearth.cli.main import app

    commands = app.registered_commands
    return "quantize" in {one.name or getattr(one.callback, "__name__", "") for one in commands}


def quantize(given: argparse.Namespace) -> str:
    """Makes the checkpoint; returns how. Raises HearthError."""
    if has_command():
        _by_command(given)
        return "hearth quantize"
    _directly(given)
    return "quantize_directory"


def _by_command(given: argparse.Namespace) -> None:
    from hearth.cli.main import main as hearth

    arguments = ["quantize", str(given.model), "--scheme", given.scheme, "--method", given.method]
    arguments += ["-o", str(given.out)]
    if given.group_size:
        arguments += ["--group-size", str(given.group_size)]
    if given.method != "rtn" and given.calibration:
        arguments += ["--calibration", str(given.calibration)]
    sys.argv = ["hearth", *arguments]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            hearth()
        except SystemExit as end:
            if end.code:
                raise HearthError(message_of(errors.getvalue())) from end


def message_of(errors: str) -> str:
    """What a command wrote to stderr, as one line: its error, or all of it."""
    found = re.search(r"error: ?(.+)", re.sub(r"\x1b\[[\d;]*m", "", errors), re.IGNORECASE)
    text = found[1] if found else _FRAME.sub(" ", errors)
    return " ".join(text.split()) or "no message"


def _directly(given: argparse.Namespace) -> None:
    from hearth.quant.checkpoint import quantize_directory, scheme_of

    if given.method != "rtn" or given.scheme not in _DIRECT:
        raise ConfigError(f"this hearth has no {given.scheme} by {given.method}")
    name, zero_points = _DIRECT[given.scheme]
    scheme = scheme_of(name, given.group_size or 128, zero_points=zero_points)
    quantize_directory(given.model, given.out, scheme, lambda _done, _total: None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--method", default="rtn")
    parser.add_argument("--calibration", type=Path)
    given = parser.parse_args()
    begin = time.monotonic()
    try:
        how = quantize(given)
    except HearthError as error:
        print(json.dumps({"refused": str(error)}))
        sys.exit(1)
    seconds = time.monotonic() - begin
    peak = status_bytes(os.getpid(), "VmHWM")
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "how": how}))


if __name__ == "__main__":
    main()
