"""The disk that holds the models, with a guided answer where it is slow.

A slow disk is answered by copying the model to a fast one (staging), or, for a rotating disk that
must stay, by a cache of its blocks (bcache).
"""

from __future__ import annotations

import shlex

from hearth.core.units import KIB, MIB, format_bytes
from hearth.host.checks.check import Check, Examined, Fix, Level, serve_fix, shown, tune_fix
from hearth.host.facts.disks import BcacheFacts, BlockDevice, StorageFacts

AREA = "storage"
_NO_CACHE = "no cache"  # bcache's own words (drivers/md/bcache/sysfs.c)
READAHEAD_BYTES = 4 * MIB
_READAHEAD_WHY = "the first, cold start reads models from end to end, and long requests are quicker"
_STAGE = Fix(
    "hint", "copy the model to a directory on an SSD or NVMe disk, and serve it from there"
)


def check_model_disk(examined: Examined) -> tuple[Check, ...]:
    """Whether the directory of the models lies on something fast."""
    storage = examined.facts.storage
    why = "a model is read from there at every start: 18 GB take 2 minutes at 150 MB/s"
    where = f"{storage.directory}: {_describe(storage)}"
    level = Level.OK
    fixes: tuple[Fix, ...] = ()
    bcache = _bcache(storage)
    if bcache is not None and bcache.state.value != _NO_CACHE:
        why += "; a cached disk is judged by its cache, see bcache"
    elif storage.is_network.value:
        level, fixes = Level.WARN, (_stage(examined), _copy(storage), _STAGE)
        why += "; from a network it also stalls when the network does, while it serves: weights "
        why += "that are mapped are fetched again after they were dropped"
    elif any(disk.rotational.value for disk in storage.disks()):
        level, fixes = Level.WARN, (_stage(examined), _copy(storage), _STAGE, *_SET_UP_BCACHE)
        why += "; a rotating disk wants one sequential reader, or a cache of its blocks on an SSD "
        why += "(bcache: reformats the disk, so copy what it holds first)"
    elif storage.is_in_memory.value:
        why += "; this one takes memory that the model needs, too"
    elif storage.devices.value is None or _is_untold(storage):
        level = Level.UNKNOWN
    return (Check("model disk", AREA, level, where, "an SSD or NVMe disk", why, fixes),)


_SET_UP_BCACHE = (
    Fix("shell", "sudo make-bcache --cache /dev/SSD --bdev /dev/HDD  # both are erased"),
    Fix("shell", "echo 0 | sudo tee /sys/block/bcache0/bcache/sequential_cutoff"),
    Fix("shell", "echo writethrough | sudo tee /sys/block/bcache0/bcache/cache_mode"),
)


def _stage(examined: Examined) -> Fix:
    return serve_fix(examined, "--stage /SSD/models")


def _copy(storage: StorageFacts) -> Fix:
    return Fix("shell", f"cp -r --reflink=auto {shlex.quote(storage.directory)} /SSD/models/")


def _is_untold(storage: StorageFacts) -> bool:
    return all(disk.rotational.value is None for disk in storage.disks())


def _bcache(storage: StorageFacts) -> BcacheFacts | None:
    return next((d.bcache for d in storage.devices.value or () if d.bcache is not None), None)


def _describe(storage: StorageFacts) -> str:
    """`ext4 on lvm dm-0 on partition nvme0n1p3 on nvme nvme0n1 (Samsung SSD 990 PRO)`."""
    kind = shown(storage.file_system)
    if storage.is_network.value:
        return f"{kind} from {shown(storage.mount_source)}"
    if storage.is_in_memory.value:
        return f"{kind}, in memory"
    if storage.devices.value is None:
        return f"{kind}; {storage.devices.why}"
    return f"{kind} on " + " on ".join(_device(device) for device in storage.devices.value)


def _device(device: BlockDevice) -> str:
    notes = [device.model.value] if device.model.value else []
    if not device.parents and device.rotational.value is not None:
        notes.append("rotating" if device.rotational.value else "no moving parts")
    about = f" ({', '.join(notes)})" if notes else ""
    return f"{device.kind} {device.name}{about}"


