"""Settings of an engine, by section, frozen.

Resolution (flag > environment > default) happens in `cli`; values that depend on the model or the
host are resolved in the engine and come back as `Choice` records with their reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hearth.core.images import ImageInfo
from hearth.core.quality import QualitySummary, RoundingLoss


@dataclass(frozen=True, slots=True)
class CodesConfig:
    """How codes are made of matrices, and what they are multiplied with, where they are codes.

    `activations`: int8, int8-residual (groups with outliers keep what rounding left as a second
    int8), float32, or auto, which is int8. `group_size` columns of a row share a scale, and a zero
    point where `zero_points`.
    """

    activations: str = "auto"
    group_size: int = 128  # 32, 64, 128
    zero_points: bool = False


DEFAULT_CODES = CodesConfig()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, in which precision.

    `dtype`: auto, float32, bfloat16. `quantize`: none, int8, int4 (see models/quantize), or auto:
    the most exact that fits into memory. `window`: attention of every layer is limited to so many
    tokens; None: as the model has it.
    """

    path: str
    dtype: str = "auto"
    quantize: str = "none"
    codes: CodesConfig = DEFAULT_CODES
    load_format: str = "auto"  # auto, safetensors, dummy
    max_model_len: int | None = None
    seed: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache. `memory_bytes` None: chosen from the host's free memory.

    `dtype`: auto (the float type of the weights), bf16, int8, int4, fp8, or another name of these.
    """

    block_size: int = 32
    enable_prefix_caching: bool = True
    memory_bytes: int | None = None
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds of a step and of the queue."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_queued_requests: int = 1024


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """Drafts of the next tokens, verified by the model."""

    method: str = "auto"  # auto, ngram, off


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Where the engine runs. `threads` None: one a physical core that may be used.

    `cpu_bind`: auto, none, or the CPUs of the threads, like 0,2,4-7. `numa`: auto, none, or the
    number of a node. `isa`: the instruction set of the CPU executor's kernels, auto for the best.
    """

    threads: int | None = None
    executor: str = "auto"  # auto, cpu, cuda, reference, automodel
    isa: str = "auto"
    cpu_bind: str = "auto"
    numa: str = "auto"


@dataclass(frozen=True, slots=True)
class WeightCacheConfig:
    """Packed weights on disk.

    `directory` empty: the user's cache; `max_bytes` None: chosen from the free disk space, 0: off;
    what packs to less than `min_bytes` is not worth a file.
    """

    directory: str = ""
    max_bytes: int | None = None
    verify: bool = False  # compare the checksums of all tensors at the start
    min_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class ImagesConfig:
    """Images of prompts, where the model takes any.

    `min_pixels`, `max_pixels` None: those of the model's preprocessor_config.json.
    `cache_bytes`: of encoder outputs that are kept for the next request.
    `limit`: most images of a request; the front end holds requests to it, the plan counts them.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    cache_bytes: int = 256 << 20
    limit: int = 10


DEFAULT_IMAGES = ImagesConfig()


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Where the front end may take images from, and how many of them.

    `allowed_media_domains`: hosts of http(s) URLs, "*" for every one; empty: none. Addresses that
    are not public are refused all the same, unless `allow_private_addresses`.
    `allowed_local_path`: file URLs below this directory; empty: none.
    """

    limit_images: int = DEFAULT_IMAGES.limit  # most of one request
    allowed_local_path: str = ""
    allowed_media_domains: tuple[str, ...] = ()
    allow_private_addresses: bool = False


DEFAULT_MEDIA = MediaConfig()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that an engine process is told when it starts."""

    model: ModelConfig
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    device: DeviceConfig = DeviceConfig()
    weight_cache: WeightCacheConfig = WeightCacheConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    images: ImagesConfig = ImagesConfig()
    canary: bool = True  # see engine/canary.py
    debug_hashes: bool = False  # every token event carries the hash of its logits
    debug_unfused: bool = False  # the CPU's operations run one by one; no bit changes
    debug_checks: bool = False  # the block manager's integrity check, whenever there is no work


@dataclass(frozen=True, slots=True)
class Choice:
    """One resolved setting and the reason for its value, as shown in the banner and the log."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """What an engine decided at its start."""

    model_name: str
    architecture: str
    dtype: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
    images: ImageInfo | None = None  # None: the model takes none
    planned_bytes: int = 0  # memory of all processes of a server
    quality: QualitySummary | None = None  # what its quantization was measured to cost
    rounding: RoundingLoss | None = None  # what codes that were made while loading lose
    kv_cache_dtype: str = ""  # how keys and values are stored
