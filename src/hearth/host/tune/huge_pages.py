"""The HugeTLB pool: as many pages as hold the bytes that were asked for, or that a plan gives.

On a machine of several NUMA nodes each has its share of the pool, and the kernel's own total says
nothing of it: written back, it would spread what was on one node over all. So there each node's
number is changed, and put back.
"""

from __future__ import annotations

import re

from hearth.core.units import KIB, ceil_div, format_bytes, format_count
from hearth.host.facts.numa import NumaNode, read_numa
from hearth.host.tune.actions import Check, FileLine, HostView, Place, absent, move, number_of
from hearth.host.tune.persist import sysctl_line
from hearth.host.tune.places import Change, Places

_TOTAL = "proc/sys/vm/nr_hugepages"
_NODE = "sys/devices/system/node/node{}/hugepages/hugepages-{}kB/nr_hugepages"
# Memory that is left beside the pool: one part in so many of what is free.
_KEPT_SHARE = 4


def find_huge_pages(view: HostView, name: str) -> Check:
    """The pool of the default page size. Raises OSError."""
    now = view.places.read("count", _TOTAL)
    page_bytes = _page_bytes(view.places)
    if now is None or not page_bytes:
        return absent("this kernel has no HugeTLB pool")
    if view.hugepages_bytes is None:
        note = "a MODEL's plan, or --hugepages-bytes, says how much it should hold"
        return Check("ok", now, now, notes=(note,))
    target = ceil_div(view.hugepages_bytes, page_bytes)
    size = (
        f"{format_bytes(view.hugepages_bytes)} are {format_count(target)} pages of "
        f"{format_bytes(page_bytes)}"
    )
    notes = (*((view.hugepages_note,) if view.hugepages_note else ()), size)
    more_pages = target - number_of(now)
    refusal = _refusal(more_pages * page_bytes, view.available_bytes)
    if refusal:
        return Check("locked", now, str(target), notes=(refusal, *notes))
    found = move(view, name, Place("count", _TOTAL, _line), target)
    changes = found.changes
    if changes:
        changes = _node_changes(view.places, name, page_bytes, more_pages) or changes
    return Check(found.state, found.now, found.then, changes, found.lines, (*found.notes, *notes))


def _refusal(more_bytes: int, free_bytes: int | None) -> str:
    if free_bytes is None or more_bytes <= free_bytes - free_bytes // _KEPT_SHARE:
        return ""
    return (
        f"{format_bytes(more_bytes)} more, of {format_bytes(free_bytes)} that are free: at most "
        f"{format_bytes(free_bytes - free_bytes // _KEPT_SHARE)} are taken from everybody else"
    )


def _line(value: str) -> FileLine:
    return sysctl_line("vm.nr_hugepages", value)


def _page_bytes(places: Places) -> int:
    """Hugepagesize of /proc/meminfo; 0 where there is none."""
    text = places.read("value", "proc/meminfo") or ""
    match = re.search(r"^Hugepagesize:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * KIB if match else 0


def _node_changes(
    places: Places, name: str, page_bytes: int, more_pages: int
) -> tuple[Change, ...]:
    """Each node's part of the new pages, by its free memory; () on a machine of one node."""
    nodes = [
        (node, path, now)
        for node in read_numa(places.root).nodes.value or ()
        if (now := places.read("count", path := _NODE.format(node.number, page_bytes // KIB)))
    ]
    if len(nodes) < 2:
        return ()
    parts = _parts(more_pages, [_free_bytes(node) for node, _, _ in nodes])
    return tuple(
        Change(name, "count", path, now, str(number_of(now) + part))
        for (_, path, now), part in zip(nodes, parts, strict=True)
        if part
    )


def _free_bytes(node: NumaNode) -> int:
    return node.free_bytes.value or 0


def _parts(total: int, weights: list[int]) -> list[int]:
    """Whole parts of `total`, by weight; what is left over goes to the heaviest."""
    whole = sum(weights)
    parts = [total * weight // whole if whole else 0 for weight in weights]
    parts[weights.index(max(weights))] += total - sum(parts)
    return parts