_BTRFS = "btrfs"  # reads ahead by a number of its own, whatever its devices say
_BTRFS_READAHEAD = Check(
    "readahead",
    AREA,
    Level.UNKNOWN,
    "of btrfs, which does not say which of /sys/class/bdi/btrfs-* is this one",
    f"{format_bytes(READAHEAD_BYTES)} or more",
    _READAHEAD_WHY,
    (
        Fix(
            "shell",
            f"echo {READAHEAD_BYTES // KIB} | sudo tee /sys/class/bdi/btrfs-*/read_ahead_kb",
        ),
    ),
)


def check_readahead(examined: Examined) -> tuple[Check, ...]:
    """How much the kernel reads ahead of a sequential reader."""
    devices = examined.facts.storage.devices.value
    if not devices:
        return ()  # a network or memory: nothing to set
    if examined.facts.storage.file_system.value == _BTRFS:
        return (_BTRFS_READAHEAD,)
    top = devices[0]
    size = top.readahead_bytes
    is_low = size.value is not None and size.value < READAHEAD_BYTES
    level = Level.UNKNOWN if size.value is None else Level.WARN if is_low else Level.OK
    owner = top.parents[0] if top.kind == "partition" and top.parents else top.name
    fixes = (
        tune_fix("readahead", models_dir=examined.facts.storage.directory),
        Fix(
            "shell",
            f"echo {READAHEAD_BYTES // KIB} | sudo tee /sys/block/{owner}/queue/read_ahead_kb",
        ),
    )
    return (
        Check(
            "readahead",
            AREA,
            level,
            f"{shown(size, format_bytes)} of {owner}, scheduler {shown(top.scheduler)}",
            f"{format_bytes(READAHEAD_BYTES)} or more",
            _READAHEAD_WHY,
            fixes if is_low else (),
        ),
    )


def check_bcache(examined: Examined) -> tuple[Check, ...]:
    """Whether a cached disk caches what models do: long sequential reads."""
    facts = _bcache(examined.facts.storage)
    if facts is None:
        return ()
    name = next(d.name for d in examined.facts.storage.devices.value or () if d.bcache is facts)
    if facts.state.value == _NO_CACHE:
        return (_detached(name),)
    return (_sequential_cutoff(facts, name), _cache_mode(facts, name))


def _detached(name: str) -> Check:
    return Check(
        "bcache mode",
        AREA,
        Level.WARN,
        _NO_CACHE,
        "a cache that is attached",
        "without one every read goes to the slow disk",
        (
            Fix("shell", "ls -d /sys/fs/bcache/*-*  # the caches that are there, by their UUID"),
            Fix("shell", f"echo CACHE_UUID | sudo tee /sys/block/{name}/bcache/attach"),
        ),
    )


def _sequential_cutoff(facts: BcacheFacts, name: str) -> Check:
    cutoff = facts.sequential_cutoff_bytes
    level = Level.UNKNOWN if cutoff.value is None else Level.WARN if cutoff.value else Level.OK
    fix = Fix("shell", f"echo 0 | sudo tee /sys/block/{name}/bcache/sequential_cutoff")
    return Check(
        "bcache sequential cutoff",
        AREA,
        level,
        shown(cutoff, format_bytes),
        "0",
        "reads that go on for longer than this skip the cache, which all reads of models do",
        (fix,) if level is Level.WARN else (),
    )


def _cache_mode(facts: BcacheFacts, name: str) -> Check:
    mode = facts.mode
    level = Level.UNKNOWN if mode.value is None else Level.OK
    fixes: tuple[Fix, ...] = ()
    if mode.value in {"writeback", "none"}:
        level = Level.WARN
        fixes = (Fix("shell", f"echo writethrough | sudo tee /sys/block/{name}/bcache/cache_mode"),)
    return Check(
        "bcache mode",
        AREA,
        level,
        f"{shown(mode)}, {shown(facts.state)}",
        "writethrough; writeback with a UPS only",
        "in writeback mode the only copy of new data is in the cache for a while: without a UPS or "
        "an SSD with power-loss protection, a power cut can damage the file system",
        fixes,
    )
