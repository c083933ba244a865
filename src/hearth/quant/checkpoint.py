"""A whole checkpoint turned into a quantized one: file by file, resumable, `config.json` last.

A directory without config.json is no model yet, so that nothing takes a half for a whole. A file
that an earlier run finished says in its header from what and how it was made, and is kept.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hearth.core.config import CodesConfig
from hearth.core.errors import (
    CapacityError,
    ConfigError,
    HearthError,
    StoreBusyError,
    WeightsError,
)
from hearth.core.spec import WeightSlot
from hearth.core.units import format_bytes
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.quantize import AUTO_SCHEMES, GROUP_SIZES
from hearth.models.safetensors_file import (
    INDEX_FILE,
    SINGLE_FILE,
    read_header,
    read_metadata,
)
from hearth.models.weight_plan import TIED_HEAD
from hearth.quant.recipe import Recipe, config_section, recipe_of, storage_bytes, without
from hearth.quant.shard import FP8, INT8, convert_shard

# Of everything that decides the bytes of a converted file, beside its source and the scheme.
FORMAT = 1
_MADE = "hearth.quantized"
_INDEX_KEY = "weight_map"


@dataclass(frozen=True, slots=True)
class Scheme:
    """What `--quantize` and its companions say.

    `per_row`: one scale for each row, and inputs that others round to int8 or FP8, too
    (`int-quantized`, `float-quantized`).
    """

    name: str  # int4, int8, fp8
    codes: CodesConfig
    per_row: bool = False

    def __str__(self) -> str:
        if self.per_row:
            return f"{self.name}-channel"
        zeros = "-asym" if self.codes.zero_points else ""
        return f"{self.name}-g{self.codes.group_size}{zeros}"


def scheme_of(name: str, group_size: int, *, zero_points: bool = False) -> Scheme:
    """Raises ConfigError for what there is not."""
    if name not in AUTO_SCHEMES[1:]:
        raise ConfigError(f"{name!r} is no scheme; permitted: {', '.join(AUTO_SCHEMES[1:])}")
    if group_size not in GROUP_SIZES:
        permitted = ", ".join(map(str, GROUP_SIZES))
        raise ConfigError(f"the group size is {group_size}; permitted: {permitted}")
    return Scheme(name, CodesConfig(group_size=group_size, zero_points=zero_points))


@dataclass(slots=True)
class Conversion:
    """What has been converted so far, for the index and the configuration."""

    scheme: Scheme
    recipe: Recipe
    expected_bytes: int  # of all converted files, about
    how: str = ""  # what else decides the bytes of a file, beside the scheme and the source
    weight_map: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    coded: dict[str, WeightSlot] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)

    def convert(
        self,
        source: Path,
        target: Path,
        identity: str,
        on_bytes: Callable[[int], None],
        left_out: Collection[str] = (),
    ) -> None:
        """One file, unless it was made before. `identity`: of the source's contents.

        `left_out`: tensors that go elsewhere. Raises what `convert_shard` raises.
        """
        if not self.is_made(target, identity):
            threads = len(os.sched_getaffinity(0))
            made = self.made_of(identity)
            convert_shard(source, target, self.recipe, made, on_bytes, threads, left_out)
        self.note(target)

    def is_made(self, target: Path, identity: str) -> bool:
        """Whether a file was made from these contents by this scheme, in its place and whole."""
        try:
            read_header(target)
            return self.made_of(identity).items() <= read_metadata(target).items()
        except (WeightsError, OSError):
            return False

    def made_of(self, identity: str) -> dict[str, str]:
        """The metadata by which `is_made` knows a file."""
        return {_MADE: f"{self.scheme}{self.how}, format {FORMAT}, of {identity}"}

    def note(self, target: Path) -> None:
        """Takes a converted file into the index."""
        entries = read_header(target)
        self.num_bytes += sum(entry.end - entry.begin for entry in entries.values())
        for name, entry in entries.items():
            self.weight_map[name] = target.name
            base = name.removesuffix("_packed")
            is_coded = base != name or (self.recipe.per_row and entry.dtype in (INT8, FP8))
            if is_coded and base in self.recipe.slots:
                self.coded[base] = self.recipe.slots[base]
            elif len(entry.shape) > 1 and name.endswith(".weight"):
                self.plain.add(name)

    def finish(self, directory: Path, config: Path) -> None:
        """Writes the index, then config.json. Raises WeightsError, HearthError."""
        if not self.coded:
            raise WeightsError(
                f"none of the checkpoint's matrices can be stored as {self.scheme}",
                hint="its rows are shorter than a group, or it holds its experts in one tensor",
            )
        index = {"metadata": {"total_size": self.num_bytes}, _INDEX_KEY: self.weight_map}
        is_single = set(self.weight_map.values()) == {SINGLE_FILE}
        values = json.loads(config.read_bytes())
        # A tied head is a module of its own, without a tensor.
        plain = {*self.plain, TIED_HEAD} if self.recipe.tied else self.plain
        values["quantization_config"] = config_section(
            self.coded, plain, per_row=self.recipe.per_row
        )
        try:
            if not is_single:
                _write_json(directory / INDEX_FILE, index)
            _write_json(directory / "config.json", values)
        except OSError as error:
            raise HearthError(f"{directory} cannot be written: {error.strerror}") from error


def conversion_of(
    description: Path, scheme: Scheme, ignore: Sequence[str] = (), how: str = ""
) -> Conversion:
    """For the model whose config.json lies in a directory.

    `ignore`: see `recipe.without`. Raises ModelError, ConfigError; ConfigError for one that is
    quantized already.
    """
    loaded = load_model_spec(description, quantize=scheme.name, codes=scheme.codes)
    if loaded.stored is not None:
        raise ConfigError(
            "the model is quantized already: rounding its codes again would lose more",
            hint="take the unquantized model, or serve this one as it is",
        )
    recipe = without(recipe_of(loaded.spec, per_row=scheme.per_row), ignore)
    ignored = f", without {' '.join(sorted(ignore))}" if ignore else ""
    return Conversion(scheme, recipe, _expected_bytes(loaded, recipe), how + ignored)


class Converter:
    """What turns a model into codes while it is pulled: a `hub.converting.Converter`."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._conversion: Conversion | None = None

    @property
    def label(self) -> str:
        """Such as int4-g128."""
        return str(self._scheme)

    def begin(self, description: Path) -> int:
        """See `hub.converting.Converter`. Raises ModelError, ConfigError."""
        self._conversion = conversion_of(description, self._scheme)
        return self._conversion.expected_bytes

    def is_made(self, target: Path, identity: str) -> bool:
        """See `hub.converting.Converter`."""
        return self._begun.is_made(target, identity)

    def convert(
        self, source: Path, target: Path, identity: str, on_bytes: Callable[[int], None]
    ) -> None:
        """See `hub.converting.Converter`. Raises what `convert_shard` raises."""
        self._begun.convert(source, target, identity, on_bytes)

    def finish(self, directory: Path, config: Path) -> None:
        """See `hub.converting.Converter`. Raises WeightsError, HearthError."""
        self._begun.finish(directory, config)

    @property
    def _begun(self) -> Conversion:
        assert self._conversion is not None, "begin comes first"
        return self._conversion


