"""Where the short quality report of a model is kept, and whether it is still of that model.

    quantized checkpoint     hearth.quality.json in its directory; it travels with the files
    everything else          KEY.quality.json in the directory of packed weights

The key names the weights and what they are multiplied with: how the slots are stored, activations,
the precision of keys and values, and a fingerprint of the weight files. A report of other weights
is not shown. It is written by `hearth quality --store` alone.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from hearth.core.config import Choice, EngineConfig
from hearth.core.errors import ConfigError, HearthError, WeightsError
from hearth.core.paths import home_expanded
from hearth.core.quality import REPORT_FILE, QualitySummary, RoundingLoss
from hearth.engine.executor import LoadedModel
from hearth.engine.weight_cache import default_directory
from hearth.models.loader import LoadedSpec
from hearth.models.safetensors_file import read_checkpoint

_FORMAT = 1
_MOST_BYTES = 1 << 20  # of a report
# Of a weight file the fingerprint reads its front and so many pieces: enough to tell a model that
# was quantized again into files of the same sizes, in milliseconds.
_FRONT_BYTES = 1 << 16
_SAMPLES, _SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class QualityNote:
    """What is known of a model that is to be served; `choice` is what the banner says of it."""

    summary: QualitySummary | None = None
    choice: Choice | None = None


def quality_key(loaded: LoadedSpec, kv_dtype: str) -> str:
    """Names the model's arithmetic. Raises WeightsError for files that cannot be read."""
    files = read_checkpoint(loaded.path).files
    marks = [_fingerprint(path) for path in files]
    parts = msgspec.json.encode((_FORMAT, loaded.program.slots, loaded.window, kv_dtype, marks))
    return blake2b(parts, digest_size=16).hexdigest()


def quality_path(loaded: LoadedSpec, config: EngineConfig, key: str) -> Path:
    """The file of a model's report. Raises ConfigError where no directory is known for it."""
    if is_stored_quantized(loaded) and loaded.quantize == "none":
        return loaded.path / REPORT_FILE
    given = config.weight_cache.directory
    directory = home_expanded(given) if given else default_directory(os.environ)
    if directory is None:
        raise ConfigError(
            "neither XDG_CACHE_HOME nor HOME says where the report is to be kept",
            hint="set --weight-cache-dir",
        )
    return directory / f"{key}.quality.json"


def is_stored_quantized(loaded: LoadedSpec) -> bool:
    """Whether the checkpoint has codes."""
    return any(slot.stored is not None for slot in loaded.program.slots)


def find_quality(
    loaded: LoadedModel, config: EngineConfig, rounding: RoundingLoss | None = None
) -> QualityNote:
    """The report of a model that is to be served; what is unreadable is said, never raised.

    `rounding`: what is said where nothing was measured on a text.
    """
    if not isinstance(loaded, LoadedSpec):
        return QualityNote()
    is_lossy = any(slot.quant.bits for slot in loaded.program.slots)
    against = is_stored_quantized(loaded) and loaded.quantize == "none"
    how = f"{_command(config, loaded.quantize, against=against)} measures it"
    if config.model.load_format == "dummy":
        return QualityNote()
    try:
        key = quality_key(loaded, kv_dtype_of(config, loaded))
        summary = read_quality(quality_path(loaded, config, key))
    except HearthError as error:
        note = Choice("quality", "not known", error.message)
        return QualityNote(None, note if is_lossy else None)
    if summary is not None and summary.weights_key != key:
        how = f"what is stored is of other weights or settings: {how}"
        return QualityNote(None, _unmeasured(how, rounding))
    if summary is None:
        return QualityNote(None, _unmeasured(how, rounding) if is_lossy else None)
    reason = f"{summary.text} text, {summary.num_tokens:,} tokens, {summary.measured_at[:10]}"
    return QualityNote(summary, Choice("quality", summary.line(), reason))


def _unmeasured(how: str, rounding: RoundingLoss | None) -> Choice:
    if rounding is None:
        return Choice("quality", "not measured", how)
    return Choice("quality", rounding.line(), f"perplexity not measured: {how}")


def kv_dtype_of(config: EngineConfig, loaded: LoadedSpec) -> str:
    """The precision of keys and values."""
    names = {"auto": str(loaded.dtype), "bf16": "bfloat16", "fp8_e4m3": "fp8"}
    return names.get(config.cache.dtype, config.cache.dtype)


def read_quality(path: Path) -> QualitySummary | None:
    """A report; None: there is none. Raises ConfigError for a file that is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        body = msgspec.json.decode(raw, type=dict[str, object])
        if body.pop("format", None) != _FORMAT:
            raise ConfigError(f"{path} is no quality report of format {_FORMAT}")
        return msgspec.convert(body, QualitySummary)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no quality report: {error}") from error


def write_quality(path: Path, summary: QualitySummary) -> None:
    """Writes a report, whole or not at all. Raises ConfigError where it cannot be written."""
    body = {"format": _FORMAT, **asdict(summary)}
    raw = msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            draft = Path(file.name)
            try:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
                draft.chmod(0o644)
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigError(
            f"the quality report cannot be written to {path}: {error.strerror}",
            hint="make the directory writable, free disk space, or leave --store out",
        ) from error


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size, and a hash over samples; the same for a copy elsewhere."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = blake2b(file.read(_FRONT_BYTES), digest_size=16)
            for number in range(_SAMPLES):
                file.seek(size * number // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    return size, digest.hexdigest()


def _command(config: EngineConfig, scheme: str, *, against: bool) -> str:
    """What the user types. `against`: codes need to know what they were made from."""
    model = config.model
    parts = ["hearth quality", shlex.quote(model.path)]
    if against:
        parts += ["--against", "REF"]
    if scheme != "none":
        parts += ["--quantize", scheme]
    if model.codes.activations not in ("auto", "int8"):
        parts += ["--activations", model.codes.activations]
    if model.codes.group_size != type(model.codes)().group_size:
        parts += ["--quantize-group-size", str(model.codes.group_size)]
    if model.dtype != "auto":
        parts += ["--dtype", model.dtype]
    if model.window is not None:
        parts += ["--window", str(model.window)]
    if config.cache.dtype != "auto":
        parts += ["--kv-cache-dtype", config.cache.dtype]
    return " ".join([*parts, "--store"])
