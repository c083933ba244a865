"""Whether packed weights come from disk, and how they get there; every outcome has its reason.

    hit     the file is mapped; nothing is packed, the checkpoint's headers are read only
    miss    weights are packed straight into a new file's pages; a thread then makes it durable
    off     weights are packed into memory: as asked, or where a file would not pay or not be safe

It pays: packing 2.7 GiB of bfloat16 takes 4 to 8 s of processor time, mapping the same bytes
0.1 s (two cores of a Zen 4 server, page cache warm). The file's pages are huge where the file
system has such; reading them is as fast as reading anonymous ones, so that nothing is copied.

A cache never ends a start: what goes wrong is a warning, and the weights are packed into memory.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from hearth.core.config import Choice, WeightCacheConfig
from hearth.core.errors import HearthError, KernelError
from hearth.core.paths import home_expanded
from hearth.core.quality import RoundingLoss
from hearth.core.spec import WeightSlot
from hearth.core.units import format_bytes
from hearth.host.disk import DiskFacts, read_disk
from hearth.kernels.cpu import pages
from hearth.kernels.cpu.library import resolve_isa
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packed_cache import CacheBusyError, CacheError, Draft, Found, PackedCache
from hearth.kernels.packed_file import PackedHeader
from hearth.kernels.packing import PACKING_VERSION, WeightSink, arena_bytes, packed_tensors
from hearth.models.loader import LoadedSpec
from hearth.models.weight_identity import FileIdentity, identify
from hearth.models.weights import LoadReport, check_weights

if TYPE_CHECKING:
    from hearth.core.program import StepProgram

logger = logging.getLogger("hearth.engine")

Fill: TypeAlias = Callable[[WeightSink], LoadReport]
Progress: TypeAlias = Callable[[int, int], None]

# Of the disk space that is free, or taken by the cache itself: one part in so many.
DISK_SHARE = 4
# A tenth of the weight of the threads that compute, where they compete; at the lowest priority of
# all, a busy machine would not get the file done before a short-lived server ends.
_BACKGROUND_NICE = 10
_SETTINGS = "--weight-cache-dir says where, --weight-cache-bytes how much; 0: none"


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """Weights that are ready to run, where they came from, and what the user must see."""

    weights: CpuWeights
    choice: Choice
    warnings: tuple[str, ...] = ()
    rounding: RoundingLoss | None = None  # what codes that were made from floating point lose

    def with_warnings(self, more: tuple[str, ...]) -> CpuLoad:
        """The same, with `more` before its own."""
        return replace(self, warnings=(*more, *self.warnings))


@dataclass(frozen=True, slots=True)
class _Policy:
    """A cache to use, or why there is none."""

    cache: PackedCache | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Sources:
    """The files that decide the packed bytes, as they were before they were read."""

    files: tuple[Path, ...]
    identities: tuple[FileIdentity, ...]


def load_cpu_weights(
    loaded: LoadedSpec,
    config: WeightCacheConfig,
    fill: Fill,
    on_progress: Progress,
    isa: str = "auto",
) -> CpuLoad:
    """The program's packed weights. `fill` packs a checkpoint into a sink, with kernels of `isa`.

    Raises what `fill` raises, CapacityError, and ConfigError for an `isa` that cannot run.
    """
    program = loaded.program
    policy = _choose_cache(config, arena_bytes(program.slots), os.environ)
    if policy.cache is None:
        return pack_to_memory(program, fill, policy.reason, isa)
    report = check_weights(loaded)
    sources = _Sources(report.files, identify(report.files))
    wanted = _wanted(program.slots, sources, resolve_isa(isa))
    problem: tuple[str, ...] = ()
    try:
        found = policy.cache.find(
            wanted, verify=config.verify, prepare=partial(_read_in, on_progress=on_progress)
        )
        if found is not None:
            return _use(program, found).with_warnings(report.warnings)
    except CacheError as error:
        problem = (f"weight cache: {error}",)
    try:
        draft = policy.cache.begin(wanted)
    except CacheBusyError as error:
        return pack_to_memory(program, fill, str(error), isa).with_warnings(problem)
    except CacheError as error:
        warning = f"packed weights are not kept for the next start: {error} ({_SETTINGS})"
        return pack_to_memory(program, fill, str(error), isa).with_warnings((*problem, warning))
    load = _pack_to_file(program, fill, draft, sources, isa)
    directory, budget = policy.cache.directory, format_bytes(policy.cache.max_bytes)
    reason = f"in {directory} for the next start; up to {budget}: {policy.reason}"
    choice = replace(load.choice, reason=reason)
    return replace(load, choice=choice).with_warnings(problem)


def pack_to_memory(program: StepProgram, fill: Fill, reason: str, isa: str = "auto") -> CpuLoad:
    """Without a cache, for the `reason` that is shown. Raises what `fill` raises, CapacityError."""
    weights = CpuWeights(program, isa=isa)
    report = fill(weights)
    choice = Choice("weight cache", "off", reason)
    return CpuLoad(weights, choice, report.warnings, report.rounding)


def cache_key(slots: tuple[WeightSlot, ...], identities: tuple[FileIdentity, ...], isa: str) -> str:
    """A name for everything that decides the packed bytes.

    The slots say which rows of which tensors go where, in which layout, precision and
    quantization, and what is added to them; whatever else a config says does not reach the
    weights. `isa`: layouts are the same for all, the search for
    scales is not to the last bit.
    """
    parts = msgspec.json.encode((PACKING_VERSION, isa, slots, identities))
    return blake2b(parts, digest_size=16).hexdigest()


def default_directory(environment: Mapping[str, str]) -> Path | None:
    """$XDG_CACHE_HOME/hearth/weights, ~/.cache/hearth/weights; None for a user without a home."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # the specification: relative ones are ignored
        home = environment.get("HOME", "")
        if not Path(home).is_absolute():
            return None
        base = str(Path(home) / ".cache")
    return Path(base) / "hearth" / "weights"