def _expected_bytes(loaded: LoadedSpec, recipe: Recipe) -> int:
    """As the model's sizes have it, before any file is read."""
    total = 0
    for slot in loaded.spec.slots:
        is_coded = any(source.tensor in recipe.slots for source in slot.sources)
        if is_coded:
            total += storage_bytes(slot.quant, slot.total_rows, slot.cols)
        else:
            total += slot.total_rows * slot.cols * loaded.dtype.num_bytes
    return total


def quantize_directory(
    source: Path,
    target: Path,
    scheme: Scheme,
    on_progress: Callable[[int, int], None],
    ignore: Sequence[str] = (),
) -> Conversion:
    """Converts a model directory into another; goes on where an earlier run stopped.

    `on_progress(done, total)`: bytes of the source; `ignore`: see `recipe.without`. Raises
    ModelError, WeightsError, ConfigError, CapacityError, HearthError.
    """
    conversion = conversion_of(source, scheme, ignore)
    shards = weight_files(source)
    total = sum(path.stat().st_size for path in shards)
    prepare(source, target)
    check_room(target, [path.name for path in shards], conversion.expected_bytes)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    for path in shards:
        before = done
        conversion.convert(path, target / path.name, identity_of(path), on_bytes)
        done = before + path.stat().st_size
        on_progress(done, total)
    drop_leftovers(target, {path.name for path in shards})
    copy_rest(source, target, {path.name for path in shards})
    conversion.finish(target, source / "config.json")
    return conversion


