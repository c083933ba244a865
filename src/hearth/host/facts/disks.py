"""The storage under a directory: its mount, and the devices from there down to the disks.

A file system may lie on a partition, on LVM, on a RAID, on an encrypted or a cached device, each of
which lies on others: `devices` has them all, the mount's own first, disks last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hearth.core.units import KIB
from hearth.host.disk import DiskFacts, Mount, find_mount, read_disk
from hearth.host.facts.fact import Fact, Tree, first_known, unknown
from hearth.host.files import read_text, scaled, whole_number

_BLOCK = "sys/class/block"
_SECTOR_BYTES = 512  # what Linux counts in, whatever the disk's own sectors
_MOST_DEVICES = 64
# What another machine, or the host of a virtual one, shows of a disk says nothing of the disk.
_VIRTUAL_DISKS = ("vd", "xvd")
_BCACHE_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,2}))?([kMGTP])?", re.ASCII)
_DEVICE_MAPPER = {"LVM": "lvm", "CRYPT": "crypt", "mpath": "multipath"}


@dataclass(frozen=True, slots=True)
class BcacheFacts:
    """A device whose blocks are cached on another one."""

    mode: Fact[str]  # writethrough, writeback, writearound, none
    state: Fact[str]
    sequential_cutoff_bytes: Fact[int]


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One device; `parents`: what it lies on, none for a disk."""

    name: str
    kind: str  # disk, nvme, virtual disk, partition, lvm, crypt, multipath, dm, md, bcache, loop
    model: Fact[str]
    size_bytes: Fact[int]
    rotational: Fact[bool]
    scheduler: Fact[str]
    readahead_bytes: Fact[int]
    parents: tuple[str, ...]
    bcache: BcacheFacts | None = None


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What lies under `directory`, or under the nearest one above that exists."""

    directory: str
    mount_point: Fact[str]
    mount_source: Fact[str]
    file_system: Fact[str]
    is_network: Fact[bool]
    is_in_memory: Fact[bool]
    free_bytes: Fact[int]
    devices: Fact[tuple[BlockDevice, ...]]

    def disks(self) -> tuple[BlockDevice, ...]:
        """The devices that lie on no other one."""
        return tuple(d for d in self.devices.value or () if not d.parents)


def read_storage(directory: Path, root: Path = Path("/")) -> StorageFacts:
    """Reads what lies under a directory, which is one of the host that `root` shows."""
    tree = Tree(root)
    place = _place(directory, root)
    mount = find_mount(place.path, root)
    source = "/proc/self/mountinfo"
    if mount is None:
        nothing = tree.text("proc/self/mountinfo").why or "no mount holds it"
        devices: Fact[tuple[BlockDevice, ...]] = unknown(source, nothing)
    else:
        nothing = ""
        devices = _devices(tree, mount)
    mounted = Fact(mount, source, nothing)
    kind = mounted.then(lambda m: DiskFacts(m.file_system, 0) if m.file_system else None)
    return StorageFacts(
        directory=str(directory),
        mount_point=mounted.then(lambda m: str(m.point)),
        mount_source=mounted.then(lambda m: m.source or None),
        file_system=kind.then(lambda k: k.file_system),
        is_network=kind.then(lambda k: k.is_remote),
        is_in_memory=kind.then(lambda k: k.is_in_memory),
        free_bytes=Fact(place.free_bytes, "statvfs", place.why),
        devices=devices,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """The directory, or the nearest above that exists, with links resolved; its free space."""

    path: Path
    free_bytes: int | None
    why: str  # there is no free space


def _place(directory: Path, root: Path) -> _Place:
    absolute = directory.absolute()
    try:
        shown = root.joinpath(*absolute.parts[1:])
        nearest = next(p for p in (shown, *shown.parents) if p.exists()).resolve()
        path = Path("/", *nearest.relative_to(root.resolve()).parts)
        return _Place(path, read_disk(nearest, root).free_bytes, "")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        return _Place(absolute, None, f"{error}")


def _devices(tree: Tree, mount: Mount) -> Fact[tuple[BlockDevice, ...]]:
    source = f"/{_BLOCK}"
    first = _find_device(tree, mount)
    if first is None:
        return unknown(source, f"{mount.source or mount.file_system} is no device seen from here")
    found: dict[str, BlockDevice] = {}
    waiting = [first]
    while waiting and len(found) < _MOST_DEVICES:
        name = waiting.pop(0)
        if name not in found:
            found[name] = _read_device(tree, name)
            waiting += found[name].parents
    return Fact(tuple(found.values()), source)


def _find_device(tree: Tree, mount: Mount) -> str | None:
    """The name below /sys/class/block; by number, or by the path of what was mounted."""
    major = mount.device_number.partition(":")[0]
    by_path = mount.source.startswith("/dev/")
    wanted = mount.source.rsplit("/", 1)[-1]
    for name in tree.names(_BLOCK):
        if major != "0":
            if read_text(tree.root / _BLOCK / name / "dev") == mount.device_number:
                return name
        elif by_path and wanted in {name, read_text(tree.root / _BLOCK / name / "dm/name")}:
            return name  # btrfs has numbers of its own
    return None


def _read_device(tree: Tree, name: str) -> BlockDevice:
    base = f"{_BLOCK}/{name}"
    parents = tuple(tree.names(f"{base}/slaves"))
    disk = base
    if tree.has(f"{base}/partition"):
        owner = _disk_of_partition(tree, name)
        parents, disk = (owner,) if owner else (), f"{_BLOCK}/{owner}" if owner else base
    kind = _kind(tree, name)
    rotational: Fact[bool] = tree.flag(f"{disk}/queue/rotational")
    if kind == "virtual disk":
        rotational = unknown(rotational.source, "a virtual disk: what lies under it is not told")
    return BlockDevice(
        name=name,
        kind=kind,
        model=first_known(tree.text(f"{disk}/device/model"), tree.text(f"{base}/dm/name")),
        size_bytes=tree.number(f"{base}/size").then(lambda sectors: scaled(sectors, _SECTOR_BYTES)),
        rotational=rotational,
        scheduler=first_known(
            tree.chosen(f"{disk}/queue/scheduler"), tree.text(f"{disk}/queue/scheduler")
        ),
        readahead_bytes=tree.number(f"{disk}/queue/read_ahead_kb").then(
            lambda kilobytes: scaled(kilobytes, KIB)
        ),
        parents=parents,
        bcache=_bcache(tree, base) if kind == "bcache" else None,
    )


def _disk_of_partition(tree: Tree, name: str) -> str:
    """A partition's directory lies in its disk's; empty where that is not to be seen."""
    try:
        owner = (tree.root / _BLOCK / name).resolve().parent.name
    except (OSError, RuntimeError):
        return ""
    return owner if owner != name and tree.has(f"{_BLOCK}/{owner}/queue") else ""


def _kind(tree: Tree, name: str) -> str:
    base = f"{_BLOCK}/{name}"
    if tree.has(f"{base}/partition"):
        return "partition"
    if tree.has(f"{base}/dm"):
        prefix = read_text(tree.root / base / "dm/uuid").partition("-")[0]
        return _DEVICE_MAPPER.get(prefix, "dm")
    if tree.has(f"{base}/md"):
        return "md"
    if name.startswith("bcache"):
        return "bcache"
    if name.startswith(_VIRTUAL_DISKS):
        return "virtual disk"
    return next((kind for kind in ("nvme", "loop", "zram") if name.startswith(kind)), "disk")


def _bcache(tree: Tree, base: str) -> BcacheFacts:
    return BcacheFacts(
        mode=tree.chosen(f"{base}/bcache/cache_mode"),
        state=tree.text(f"{base}/bcache/state"),
        sequential_cutoff_bytes=tree.text(f"{base}/bcache/sequential_cutoff").then(
            _bcache_size, "not a size"
        ),
    )


def _bcache_size(text: str) -> int | None:
    """Bytes of a size as bcache writes it: 4.0M, 512k, 0; bch_hprint() counts up to ten tenths."""
    match = _BCACHE_SIZE.fullmatch(text)
    if match is None:
        return None
    factor = 1 << (10 * " kMGTP".index(match[3] or " "))
    size, tenths = scaled(whole_number(match[1]), factor), int(match[2] or 0)
    return None if size is None else scaled(size + tenths * factor // 10, 1)
