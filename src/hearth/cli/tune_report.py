"""What `hearth tune` says: a plan as a diff, what became of it, both as text and as JSON.

The JSON has a `schema` number, which changes where a field changes its meaning or goes.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hearth.host.tune.places import Change

if TYPE_CHECKING:
    from hearth.cli.tune import Order
    from hearth.host.tune.measure import Measured
    from hearth.host.tune.persist import FilePlan
    from hearth.host.tune.runner import Item, Outcome, Plan, Restored

SCHEMA = 1
_SYSCTL = "proc/sys/"


def plan_lines(plan: Plan) -> list[str]:
    """What would be changed in full, the rest in a line each."""
    lines: list[str] = []
    for item in plan.chosen():
        if item.check.state in ("change", "persist"):
            lines += _item_lines(item)
    if not lines:
        lines.append("nothing to change among the settings that were chosen")
    lines += _short_lines(plan)
    for file in plan.files:
        lines += ["", *_file_lines(file)]
    lines += [f"note: {note}" for note in plan.notes]
    return lines


def _item_lines(item: Item) -> list[str]:
    action, check = item.action, item.check
    lines = [f"{action.name}: {action.setting}"]
    if check.changes:
        lines += [f"  - {check.now}", f"  + {check.then}"]
    else:
        lines += [f"    {check.now}", f"  + {check.then}, with --persist only"]
    lines += [f"    why: {action.why}", f"    effect: {action.effect}"]
    if action.against:
        lines.append(f"    against: {action.against}")
    lines.append(f"    where: {', '.join(_where(item))}")
    return [*lines, *(f"    note: {note}" for note in check.notes)]


def _where(item: Item) -> list[str]:
    """Now, and with --persist."""
    now = [f"/{change.path}" for change in item.check.changes]
    if len(now) > 2:
        now = [now[0], f"… {now[-1]}"]
    files = sorted({f"/{line.file}" for line in item.check.lines})
    return [*now, *(f"{path} (with --persist)" for path in files)]


def _short_lines(plan: Plan) -> list[str]:
    """The settings that are not changed, and why."""
    lines: list[str] = []
    for item in plan.items:
        name, check = item.action.name, item.check
        notes = f" ({'; '.join(check.notes)})" if check.notes else ""
        if check.state == "absent":
            lines.append(f"{name}: not available here{notes}")
        elif check.state == "locked" and (item.is_chosen or not item.action.against):
            lines.append(f"{name}: {check.now}, cannot be changed here{notes}")
        elif check.state == "ok":
            lines.append(f"{name}: {check.now}, as it should be{notes}")
        elif not item.is_chosen:
            why = item.action.against or "not chosen"
            lines.append(f"{name}: {check.now}, not {check.then}: {why}{notes}")
    return ["", *lines] if lines else []


def _file_lines(file: FilePlan) -> list[str]:
    """A diff of one file, as other tools write it."""
    if file.problem:
        return [f"problem: {file.problem}"]
    change = next((c for c in file.changes if c.kind == "file"), None)
    if change is None:
        return [f"/{file.path}: holds all of it already"]
    former = (change.before or "").splitlines()
    old = f"/{file.path}" if change.before is not None else "/dev/null"
    new = file.text.splitlines()
    return list(difflib.unified_diff(former, new, old, f"/{file.path}", lineterm=""))


def what_next(plan: Plan, order: Order) -> list[str]:
    """What to call to make the changes; `order` was a dry run."""
    if not any(item.check.state in ("change", "persist") for item in plan.chosen()):
        return ["nothing was changed"]
    if order.persist:
        return ["nothing was changed; hearth tune --apply --persist does it"]
    return [
        "nothing was changed; hearth tune --apply does it for now, --apply --persist for good,",
        "--measure keeps what it finds to help, --rollback puts everything back",
    ]


def commands(plan: Plan) -> list[str]:
    """Shell commands that do the same as root, without a way back."""
    lines: list[str] = []
    for change in plan.changes():
        lines += _command(change)
    return lines


def _command(change: Change) -> list[str]:
    path = shlex.quote(f"/{change.path}")
    if change.kind == "directory":
        return [f"sudo mkdir -p {path}"]
    text = change.after or ""
    if change.kind == "file":
        words = " ".join(shlex.quote(line) for line in text.splitlines())
        return [f"printf '%s\\n' {words} | sudo tee {path}"]
    if change.path.startswith(_SYSCTL):
        key = change.path.removeprefix(_SYSCTL).replace("/", ".")
        return [f"sudo sysctl -w {key}={shlex.quote(text)}"]
    return [f"echo {shlex.quote(text)} | sudo tee {path}"]


def outcome_lines(outcomes: Sequence[Outcome], journal: Path) -> list[str]:
    """What became of each action and file."""
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.state == "undone":
            as_before = " (as it was before)" if outcome.changes else ""
            lines.append(f"failed: {outcome.name}: {outcome.reason}{as_before}")
        elif outcome.state == "stuck":
            lines.append(f"failed, and not undone: {outcome.name}: {outcome.reason}")
        elif outcome.changes:
            lines.append(f"done: {outcome.name}")
    if any(outcome.changes and outcome.state != "undone" for outcome in outcomes):
        lines.append(f"former values: {journal}; hearth tune --rollback puts them back")
    return lines


def measured_lines(measured: Iterable[Measured]) -> list[str]:
    """Both numbers of each change, and whether it stays."""
    lines = []
    for found in measured:
        if found.trial is None:
            lines.append(f"{found.name}: {found.outcome.reason}")
        else:
            end = "kept" if found.is_kept else "undone"
            lines.append(f"{found.name}: {found.trial.describe()}; {end}")
    return lines or ["nothing to measure: no setting is to be changed"]


def rollback_lines(restored: Sequence[Restored], journal: Path) -> list[str]:
    """What became of each change."""
    if not restored:
        return [f"nothing to put back: {journal} holds no change that is not undone already"]
    lines = [_restored_line(found) for found in restored]
    if any(found.state == "kept" and found.change.kind != "directory" for found in restored):
        lines.append("what somebody has changed since was left alone; --force puts it back, too")
    return lines


def _restored_line(found: Restored) -> str:
    change = found.change
    where = f"/{change.path}"
    if found.state == "restored":
        is_value = change.kind not in ("file", "directory")
        text = f"put back to {change.before}" if is_value else _file_end(change)
        return f"{where}: {text}"
    if found.state == "already":
        return f"{where}: as it was before already"
    if found.state == "gone":
        return f"{where}: {found.reason}"
    return f"{where}: {'failed' if found.state == 'failed' else 'left alone'}: {found.reason}"


def _file_end(change: Change) -> str:
    return "removed" if change.before is None else "put back"


def plan_json(plan: Plan, euid: int) -> str:
    """`{"schema", "is_root", "settings", "files", "notes", "commands"}`."""
    return _json(_plan_object(plan, euid))


def result_json(
    plan: Plan, outcomes: Sequence[Outcome], measured: Sequence[Measured], euid: int
) -> str:
    """The plan's object with `result` and `measured`."""
    found = _plan_object(plan, euid)
    found["result"] = [
        {"name": outcome.name, "state": outcome.state, "reason": outcome.reason}
        for outcome in outcomes
    ]
    found["measured"] = [
        {
            "name": m.name,
            "benchmark": m.trial.benchmark,
            "unit": m.trial.unit,
            "former": m.trial.former,
            "new": m.trial.new,
            "median_former": m.trial.medians[0],
            "median_new": m.trial.medians[1],
            "spread": m.trial.spread,
            "verdict": m.trial.verdict,
            "is_kept": m.is_kept,
        }
        for m in measured
        if m.trial is not None
    ]
    return _json(found)


