"""Quantizes one checkpoint in a process of its own, so that its peak memory is its own.

    python -m benchmarks.quantize_worker MODEL OUT --scheme w4a16 --group-size 128 --method rtn

Runs `hearth quantize` in this process. The last line printed is JSON: `seconds` (what that command
imports included) and `peak_bytes`, or `refused` with hearth's own message.
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

from hearth.core.errors import HearthError

_FRAME = re.compile(r"[│╭╮╰╯─]+")


def quantize(given: argparse.Namespace) -> None:
    """Makes the checkpoint by the command line. Raises HearthError with what it said."""
    from hearth.cli.main import main as hearth

    arguments = ["quantize", str(given.model), "--scheme", given.scheme, "--method", given.method]
    arguments += ["-o", str(given.out), "--no-quality"]
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
        quantize(given)
    except HearthError as error:
        print(json.dumps({"refused": str(error)}))
        sys.exit(1)
    seconds = time.monotonic() - begin
    peak = status_bytes(os.getpid(), "VmHWM")
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
