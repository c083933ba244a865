"""A machine laid out as files, and a kernel that answers as the real one does."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

from tests.unit.host.test_memory import write

from hearth.host.tune.actions import HostView
from hearth.host.tune.catalog import ACTIONS
from hearth.host.tune.places import Places
from hearth.host.tune.runner import Plan, make_plan

THP = "sys/kernel/mm/transparent_hugepage"
POLICY = "sys/devices/system/cpu/cpufreq/policy{}/scaling_{}"
DISK = "sys/devices/pci0/block/vda"
READ_AHEAD = "sys/block/vda/queue/read_ahead_kb"

FILES = {
    "proc/sys/net/core/somaxconn": "4096\n",
    "proc/sys/fs/file-max": "100000\n",
    "proc/sys/fs/file-nr": "512\t0\t100000\n",
    "proc/sys/vm/swappiness": "60\n",
    "proc/sys/vm/nr_hugepages": "0\n",
    "proc/meminfo": "MemAvailable: 16777216 kB\nHugepagesize:       2048 kB\n",
    "proc/1/limits": "Max open files            1024    4096    files\n",
    f"{THP}/enabled": "always madvise [never]\n",
    f"{THP}/defrag": "always defer defer+madvise madvise [never]\n",
    POLICY.format(0, "governor"): "schedutil\n",
    POLICY.format(0, "available_governors"): "performance schedutil\n",
    POLICY.format(1, "governor"): "powersave\n",
    POLICY.format(1, "available_governors"): "performance powersave\n",
    f"{DISK}/queue/read_ahead_kb": "128\n",
    f"{DISK}/vda1/partition": "1\n",
    "etc/sysctl.d/99-site.conf": "vm.dirty_ratio = 5\n",
    "etc/security/limits.conf": "# nothing\n",
    "run/systemd/system/x": "",
}


class FakeKernel(Places):
    """Marks a chosen word in brackets, and keeps the pool of huge pages below `max_pages`."""

    max_pages = 1 << 30

    def write_kernel(self, where: Path, text: str) -> None:
        if where.parent.name == "transparent_hugepage":
            words = [word.strip("[]") for word in where.read_text().split()]
            if text not in words:
                raise OSError(22, "Invalid argument")
            text = " ".join(f"[{word}]" if word == text else word for word in words)
        if where.name == "nr_hugepages":
            text = str(min(int(text), self.max_pages))
        super().write_kernel(where, text)


def lay_out(root: Path, changed: dict[str, str] | None = None) -> FakeKernel:
    """A machine on which every action has something to do."""
    write(root, {**FILES, **(changed or {})})
    for link, target in {
        "sys/block/vda": f"../../{DISK}",
        "sys/dev/block/8:0": f"../../../{DISK}",
        "sys/dev/block/8:1": f"../../../{DISK}/vda1",
    }.items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(target)
    return FakeKernel(root)


def view_of(places: Places) -> HostView:
    return HostView(places, Path("/models"), (8, 1), 1024, 4096, None, 16 << 30, 0)


ALL = frozenset(action.name for action in ACTIONS)


def plan_of(
    places: Places,
    chosen: frozenset[str] = ALL,
    *,
    persist: bool = False,
    hugepages_bytes: int | None = 8 << 20,
) -> Plan:
    view = replace(view_of(places), hugepages_bytes=hugepages_bytes)
    return make_plan(view, ACTIONS, chosen, persist=persist)


def snapshot(root: Path, without: str = "var") -> dict[str, tuple[str, bytes, int]]:
    """Every file, link and directory with its content and mode."""
    found: dict[str, tuple[str, bytes, int]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.split("/", maxsplit=1)[0] == without:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = ("link", str(path.readlink()).encode(), 0)
        elif stat.S_ISDIR(mode):
            found[name] = ("directory", b"", stat.S_IMODE(mode))
        else:
            found[name] = ("file", path.read_bytes(), stat.S_IMODE(mode))
    return found