def rollback_json(restored: Sequence[Restored]) -> str:
    """`{"schema", "restored"}`."""
    rows = [
        {"action": found.change.action, "state": found.state, "reason": found.reason}
        | _change_object(found.change)
        for found in restored
    ]
    return _json({"schema": SCHEMA, "restored": rows})


def _plan_object(plan: Plan, euid: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "is_root": euid == 0,
        "settings": [_item_object(item) for item in plan.items],
        "files": [
            {
                "path": f"/{file.path}",
                "text": file.text,
                "is_changed": bool(file.changes),
                "problem": file.problem,
            }
            for file in plan.files
        ],
        "notes": list(plan.notes),
        "commands": commands(plan),
    }


def _item_object(item: Item) -> dict[str, Any]:
    action, check = item.action, item.check
    return {
        "name": action.name,
        "setting": action.setting,
        "state": check.state,
        "is_chosen": item.is_chosen,
        "is_default": action.is_default,
        "now": check.now,
        "then": check.then,
        "why": action.why,
        "against": action.against,
        "effect": action.effect,
        "changes": [_change_object(change) for change in check.changes],
        "lines": [{"file": f"/{line.file}", "text": line.text} for line in check.lines],
        "notes": list(check.notes),
    }


def _change_object(change: Change) -> dict[str, Any]:
    return {
        "path": f"/{change.path}",
        "kind": change.kind,
        "before": change.before,
        "after": change.after,
    }


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)
