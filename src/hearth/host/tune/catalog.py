"""The actions, one for each setting: what it really does, and whether it is applied by default.

Numbers only ever move towards their target: a machine that somebody has set further stays so. A
customary value that does nothing for hearth, or harms it, is here all the same, so that it can be
asked for and the reason read; it is not applied by default. Measured effects: docs/tuning.md.
"""

from __future__ import annotations

from functools import partial

from hearth.host.tune.actions import (
    Action,
    Check,
    FileLine,
    HostView,
    Place,
    State,
    absent,
    move,
)
from hearth.host.tune.huge_pages import find_huge_pages
from hearth.host.tune.open_files import find_open_files
from hearth.host.tune.persist import sysctl_line, sysfs_line
from hearth.host.tune.places import Change, Places

SOMAXCONN = 65535
FILE_MAX = 2097152
SWAPPINESS = 10
READ_AHEAD_KIB = 4096
_READ_AHEAD_FILE = "read_ahead_kb"
_THP = "sys/kernel/mm/transparent_hugepage"
_CPUFREQ = "sys/devices/system/cpu/cpufreq"


def _sysctl(key: str) -> Place:
    return Place("value", f"proc/sys/{key.replace('.', '/')}", partial(sysctl_line, key))


def _somaxconn(view: HostView, name: str) -> Check:
    return move(view, name, _sysctl("net.core.somaxconn"), SOMAXCONN)


def _file_max(view: HostView, name: str) -> Check:
    found = move(view, name, _sysctl("fs.file-max"), FILE_MAX)
    used = (view.places.read("value", "proc/sys/fs/file-nr") or "").split()
    if not used or found.state == "absent":
        return found
    note = f"{used[0]} files are open on this machine"
    return Check(
        found.state, found.now, found.then, found.changes, found.lines, (*found.notes, note)
    )


def _swappiness(view: HostView, name: str) -> Check:
    return move(view, name, _sysctl("vm.swappiness"), SWAPPINESS, upwards=False)


def _thp(view: HostView, name: str) -> Check:
    """Only from `never`: hearth asks for its huge pages, so madvise is enough."""
    return _choose(view, name, "enabled", {"never": "madvise"})


def _thp_defrag(view: HostView, name: str) -> Check:
    """Memory that asks for huge pages may wait for them; that of others keeps its setting."""
    return _choose(view, name, "defrag", {"never": "madvise", "defer": "defer+madvise"})


def _choose(view: HostView, name: str, file: str, targets: dict[str, str]) -> Check:
    path = f"{_THP}/{file}"
    now = view.places.read("choice", path)
    if now is None:
        return absent("this kernel has no transparent huge pages")
    target = targets.get(now, now)
    lines = (sysfs_line(path, target),)
    if target == now:
        # What the machine has by itself needs no file; what hearth has set does.
        return Check("ok", now, now, lines=lines if now in targets.values() else ())
    return Check("change", now, target, (Change(name, "choice", path, now, target),), lines)


def _governor(view: HostView, name: str) -> Check:
    changes: list[Change] = []
    lines: list[FileLine] = []
    values: list[str] = []
    notes: list[str] = []
    for policy in sorted(
        (view.places.root / _CPUFREQ).glob("policy*"), key=lambda p: (len(p.name), p.name)
    ):
        base = f"{_CPUFREQ}/{policy.name}"
        path = f"{base}/scaling_governor"
        now = view.places.read("value", path)
        offered = view.places.read("value", f"{base}/scaling_available_governors")
        if now is None or "performance" not in (offered or "").split():
            continue
        values.append(now)
        if now == "userspace":  # its speed, too, is somebody's, and would be lost
            notes.append(f"{policy.name} is left alone: somebody sets its speed (userspace)")
            continue
        lines.append(sysfs_line(path, "performance"))
        if now != "performance":
            changes += _energy_preference(view.places, name, base)
            changes.append(Change(name, "value", path, now, "performance"))
    if not values:
        return absent("no cpufreq governor: usual in a virtual machine, where the host decides")
    now = ", ".join(sorted(set(values)))
    state: State = "change" if changes else "ok"
    return Check(state, now, "performance", tuple(changes), tuple(lines), tuple(notes))


