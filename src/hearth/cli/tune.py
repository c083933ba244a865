"""`hearth tune`: settings of the machine, shown, changed, measured, taken back.

What changes the machine (--apply, --persist, --measure, --rollback, --force) has no environment
variable and, as there is no --config here, no place in a file: nobody should change a machine by
what a shell has inherited.

Exit codes: 0 done, or nothing to do; 1 an action failed and was undone, cannot be done here, or
something was left as somebody else has set it; 8 refused (no root, another hearth tune at work, a
damaged journal) or something could not be put back.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearth.cli.options import option, quantity
from hearth.cli.storage import storage_directory
from hearth.core.errors import ConfigError, HostError
from hearth.core.paths import home_expanded

if TYPE_CHECKING:
    from hearth.host.tune.actions import HostView
    from hearth.host.tune.places import Places
    from hearth.host.tune.runner import Plan

JOURNAL = "/var/lib/hearth/tune.journal"
FAILED = 1
_CHANGES, _CHOICE = "Changing the machine", "Which settings"


def _switch(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=_CHANGES)


def _flag(name: str, text: str, panel: str | None = None, **settings: Any) -> Any:
    return option(name, text, prefix="TUNE_", rich_help_panel=panel, **settings)


Apply = Annotated[bool, _switch("--apply", "Make the changes, for now: until the next boot.")]
Persist = Annotated[
    bool, _switch("--persist", "With --apply or --measure: write them to files in /etc, too.")
]
Measure = Annotated[
    bool,
    _switch(
        "--measure",
        "Measure each change before and after, in turns; keep what helps, undo the rest.",
    ),
]
Rollback = Annotated[
    bool, _switch("--rollback", "Put everything back that hearth tune has changed.")
]
Force = Annotated[
    bool,
    _switch(
        "--force",
        "With --rollback: also what somebody else has changed since; damaged lines of the journal "
        "are left out.",
    ),
]
Only = Annotated[
    list[str] | None,
    _flag("--only", "Only this setting; may be repeated.", _CHOICE, metavar="NAME"),
]
With = Annotated[
    list[str] | None,
    _flag(
        "--with",
        "This one, too, which is not applied by default; may be repeated.",
        _CHOICE,
        metavar="NAME",
    ),
]
HugepagesBytes = Annotated[
    int | None,
    _flag(
        "--hugepages-bytes",
        "Size of the HugeTLB pool, such as 4G, for other programs: hearth uses none of it.",
        _CHOICE,
        parser=quantity,
        metavar="BYTES",
        show_default=False,
    ),
]
ModelsDir = Annotated[
    str,
    _flag(
        "--models-dir",
        "Where models lie: the readahead of that disk is meant. Default: where hearth pull puts "
        "them.",
        _CHOICE,
        metavar="DIRECTORY",
        show_default=False,
    ),
]
JournalFile = Annotated[
    str, _flag("--journal", "Where former values are written down.", metavar="FILE")
]
Json = Annotated[bool, _flag("--json", "Plan and result as one JSON object.")]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    chosen: frozenset[str]
    journal: Path
    apply: bool = False
    persist: bool = False
    measure: bool = False
    rollback: bool = False
    force: bool = False
    json: bool = False


def tune(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    apply: Apply = False,
    persist: Persist = False,
    measure: Measure = False,
    rollback: Rollback = False,
    force: Force = False,
    only: Only = None,
    with_: With = None,
    hugepages_bytes: HugepagesBytes = None,
    models_dir: ModelsDir = "",
    journal: JournalFile = JOURNAL,
    json: Json = False,
) -> None:
    """Show what should be changed on this machine for serving; with --apply change it.

    Without a flag nothing is changed. Exit code 1: something failed and was undone, or cannot be
    done here.
    """
    from hearth.host.tune.places import Places

    _check_flags(apply=apply, persist=persist, measure=measure, rollback=rollback, force=force)
    chosen = choose(only or [], with_ or [], hugepages_bytes)
    path = home_expanded(journal).absolute()
    order = Order(chosen, path, apply, persist, measure, rollback, force, json)
    places = Places()
    if rollback:
        raise typer.Exit(_roll_back(order, places))
    view = _view(places, models_dir, hugepages_bytes)
    raise typer.Exit(_run(order, view))


def _check_flags(*, apply: bool, persist: bool, measure: bool, rollback: bool, force: bool) -> None:
    """Raises ConfigError for flags that contradict each other."""
    if rollback and (apply or persist or measure):
        raise ConfigError("--rollback does not go with --apply, --persist or --measure")
    if apply and measure:
        raise ConfigError(
            "--apply and --measure are two things: one applies, the other what helps",
            hint="take one of them",
        )
    if force and not rollback:
        raise ConfigError("--force belongs to --rollback")


def choose(
    only: Sequence[str], with_: Sequence[str], hugepages_bytes: int | None
) -> frozenset[str]:
    """Names of the actions to apply. Raises ConfigError for a name that is none."""
    from hearth.host.tune.catalog import ACTIONS, BY_NAME

    for name in (*only, *with_):
        if name not in BY_NAME:
            close = difflib.get_close_matches(name, BY_NAME, 1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"{name!r} is no setting of hearth tune",
                hint=f"{guess}permitted: {', '.join(BY_NAME)}",
            )
    names = set(only) or {action.name for action in ACTIONS if action.is_default}
    names |= set(with_)
    if hugepages_bytes is not None and not only:
        names.add("hugepages")
    if "hugepages" in names and hugepages_bytes is None:
        raise ConfigError("hugepages needs a size", hint="add --hugepages-bytes 4G")
    if hugepages_bytes is not None and "hugepages" not in names:
        raise ConfigError("--hugepages-bytes does not go with --only of other settings")
    return frozenset(names)


def _view(places: Places, models_dir: str, hugepages_bytes: int | None) -> HostView:
    from hearth.core.errors import CapacityError
    from hearth.host.memory import read_memory
    from hearth.host.tune.actions import view_of

    try:
        available: int | None = read_memory(places.root).available_bytes
    except CapacityError:
        available = None
    directory = storage_directory(models_dir)
    return view_of(places, directory, hugepages_bytes=hugepages_bytes, available_bytes=available)


def _run(order: Order, view: HostView) -> int:
    """Shows the plan and carries it out, as far as that was asked for."""
    from hearth.cli import tune_report as report
    from hearth.host.tune.catalog import ACTIONS
    from hearth.host.tune.runner import make_plan, require_root

    changes_something = order.apply or order.measure
    plan = make_plan(view, ACTIONS, order.chosen, persist=order.persist)
    if changes_something and view.euid != 0 and plan.changes():
        is_text = not order.json
        print("\n".join(report.plan_lines(plan)) if is_text else report.plan_json(plan, view.euid))
        require_root(view.euid, [_own_command(), "or, one by one:", *report.commands(plan)])
    if not changes_something:
        if order.json:
            print(report.plan_json(plan, view.euid))
        else:
            print("\n".join([*report.plan_lines(plan), "", *report.what_next(plan, order)]))
        return 0
    return _measure(order, view, plan) if order.measure else _apply(order, view, plan)


def _own_command() -> str:
    """This call again, as root; sudo has a search path of its own."""
    script = Path(sys.argv[0]).absolute()
    program = [str(script)] if script.name == "hearth" else [sys.executable, "-m", "hearth.cli"]
    return shlex.join(["sudo", *program, *sys.argv[1:]])


def _apply(order: Order, view: HostView, plan: Plan) -> int:
    from hearth.cli import tune_report as report
    from hearth.host.tune.journal import open_journal
    from hearth.host.tune.runner import Outcome, apply_plan

    outcomes: list[Outcome] = []
    if plan.changes():  # nothing to do is nothing to write down
        with open_journal(order.journal) as journal:
            outcomes = apply_plan(plan, view.places, journal, persist=order.persist)
    is_short = plan.locked() or any(file.problem for file in plan.files)
    if order.json:
        print(report.result_json(plan, outcomes, [], view.euid))
    else:
        print("\n".join(report.plan_lines(plan)))
        print("\n".join(["", *report.outcome_lines(outcomes, order.journal)]))
    return _code_of(outcomes) or (FAILED if is_short else 0)


def _measure(order: Order, view: HostView, plan: Plan) -> int:
    from hearth.cli import tune_report as report
    from hearth.host.tune.benchmarks import choose_benchmark
    from hearth.host.tune.journal import open_journal
    from hearth.host.tune.measure import Measured, measure_plan
    from hearth.host.tune.runner import write_files

    measured: list[Measured] = []
    outcomes = []
    if plan.changes():
        with open_journal(order.journal) as journal:
            measured = measure_plan(
                plan,
                view.places,
                journal,
                lambda item: choose_benchmark(view, item),
                tell=lambda text: print(f"measuring {text}", file=sys.stderr, flush=True),
            )
            kept = {found.name for found in measured if found.is_kept}
            if order.persist:
                lines = [
                    line
                    for item in plan.chosen()
                    if item.action.name in kept or item.check.state in {"ok", "persist"}
                    for line in item.check.lines
                ]
                outcomes = write_files(lines, view.places, journal)
    outcomes = [*(found.outcome for found in measured), *outcomes]
    if order.json:
        print(report.result_json(plan, outcomes, measured, view.euid))
    else:
        print("\n".join(report.plan_lines(plan)))
        print("\n".join(["", *report.measured_lines(measured)]))
        files = [outcome for outcome in outcomes if outcome.name.startswith("/")]
        print("\n".join(report.outcome_lines(files, order.journal)))
    return _code_of(outcomes) or (FAILED if plan.locked() else 0)


def _roll_back(order: Order, places: Places) -> int:
    from hearth.cli import tune_report as report
    from hearth.host.tune.journal import open_journal, read_entries
    from hearth.host.tune.runner import Restored, require_root, roll_back

    entries = read_entries(order.journal, skip_damaged=order.force)
    pending = [entry for entry in entries if entry.state != "undone"]
    found: list[Restored] = []
    if pending:
        require_root(os.geteuid(), [_own_command()])
        with open_journal(order.journal, skip_damaged=order.force) as journal:
            found = roll_back(places, journal, force=order.force)
    if order.json:
        print(report.rollback_json(found))
    else:
        print("\n".join(report.rollback_lines(found, order.journal)))
    if any(restored.state == "failed" for restored in found):
        return HostError.exit_code
    return FAILED if any(not restored.is_settled for restored in found) else 0


def _code_of(outcomes: Sequence[Any]) -> int:
    """Of the worst."""
    states = {outcome.state for outcome in outcomes}
    if "stuck" in states:
        return HostError.exit_code
    return FAILED if "undone" in states else 0
