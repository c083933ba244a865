"""Reads a model's description, plans its memory, and decides how its matrices are stored.

`--quantize auto` takes the most exact scheme that fits, and says what the others would need. It
never chooses the loss of a coarser one for its speed: that is the user's to ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hearth.core.config import DEFAULT_CODES, Choice, CodesConfig, EngineConfig
from hearth.core.errors import CapacityError, ConfigError
from hearth.core.images import ImageInfo
from hearth.core.units import format_bytes, format_count
from hearth.engine.executor import BackendChoice, LoadedModel, load_spec, patterns_of
from hearth.engine.images.decode import SMALL_BYTES
from hearth.engine.kv_storage import kv_choice, resolve_kv_storage
from hearth.host.fit import (
    MOST_OF_A_GPU,
    Fit,
    FitRequest,
    ImageRequest,
    fewer_images,
    fit,
    less_context,
    needed_bytes,
)
from hearth.host.memory import HostMemory, read_memory
from hearth.kernels.fuse import fuse
from hearth.kernels.packing import arena_bytes
from hearth.models.automodel.spec import AutoModelSpec
from hearth.models.image_processor import read_image_processor
from hearth.models.image_sizes import check_processor, default_processor
from hearth.models.loader import LoadedSpec
from hearth.models.quantize import RESIDUAL, distinct_schemes, storage_of

# A scheme fits with a context of so many tokens, where neither the user nor the model says less.
AUTO_CONTEXT = 8192
CODES_BACKENDS = ("cpu", "triton")  # that multiply with codes


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model that fits, and what was chosen for its matrices."""

    loaded: LoadedModel
    fitted: Fit
    choices: tuple[Choice, ...]

    def images(self, config: EngineConfig) -> ImageInfo | None:
        """How images are taken; None: the model takes none."""
        return image_info(self.loaded, config)


