"""The doctor's table: drawn on a wide terminal, lines elsewhere, so that a log stays readable."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence

from hearth.host.checks.check import Check, Level
from hearth.host.checks.registry import DoctorReport

_COLOURS = {
    Level.OK: "green",
    Level.UNKNOWN: "dim",
    Level.WARN: "yellow",
    Level.FAIL: "bold red",
}
LEAST_COLUMNS = 90  # with fewer of them the table's cells become towers of syllables
_HOW = {"hint": "what to do"}


def print_report(report: DoctorReport) -> None:
    """Prints the checks, what fixes them, and the verdict, on stdout."""
    if sys.stdout.isatty() and shutil.get_terminal_size().columns >= LEAST_COLUMNS:
        _print_table(report.checks)
    else:
        _print_lines(report.checks)
    print(_summary(report))


def _print_lines(checks: Sequence[Check]) -> None:
    for check in checks:
        print(f"{check.level.value:<8}{check.area}: {check.name}: {check.measured}")
        print(f"{'':8}wanted: {check.wanted}")
        print(f"{'':8}why: {check.why}")
        for fix in check.fixes:
            print(f"{'':8}{_HOW.get(fix.how, f'fix ({fix.how})')}: {fix.command}")


def _print_table(checks: Sequence[Check]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    table.add_column("", no_wrap=True, width=max(len(level) for level in Level))
    for title, share in (("check", 3), ("measured", 5), ("wanted", 5), ("why", 7)):
        table.add_column(title, ratio=share, overflow="fold")
    for check in checks:
        colour = _COLOURS[check.level]
        cells = (check.level.value, check.name, check.measured, check.wanted, check.why)
        texts = [Text(cell) for cell in cells]
        texts[0].stylize(colour)
        table.add_row(*texts)
    console.print(table)
    for check in checks:
        if check.fixes:
            console.print(Text.assemble((check.name, _COLOURS[check.level]), f": {check.measured}"))
        for fix in check.fixes:
            # As they are, however long: they are made to be copied.
            line = Text(f"    {_HOW.get(fix.how, fix.how)}: {fix.command}")
            console.print(line, soft_wrap=True)


def _summary(report: DoctorReport) -> str:
    counts = Counter(check.level for check in report.checks)
    parts = [f"{counts[level]} {level.value}" for level in Level if counts[level]]
    return f"verdict: {report.verdict.value} ({', '.join(parts)})"