def _choose_cache(
    config: WeightCacheConfig, num_bytes: int, environment: Mapping[str, str]
) -> _Policy:
    if config.max_bytes == 0:
        return _Policy(None, "--weight-cache-bytes is 0")
    if num_bytes < config.min_bytes:
        return _Policy(None, f"packing {format_bytes(num_bytes)} takes no time worth a file")
    given = home_expanded(config.directory) if config.directory else None
    if given is not None and str(given).startswith("~"):  # no entry, as in many containers
        return _Policy(None, f"{config.directory} names a home directory that is not known")
    directory = given.absolute() if given is not None else default_directory(environment)
    if directory is None:
        return _Policy(None, "neither XDG_CACHE_HOME nor HOME says where: set --weight-cache-dir")
    try:
        disk = read_disk(directory)
    except OSError as error:
        return _Policy(None, f"{directory}: {error.strerror}")
    return _on_disk(directory, disk, config.max_bytes)


def _on_disk(directory: Path, disk: DiskFacts, max_bytes: int | None) -> _Policy:
    if disk.is_remote:
        return _Policy(
            None,
            f"{directory} is on {disk.file_system}, where a lost connection would end the engine: "
            "set --weight-cache-dir to a local disk",
        )
    if max_bytes is not None:
        return _Policy(PackedCache(directory, max_bytes), "--weight-cache-bytes")
    if disk.is_in_memory:
        return _Policy(None, f"{directory} is in memory ({disk.file_system})")
    share = (disk.free_bytes + PackedCache(directory, 0).used_bytes()) // DISK_SHARE
    return _Policy(PackedCache(directory, share), f"1/{DISK_SHARE} of the free disk space")


def _wanted(slots: tuple[WeightSlot, ...], sources: _Sources, isa: str) -> PackedHeader:
    stored = tuple(_as_stored(slot) for slot in slots)
    key = cache_key(stored, sources.identities, isa)
    return PackedHeader(key, arena_bytes(stored), packed_tensors(stored))


def _as_stored(slot: WeightSlot) -> WeightSlot:
    """The slot without what changes no packed byte: which rows it will be multiplied with."""
    return replace(slot, quant=replace(slot.quant, int8_rows=False, residual_rows=False))


def _read_in(memory: mmap.mmap, on_progress: Progress) -> None:
    """Before the engine calls itself ready: the first answer needs all of the file.

    Raises OSError where the disk cannot read it; without this, a kernel that reads it would end the
    process.
    """
    address = np.frombuffer(memory, np.uint8).ctypes.data
    pages.read_in(address, len(memory), on_progress)


def _use(program: StepProgram, found: Found) -> CpuLoad:
    weights = CpuWeights(program, found.memory)
    size = format_bytes(weights.num_bytes)
    reason = f"packed {_describe_age(found.age_s)}: {found.path}"
    choice = Choice("weight cache", f"mapped, {size}", reason)
    return CpuLoad(weights, choice, rounding=_rounding_of(found.note))


def _rounding_of(note: bytes) -> RoundingLoss | None:
    """None: nothing was rounded, or the file is of a time before notes, or its note was lost."""
    try:
        return msgspec.json.decode(note, type=RoundingLoss)
    except msgspec.MsgspecError:
        return None


def _pack_to_file(
    program: StepProgram, fill: Fill, draft: Draft, sources: _Sources, isa: str
) -> CpuLoad:
    try:
        weights = CpuWeights(program, draft.memory, isa)
        pages.ask_for_huge_pages(weights.base_address, weights.num_bytes)
        report = fill(weights)
        pages.forbid_writes(weights.base_address, weights.num_bytes)
    except BaseException:
        draft.discard()
        raise
    # Not a daemon: a process that ends early finishes the file first where it has the time, so that
    # what was packed once is not packed again.
    threading.Thread(
        target=_commit, args=(draft, weights, sources, report), name="hearth-weight-cache"
    ).start()
    size = format_bytes(weights.num_bytes)
    choice = Choice("weight cache", f"written, {size}", "")
    return CpuLoad(weights, choice, report.warnings, report.rounding)


def _commit(draft: Draft, weights: CpuWeights, sources: _Sources, report: LoadReport) -> None:
    """The thread that makes a file durable; what the model is served from does not change."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICE)
    try:
        if identify(sources.files) != sources.identities:
            draft.discard()
            logger.warning("weight_cache_discarded the model's files changed while they were read")
            return
        rounding = report.rounding
        draft.commit(b"" if rounding is None else msgspec.json.encode(rounding))
    except HearthError as error:  # the model's files are gone
        draft.discard()
        logger.warning("weight_cache_discarded %s", error)
    except OSError as error:
        logger.warning("weight_cache_failed the packed weights could not be kept: %s", error)
        _leave_file(weights)


def _leave_file(weights: CpuWeights) -> None:
    """Pages that the disk refused may be dropped under memory pressure, and then read as zeros."""
    try:
        pages.replace_by_copy(weights.base_address, weights.num_bytes)
        pages.forbid_writes(weights.base_address, weights.num_bytes)
    except KernelError as error:
        logger.error(
            "weight_cache_failed the weights stay in a file that the disk refused: %s; restart "
            "with --weight-cache-bytes 0",
            error,
        )


def _describe_age(age_s: float) -> str:
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if age_s >= 2 * seconds:
            return f"{age_s / seconds:.0f} {unit} ago"
    return f"{age_s:.0f} s ago"