def is_finished(source: Path, target: Path, scheme: Scheme, ignore: Sequence[str] = ()) -> bool:
    """Whether `quantize_directory` has done this before, with nothing changed since.

    Raises ModelError, WeightsError, ConfigError.
    """
    if not (target / "config.json").exists():
        return False
    conversion = conversion_of(source, scheme, ignore)
    files = weight_files(source)
    return all(conversion.is_made(target / path.name, identity_of(path)) for path in files)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a model's tensors. Raises WeightsError."""
    from hearth.models.safetensors_file import read_checkpoint

    files = read_checkpoint(directory).files
    return [path for path in files if path.name != INDEX_FILE]


def identity_of(path: Path) -> str:
    """Of a local file: its size and last change, which a copy over it would not keep."""
    status = path.stat()
    return f"{path.name}, {status.st_size} bytes, changed {status.st_mtime_ns}"


def prepare(source: Path, target: Path) -> None:
    """Makes the directory. Raises ConfigError for one that holds a model, HearthError."""
    if target.exists() and target.resolve() == source.resolve():
        raise ConfigError(
            f"{target} is the model itself", hint="name another directory with --output"
        )
    if (target / "config.json").exists():
        raise ConfigError(
            f"{target} holds a model already (config.json)",
            hint="name another directory with --output, or remove that one",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HearthError(f"{target} cannot be made: {error.strerror}") from error


def check_room(target: Path, names: Iterable[str], num_bytes: int) -> None:
    """Whether a directory has room for files that take `num_bytes`. Raises CapacityError."""
    there = sum((target / name).stat().st_size for name in names if (target / name).exists())
    needed = num_bytes - there
    free = shutil.disk_usage(target).free
    if needed > free:
        raise CapacityError(
            f"the quantized model needs {format_bytes(needed)} more, {target} has "
            f"{format_bytes(free)} free",
            hint="free space, or name a directory on a larger disk",
        )


def copy_rest(source: Path, target: Path, weights: Collection[str]) -> None:
    """Tokenizer, templates and the like; not the weights, their index, the configuration.

    Raises HearthError.
    """
    left_out = {*weights, INDEX_FILE, "config.json"}
    others = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
    try:
        for path in sorted(source.iterdir()):
            is_left = path.name.startswith(".") or path.name in left_out or path.suffix in others
            if path.is_file() and not is_left:
                shutil.copyfile(path, target / path.name)
        templates = source / "additional_chat_templates"
        if templates.is_dir():
            shutil.copytree(templates, target / templates.name, dirs_exist_ok=True)
    except OSError as error:
        raise HearthError(f"{target} cannot be written: {error.strerror}") from error


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def drop_leftovers(directory: Path, kept: Collection[str]) -> None:
    """Removes what earlier runs with other orders have left: files that say that we made them."""
    for path in directory.glob("*.safetensors"):
        try:
            read_header(path)
            is_ours = _MADE in read_metadata(path)
        except (OSError, ValueError, WeightsError):
            continue
        if is_ours and path.name not in kept:
            path.unlink(missing_ok=True)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Nobody else quantizes into a directory meanwhile. Raises StoreBusyError, HearthError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HearthError(f"{directory} cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreBusyError(
                f"another process writes a quantized model into {directory}",
                hint="wait for it, or name another directory with --output",
            ) from error
        yield
    finally:
        os.close(fd)
