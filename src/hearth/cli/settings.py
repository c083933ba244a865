"""ServeSettings: the flags of `hearth serve`, resolved once into what each component is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hearth.core.config import (
    DEFAULT_IMAGES,
    DEFAULT_MEDIA,
    CacheConfig,
    CodesConfig,
    DeviceConfig,
    EngineConfig,
    ImagesConfig,
    MediaConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculationConfig,
    WeightCacheConfig,
)
from hearth.core.errors import ConfigError, ModelNotFoundError
from hearth.core.paths import home_expanded

BUILT_IN_NAME = "hearth-demo"
BUILT_IN_DIR = Path(__file__).resolve().parent.parent / "demo_model"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything that `hearth serve` was told; defaults are those of the flags."""

    engine: EngineConfig
    model_dir: Path
    names: tuple[str, ...]
    host: str
    port: int
    max_body_bytes: int
    shutdown_timeout_s: float
    request_timeout_s: float
    log_level: str
    warnings: tuple[str, ...] = ()
    media: MediaConfig = DEFAULT_MEDIA
    separates_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """The flags that concern the engine."""

    dtype: str
    quantize: str
    codes: CodesConfig
    load_format: str
    max_model_len: int | None
    window: int | None
    seed: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    block_size: int
    enable_prefix_caching: bool
    speculative: str
    kv_cache_memory_bytes: int | None
    kv_cache_dtype: str
    executor: str
    threads: int | None
    isa: str
    cpu_bind: str
    numa: str
    weight_cache: WeightCacheConfig
    images: ImagesConfig = DEFAULT_IMAGES
    canary: bool = True


def find_model(model: str | None) -> Path:
    """The directory to serve; None: the built-in model's. Of a GGUF file, one made from it.

    Raises:
        ModelNotFoundError: no such directory, or no config.json in it.
        ModelError: a GGUF file that cannot be served.
    """
    if model is None:
        if not (BUILT_IN_DIR / "config.json").is_file():
            raise ModelNotFoundError(
                f"the built-in model is not in this installation ({BUILT_IN_DIR})",
                hint="install hearth again, or name a model directory: hearth serve DIRECTORY",
            )
        return BUILT_IN_DIR
    path = home_expanded(model)
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, a directory that may not be entered
        raise ModelNotFoundError(
            f"{model[:200]} cannot be read: {error.strerror}", hint="name a model directory"
        ) from error
    if not path.exists():
        path = _pulled(model)
    from hearth.models.gguf.view import find_gguf, view_of  # loads when it is needed

    if (gguf := find_gguf(path)) is not None:
        return view_of(gguf, os.environ)
    if is_file:
        raise ModelNotFoundError(
            f"{model} is a file",
            hint="name the directory that holds config.json, or a GGUF file",
        )
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(
            f"{model} holds no config.json",
            hint="name the directory of a Hugging Face model: config.json, *.safetensors "
            "and tokenizer.json or tokenizer.model; or a GGUF file",
        )
    return path


def _pulled(model: str) -> Path:
    """The directory of a pulled model, where there is no directory of that name."""
    from hearth.hub.names import is_name  # these load when they are needed
    from hearth.hub.store import resolve_model

    if not is_name(model):
        raise ModelNotFoundError(
            f"there is no directory {model}",
            hint="name a model directory, or a model of a hub: ORG/NAME after hearth pull ORG/NAME",
        )
    try:
        return resolve_model(model)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no directory {model}, and {error.message}", hint=error.hint
        ) from error


def staged(model_dir: Path, directory: str) -> Path:
    """The copy of a model on a faster disk, kept from removal as long as this process lives.

    Raises CapacityError, ChecksumError, HearthError where it cannot be made.
    """
    from hearth.cli.pull_progress import PullProgress
    from hearth.hub.stage import stage

    with PullProgress() as progress:
        return stage(model_dir, home_expanded(directory), None, progress).path


def served_names(model: str | None, model_dir: Path, asked: list[str] | None) -> tuple[str, ...]:
    """The names that clients may use; without any asked for, the directory's or the hub's.

    Raises ConfigError for an empty name.
    """
    if asked:
        if not all(name.strip() for name in asked):
            raise ConfigError(
                "--served-model-name is empty; permitted: one or more characters",
                hint="leave it out to serve under the directory's name",
            )
        return tuple(dict.fromkeys(asked))
    if model is None:
        return (BUILT_IN_NAME,)
    if not home_expanded(model).exists():  # pulled: its directory is called by its commit
        return (model.partition("@")[0],)
    link = model_dir / "model.gguf"  # in the view of a GGUF file
    if link.is_symlink():
        from hearth.models.gguf.parts import plain_stem

        return (plain_stem(link.readlink()),)
    return (model_dir.resolve().name,)


def engine_config(model_dir: Path, flags: EngineFlags) -> EngineConfig:
    """The engine's sections."""
    return EngineConfig(
        model=ModelConfig(
            path=str(model_dir),
            dtype=flags.dtype,
            quantize=flags.quantize,
            codes=flags.codes,
            load_format=flags.load_format,
            max_model_len=flags.max_model_len,
            seed=flags.seed,
            window=flags.window,
        ),
        cache=CacheConfig(
            block_size=flags.block_size,
            enable_prefix_caching=flags.enable_prefix_caching,
            memory_bytes=flags.kv_cache_memory_bytes,
            dtype=flags.kv_cache_dtype,
        ),
        scheduler=SchedulerConfig(
            max_num_seqs=flags.max_num_seqs,
            max_num_batched_tokens=flags.max_num_batched_tokens,
            max_queued_requests=flags.max_queued_requests,
        ),
        speculation=SpeculationConfig(flags.speculative),
        device=DeviceConfig(flags.threads, flags.executor, flags.isa, flags.cpu_bind, flags.numa),
        weight_cache=flags.weight_cache,
        images=flags.images,
        canary=flags.canary,
    )