def image_info(loaded: LoadedModel, config: EngineConfig) -> ImageInfo | None:
    """What a model's images are prepared for. Raises ModelError, ConfigError."""
    vision = loaded.spec.vision if isinstance(loaded, LoadedSpec) else None
    if vision is None or not isinstance(loaded, LoadedSpec):
        return None
    defaults = default_processor(vision)
    processor = read_image_processor(
        loaded.path, config.images, frames=vision.pixel_frames, defaults=defaults
    )
    check_processor(processor, vision)
    merged = processor.merge_size**2
    max_patches = max(merged, processor.max_patches // merged * merged)
    info = ImageInfo(processor, vision.image_token_id, max_patches)
    return replace(info, pixel_bytes=max(info.pixel_bytes, config.images.limit * info.image_bytes))


def plan_model(backend: BackendChoice, config: EngineConfig, num_threads: int) -> PlannedModel:
    """Everything that is known before the weights.

    Raises ModelError, ConfigError, CapacityError.
    """
    if config.model.quantize == "auto":
        if backend.name in CODES_BACKENDS:
            return _plan_auto(backend, config, num_threads)
        planned = plan_model(backend, _with_scheme(config, "none"), num_threads)
        reason = f"--quantize auto: {backend.name} runs the model, codes need the C++ kernels"
        return replace(planned, choices=(Choice("quantize", "none", reason), *planned.choices))
    loaded = load_spec(backend, config)
    request = fit_request(backend, config, loaded, num_threads)
    fitted = fit(request, memory_of(loaded, backend, config))
    kv = kv_choice(config, loaded, request)
    scheme = config.model.quantize
    if not isinstance(loaded, LoadedSpec) or (scheme == "none" and loaded.stored is None):
        if config.model.codes.activations == RESIDUAL:
            raise ConfigError(
                f"--activations is {RESIDUAL}, and no matrix is codes: rows of int8 are multiplied "
                "with codes",
                param="activations",
                hint="set --quantize int8 or int4, or leave --activations out",
            )
        return PlannedModel(loaded, fitted, (kv,))
    if scheme == "none":
        choices = _stored_choices(loaded, config.model.codes, backend)
        return PlannedModel(loaded, fitted, (*choices, kv))
    choice = Choice("quantize", scheme, f"--quantize; {_of_matrices(loaded)}")
    codes = _code_choices(loaded, config.model.codes, backend)
    return PlannedModel(loaded, fitted, (choice, *codes, kv))


def _stored_choices(
    loaded: LoadedSpec, codes: CodesConfig, backend: BackendChoice
) -> tuple[Choice, ...]:
    """Of a checkpoint that holds codes, which are taken as they are."""
    reason = f"config.json: quantization_config; {storage_of(loaded.program.slots)}"
    return Choice("quantize", "as stored", reason), *_code_choices(loaded, codes, backend)[:1]


def fit_request(
    backend: BackendChoice, config: EngineConfig, loaded: LoadedModel, num_threads: int
) -> FitRequest:
    """What is to fit, as the settings have it. Raises ConfigError for a KV cache that cannot be."""
    storage = resolve_kv_storage(backend, config, loaded)
    is_fused = backend.name == "cpu" and isinstance(loaded, LoadedSpec)
    info = image_info(loaded, config)
    images = None
    if info is not None and isinstance(loaded, LoadedSpec) and loaded.encoder is not None:
        images = ImageRequest(
            loaded.encoder, info.max_patches, config.images.cache_bytes, _pixel_bytes(info)
        )
    request = FitRequest(
        program=loaded.program,
        dtype=loaded.dtype,
        max_position_embeddings=loaded.max_position_embeddings,
        block_size=config.cache.block_size,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        max_model_len=config.model.max_model_len,
        kv_memory_bytes=config.cache.memory_bytes,
        num_threads=num_threads,
        fixed=loaded.fixed_memory if isinstance(loaded, AutoModelSpec) else None,
        fusion=fuse(loaded.program, num_threads, patterns_of(config)) if is_fused else None,
        images=images,
        kv_dtype=storage.dtype,
        smaller_kv=storage.smaller,
    )
    if backend.name != "triton" or not isinstance(loaded, LoadedSpec):
        return request
    from hearth.engine import device

    return replace(
        request,
        fixed=device.fixed_items(config, loaded),
        images=None,  # they are encoded on the host
        block_bytes=device.block_bytes(),
        kv_share=MOST_OF_A_GPU,
    )


def _pixel_bytes(info: ImageInfo) -> int:
    """Of images that are kept, and of the two that are being decoded but for large ones."""
    return info.pixel_bytes + 2 * SMALL_BYTES


def memory_of(
    loaded: LoadedModel, backend: BackendChoice | None = None, config: EngineConfig | None = None
) -> HostMemory:
    """What is free where the model will lie: on the host, but for a `backend` on a GPU."""
    if backend is not None and config is not None and backend.name == "triton":
        from hearth.engine.device import memory_of_device

        return memory_of_device(config)
    if not isinstance(loaded, AutoModelSpec):
        return read_memory()
    from hearth.models.automodel.load import read_device_memory

    return read_device_memory(loaded.device)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One scheme: the model stored by it, and what it needs."""

    scheme: str
    loaded: LoadedSpec
    request: FitRequest
    num_tokens: int

    @property
    def needed_bytes(self) -> int:
        """With the KV cache of the context that is asked for."""
        return needed_bytes(self.request, self.num_tokens)

    @property
    def weight_bytes(self) -> int:
        """What a token's step reads, about."""
        return arena_bytes(self.loaded.program.slots)

    def describe(self) -> str:
        """`int8 1.62 GiB`."""
        name = self.loaded.precision if self.scheme == "none" else self.scheme
        return f"{name} {format_bytes(self.needed_bytes)}"


def _plan_auto(backend: BackendChoice, config: EngineConfig, num_threads: int) -> PlannedModel:
    exact = _candidate("none", backend, config, num_threads)
    schemes = distinct_schemes(exact.loaded.spec, config.model.codes)
    candidates = [_candidate(scheme, backend, config, num_threads) for scheme in schemes]
    memory = memory_of(exact.loaded, backend, config)
    needs = ", ".join(candidate.describe() for candidate in candidates)
    context = f"a context of {format_count(candidates[0].num_tokens)} tokens"
    for candidate in candidates:
        if candidate.needed_bytes > memory.available_bytes:
            continue
        fitted = fit(candidate.request, memory)
        reason = (
            f"--quantize auto: the most exact that fits: {needs} with {context}; "
            f"{memory.describe()}{_speed_of_others(candidate, candidates[-1])}"
        )
        kv = kv_choice(config, candidate.loaded, candidate.request)
        if candidate.scheme == "none":
            return PlannedModel(candidate.loaded, fitted, (Choice("quantize", "none", reason), kv))
        choice = Choice("quantize", candidate.scheme, f"{reason}; {_of_matrices(candidate.loaded)}")
        codes = _code_choices(candidate.loaded, config.model.codes, backend)
        return PlannedModel(candidate.loaded, fitted, (choice, *codes, kv))
    last = candidates[-1]
    raise CapacityError(
        f"the model fits in no precision with {context}: it needs {needs}; {memory.describe()}",
        hint=f"free memory or serve a smaller model{fewer_images(last.request)}"
        f"{less_context(last.request, memory, last.num_tokens)}",
    )


def _candidate(
    scheme: str, backend: BackendChoice, config: EngineConfig, num_threads: int
) -> _Candidate:
    loaded = load_spec(backend, _with_scheme(config, scheme))
    assert isinstance(loaded, LoadedSpec)
    request = fit_request(backend, config, loaded, num_threads)
    longest = request.max_position_embeddings
    num_tokens = min(longest, request.max_model_len or AUTO_CONTEXT)
    return _Candidate(scheme, loaded, request, num_tokens)


def _with_scheme(config: EngineConfig, scheme: str) -> EngineConfig:
    return replace(config, model=replace(config.model, quantize=scheme))


def _speed_of_others(chosen: _Candidate, smallest: _Candidate) -> str:
    """What the user could have instead, with its price."""
    if chosen is smallest:
        return ""
    ratio = chosen.weight_bytes / smallest.weight_bytes
    return (
        f"; a token reads all weights: {smallest.scheme} would answer up to {ratio:.1f} times as "
        "fast, and is rounded"
    )


def _of_matrices(loaded: LoadedSpec) -> str:
    stored = storage_of(loaded.program.slots)
    return f"of the matrices: {stored}; rounded to nearest (docs/quantization.md: what it loses)"


def _code_choices(
    loaded: LoadedSpec, codes: CodesConfig, backend: BackendChoice
) -> tuple[Choice, ...]:
    coded = [slot.quant for slot in loaded.program.slots if slot.quant.bits]
    is_fp8 = bool(coded) and all(quant.is_float for quant in coded)
    if backend.name == "triton":
        rows = Choice("activations", "floats", "a GPU multiplies codes with rows of its float type")
    elif is_fp8:
        reason = "FP8 is multiplied as floating point; --quantize int8 is faster in as much memory"
        rows = Choice("activations", "float32", reason)
    elif codes.activations == "float32":
        reason = "--activations: exact rows, several times slower than int8"
        rows = Choice("activations", "float32", reason)
    elif codes.activations == RESIDUAL:
        reason = "--activations: groups with outliers keep what rounding left as a second int8"
        rows = Choice("activations", RESIDUAL, reason)
    else:
        how = "--activations" if codes.activations == "int8" else "auto"
        reason = f"{how}: the fastest; each group of {codes.group_size} values has a scale"
        rows = Choice("activations", "int8", reason)
    why = "--quantize-group-size"
    if codes.group_size == DEFAULT_CODES.group_size:
        why = "default: the least memory" + ("" if is_fp8 else "; 64 and 32 lose less")
    return rows, Choice("group size", str(codes.group_size), why)
