"""`hearth tune`: settings of the machine, shown, changed, measured, taken back.

What changes the machine (--apply, --persist, --measure, --rollback, --force) has no environment
variable and, as there is no --config here, no place in a file: nobody should change a machine by
what a shell has inherited.

Exit codes: 0 done, or nothing to do; 1 an action failed and was undone, cannot be done here, or
something was left as somebody else has set it; 8 refused (no root, another hearth tune at work, a
damaged journal) or something could not be put back.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from hearth.cli import tune_options as flags
from hearth.cli.storage import storage_of
from hearth.core.errors import ConfigError, HostError
from hearth.core.paths import home_expanded
from hearth.core.units import format_count

if TYPE_CHECKING:
    from hearth.host.tune.actions import HostView
    from hearth.host.tune.places import Places
    from hearth.host.tune.runner import Plan

FAILED = 1


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


@dataclass(frozen=True, slots=True)
class PoolSize:
    """What the pool of huge pages is to hold, and who says so; None: nobody, for this reason."""

    num_bytes: int | None
    note: str = ""


def tune(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    model: flags.Model = None,
    max_model_len: flags.MaxModelLen = None,
    apply: flags.Apply = False,
    persist: flags.Persist = False,
    measure: flags.Measure = False,
    rollback: flags.Rollback = False,
    force: flags.Force = False,
    only: flags.Only = None,
    with_: flags.With = None,
    hugepages_bytes: flags.HugepagesBytes = None,
    models_dir: flags.ModelsDir = "",
    journal: flags.JournalFile = flags.JOURNAL,
    json: flags.Json = False,
) -> None:
    """Show what should be changed on this machine for serving; with --apply change it.

    Without a flag nothing is changed. Exit code 1: something failed and was undone, or cannot be
    done here.
    """
    from hearth.host.tune.places import Places

    _check_flags(apply=apply, persist=persist, measure=measure, rollback=rollback, force=force)
    if rollback and model is not None:
        raise ConfigError("--rollback takes no MODEL: it goes by the journal")
    if max_model_len is not None and model is None:
        raise ConfigError("--max-model-len needs a MODEL", hint="hearth tune MODEL")
    chosen = choose(only or [], with_ or [], hugepages_bytes, has_model=model is not None)
    path = home_expanded(journal).absolute()
    order = Order(chosen, path, apply, persist, measure, rollback, force, json)
    places = Places()
    if rollback:
        raise typer.Exit(_roll_back(order, places))
    pool = pool_size(model, max_model_len, hugepages_bytes)
    if "hugepages" in chosen and pool.num_bytes is None:
        raise ConfigError(f"hugepages needs a size: {pool.note}", hint="add --hugepages-bytes 4G")
    view = _view(places, storage_of(model, models_dir), pool)
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
    only: Sequence[str],
    with_: Sequence[str],
    hugepages_bytes: int | None,
    *,
    has_model: bool = False,
) -> frozenset[str]:
    """Names of the actions to apply. Raises ConfigError for a name that is none.

    `has_model`: its plan gives the pool of huge pages a size, where nothing else does.
    """
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
    if "hugepages" in names and hugepages_bytes is None and not has_model:
        raise ConfigError(
            "hugepages needs a size", hint="add --hugepages-bytes 4G, or name a MODEL"
        )
    if hugepages_bytes is not None and "hugepages" not in names:
        raise ConfigError("--hugepages-bytes does not go with --only of other settings")
    return frozenset(names)


def pool_size(model: str | None, context: int | None, given: int | None) -> PoolSize:
    """Of the pool of huge pages: what was asked for, else all that MODEL's plan counts.

    Raises what planning raises for a MODEL that is none.
    """
    if given is not None:
        return PoolSize(given, "--hugepages-bytes")
    if model is None:
        return PoolSize(None)
    from hearth.cli.model_needs import read_needs

    needs = read_needs(model, context)
    if not needs.schemes:
        refusal = needs.refusal or f"{needs.architecture} is planned at its start"
        return PoolSize(None, f"no plan of {model}: {refusal}")
    # As it would be served here; as it is stored where nothing fits.
    need = next((scheme for scheme in needs.schemes if scheme.fits), needs.schemes[0])
    stored = "weights as stored" if need.scheme == "none" else f"weights as {need.scheme}"
    note = f"the plan of {model}, {stored}, a context of {format_count(need.num_tokens)} tokens"
    return PoolSize(need.needed_bytes, note)


def _view(places: Places, models_dir: Path, pool: PoolSize) -> HostView:
    from hearth.core.errors import CapacityError
    from hearth.host.memory import read_memory
    from hearth.host.tune.actions import view_of

    try:
        available: int | None = read_memory(places.root).available_bytes
    except CapacityError:
        available = None
    return view_of(
        places,
        models_dir,
        hugepages_bytes=pool.num_bytes,
        available_bytes=available,
        hugepages_note=pool.note,
    )


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
        own = own_command(sys.argv, os.environ, view.models_dir)
        require_root(view.euid, [own, "or, one by one:", *report.commands(plan)])
    if not changes_something:
        if order.json:
            print(report.plan_json(plan, view.euid))
        else:
            print("\n".join([*report.plan_lines(plan), "", *report.what_next(plan, order)]))
        return 0
    return _measure(order, view, plan) if order.measure else _apply(order, view, plan)


def own_command(
    words: Sequence[str], environment: Mapping[str, str], models_dir: Path | None = None
) -> str:
    """This call again, as root: it would have another search path, home and environment.

    `words`: of this call, the program first; `models_dir`: what stands for the models' storage.
    """
    script = Path(words[0]).absolute()
    program = [str(script)] if script.name == "hearth" else [sys.executable, "-m", "hearth.cli"]
    taken = [f"{k}={v}" for k, v in sorted(environment.items()) if k.startswith("HEARTH_TUNE_")]
    is_named = any(word.startswith("--models-dir") for word in words)
    if models_dir is not None and not is_named:
        taken = [pair for pair in taken if not pair.startswith("HEARTH_TUNE_MODELS_DIR=")]
        program += [*words[1:], "--models-dir", str(models_dir)]
    else:
        program += words[1:]
    return shlex.join(["sudo", *(["env", *taken] if taken else []), *program])


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
        with open_journal(order.journal) as journal, ending_in_order():
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


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Signals that end a process, that of a lost connection too, put back what is half done.

    Only the first does: a second one must not keep the former value from coming back.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
    ]

    def leave(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _roll_back(order: Order, places: Places) -> int:
    from hearth.cli import tune_report as report
    from hearth.host.tune.journal import open_journal, read_entries
    from hearth.host.tune.runner import Restored, require_root, roll_back

    entries = read_entries(order.journal, skip_damaged=order.force)
    pending = [entry for entry in entries if entry.state != "undone"]
    found: list[Restored] = []
    if pending:
        require_root(os.geteuid(), [own_command(sys.argv, os.environ)])
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