def _energy_preference(places: Places, name: str, base: str) -> list[Change]:
    """The governor `performance` takes this with it, and leaves it there: so it goes first.

    Put back in reverse, the governor comes before it: under `performance` it cannot be written
    (kernel documentation, intel_pstate and amd-pstate).
    """
    path = f"{base}/energy_performance_preference"
    now = places.read("value", path)
    offered = places.read("value", f"{base}/energy_performance_available_preferences")
    if now in (None, "performance") or "performance" not in (offered or "").split():
        return []
    return [Change(name, "value", path, now, "performance")]


def read_ahead_path(view: HostView) -> str | None:
    """Where the readahead of the disk under the models is set; None where nothing says.

    The block device of the file system counts, and for a partition its disk; a volume (dm, md) has
    a setting of its own, and so has a file system without a device of its own (NFS), in class/bdi.
    """
    if view.device is None:
        return None
    root, number = view.places.root, "{}:{}".format(*view.device)
    link = root / "sys/dev/block" / number
    if link.exists():
        device = link.resolve()
        disk = device.parent if (device / "partition").exists() else device
        path = f"sys/block/{disk.name}/queue/{_READ_AHEAD_FILE}"
        if (root / path).exists():
            return path
    path = f"sys/class/bdi/{number}/{_READ_AHEAD_FILE}"
    return path if (root / path).exists() else None


def _read_ahead(view: HostView, name: str) -> Check:
    path = read_ahead_path(view)
    if path is None:
        return absent(
            f"nothing says which disk holds {view.models_dir} (an overlay, btrfs, or in memory)"
        )
    # The number of a file system without a device is another one after each mount.
    line = None if "/bdi/" in path else partial(sysfs_line, path)
    found = move(view, name, Place("value", path, line), READ_AHEAD_KIB)
    notes = [*found.notes, f"the disk that holds {view.models_dir}"]
    if line is None:
        notes.append("not kept by --persist: this file system has no disk of its own to name")
    return Check(found.state, found.now, found.then, found.changes, found.lines, tuple(notes))


ACTIONS: tuple[Action, ...] = (
    Action(
        "nofile",
        "limit of open files",
        "every connection is an open file; the soft limit of a login is often 1024",
        "more connections at a time; no speed",
        find_open_files,
    ),
    Action(
        "somaxconn",
        "net.core.somaxconn",
        "connections that wait for hearth serve: the smaller of this and its backlog, which is "
        f"{SOMAXCONN}; beyond it they are dropped and try again after a second",
        "bursts above the present value are answered at once; below it nothing changes",
        _somaxconn,
    ),
    Action(
        "file-max",
        "fs.file-max",
        "open files of the whole machine",
        "none, unless it is reached",
        _file_max,
        against="it is rarely reached: most machines have more by themselves",
    ),
    Action(
        "swappiness",
        "vm.swappiness",
        "a lower value keeps anonymous memory and takes file pages instead",
        "under memory pressure mapped weights leave memory sooner; without it none",
        _swappiness,
        against="hearth maps weights from files: a lower value harms them",
    ),
    Action(
        "hugepages",
        "vm.nr_hugepages",
        "a pool of huge pages for programs that ask for MAP_HUGETLB",
        "for such programs; for hearth none, and the memory is gone for everything else",
        find_huge_pages,
        against="hearth maps weights from files, where MAP_HUGETLB does not work, and takes no "
        "page of the pool; it asks for transparent huge pages instead (thp)",
    ),
    Action(
        "thp",
        "transparent huge pages",
        "hearth asks for huge pages for weights, KV cache and buffers: `never` refuses them",
        "fewer misses in the TLB where weights are read; see --measure",
        _thp,
    ),
    Action(
        "thp-defrag",
        "transparent huge pages: defrag",
        "memory that asks for huge pages should get them from the beginning, not some time later",
        "huge pages on a machine whose memory is in pieces; loading may take longer there",
        _thp_defrag,
    ),
    Action(
        "governor",
        "CPU frequency governor",
        "steps are short and come after pauses, in which other governors lower the clock",
        "a quicker first step after a pause; more power when idle",
        _governor,
    ),
    Action(
        "readahead",
        "readahead of the disk (KiB)",
        "weights are read from the beginning to the end: larger requests keep a disk busy",
        "quicker cold starts; reads that jump about fetch more than they need",
        _read_ahead,
    ),
)

BY_NAME = {action.name: action for action in ACTIONS}
