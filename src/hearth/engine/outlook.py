"""What serving a model on this machine would take and give, before a weight is there.

For each precision: the memory by consumer, by the arithmetic that the engine starts with, and how
long steps would take at the speeds that were measured here. Reads the model's description alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hearth.core.config import EngineConfig
from hearth.core.memory import MemoryItem
from hearth.core.spec import KvDType, float_kv
from hearth.core.units import format_bytes, format_count
from hearth.engine.executor import BackendChoice, load_spec
from hearth.engine.kv_storage import KV_CACHE_DTYPES
from hearth.engine.planning import fit_request, image_info
from hearth.host.cost import ProgramCost, program_cost
from hearth.host.device_map import Assignment, Device, gpu, map_devices, parts_of
from hearth.host.fit import HALF, FitRequest, fixed_items, longest_fitting, sequence_bytes
from hearth.host.memory import HostMemory
from hearth.host.speed import (
    WORTH_SAYING,
    Prediction,
    Speeds,
    decode_s,
    encode_s,
    prefill_s,
)
from hearth.models.loader import LoadedSpec
from hearth.models.quantize import distinct_schemes

MOST_SEQUENCES = 4096  # that are looked for


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be served: so many sequences of a context at a time, prompts of a length."""

    context: int
    num_sequences: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Site:
    """Where it would run; `speeds` None: nothing has been measured there."""

    backend: BackendChoice
    num_threads: int
    memory: HostMemory
    speeds: Speeds | None
    gpus: tuple[int, ...] = ()  # bytes of each


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the model gets it."""

    num_patches: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, and what they do not contain, since nothing is known about it.

    `token_s`: between two tokens of one stream alone; `tokens_s`: tokens a second of all streams
    of the load together, `least_tokens_s` to `most_tokens_s` as the speed of memory varied while it
    was measured.
    """

    first_token_s: float
    token_s: float
    tokens_s: float
    image_s: float | None
    missing: tuple[str, ...]
    least_tokens_s: float
    most_tokens_s: float

    def rate(self) -> str:
        """`33.1 (28-36)`: tokens a second, and their range where it is wide."""
        shown = f"{self.tokens_s:.1f}"
        if self.most_tokens_s <= self.least_tokens_s * WORTH_SAYING:
            return shown
        digits = 0 if self.least_tokens_s >= 10 else 1
        return f"{shown} ({self.least_tokens_s:.{digits}f}-{self.most_tokens_s:.{digits}f})"


@dataclass(frozen=True, slots=True)
class Outlook:
    """One precision on this machine.

    `kv_bytes`: of the load, in whole blocks. `longest_context`: of one sequence, with the share of
    memory that the KV cache gets by itself; `most_sequences`: of the load's context.
    """

    scheme: str
    stored_as: str
    items: tuple[MemoryItem, ...]
    kv_bytes: int
    available_bytes: int
    longest_context: int
    most_sequences: int
    times: Times | None
    device_map: tuple[Assignment, ...] = ()

    @property
    def total_bytes(self) -> int:
        """With the load's KV cache."""
        return sum(item.num_bytes for item in self.items) + self.kv_bytes

    @property
    def fits(self) -> bool:
        """Whether the load does."""
        return self.total_bytes <= self.available_bytes

    @property
    def verdict(self) -> str:
        """`fits`, or what is missing, or what has to be said for it to fit."""
        fixed = self.total_bytes - self.kv_bytes
        if not self.fits:
            return f"lacks {format_bytes(self.total_bytes - self.available_bytes)}"
        if HALF.needed(self.kv_bytes) > self.available_bytes - fixed:
            return f"fits with --kv-cache-memory-bytes {self.kv_bytes}"
        return "fits"


@dataclass(frozen=True, slots=True)
class Costs:
    """What steps of a model of one precision cost."""

    text: ProgramCost
    encoder: ProgramCost | None
    window_patches: int  # that an encoder's patch sees at most; 0: all
    step_tokens: int


def outlooks(config: EngineConfig, site: Site, load: Load) -> tuple[Outlook, ...]:
    """Of every precision. Raises ModelError, ConfigError."""
    spec = spec_of(site.backend, config, "none").spec
    schemes = distinct_schemes(spec, config.model.codes)
    return tuple(_outlook(scheme, config, site, load) for scheme in schemes)


def spec_of(backend: BackendChoice, config: EngineConfig, scheme: str) -> LoadedSpec:
    """The model stored by a scheme. Raises ModelError, ConfigError."""
    model = replace(config.model, quantize=scheme)
    loaded = load_spec(backend, replace(config, model=model))
    assert isinstance(loaded, LoadedSpec), "models of other libraries are not quantized"
    return loaded


def costs_of(loaded: LoadedSpec, step_tokens: int, kv_dtype: KvDType | None = None) -> Costs:
    """From the programs that would run. `kv_dtype` None: the float type of the weights."""
    encoder, window = loaded.encoder, 0
    if encoder is not None:
        # Pixels of a window's side are its tokens' times the merged ones of a token.
        window = encoder.window_tokens**2 * encoder.merge_rows
    return Costs(
        text=program_cost(loaded.program, kv_dtype or float_kv(loaded.dtype)),
        encoder=program_cost(encoder.program, float_kv(loaded.dtype))
        if encoder is not None
        else None,
        window_patches=window,
        step_tokens=step_tokens,
    )


def _outlook(scheme: str, config: EngineConfig, site: Site, load: Load) -> Outlook:
    loaded = spec_of(site.backend, config, scheme)
    request = fit_request(site.backend, config, loaded, site.num_threads)
    items = fixed_items(request)
    available = site.memory.available_bytes
    free = available - sum(item.num_bytes for item in items)
    most = request.max_position_embeddings
    times = None
    if site.speeds is not None:
        costs = costs_of(loaded, config.scheduler.max_num_batched_tokens, request.stored_kv)
        times = predict(costs, site.speeds, load, largest_image(loaded, config))
    return Outlook(
        scheme=scheme,
        stored_as=_stored_as(loaded, scheme),
        items=items,
        kv_bytes=load.num_sequences * sequence_bytes(request, load.context),
        available_bytes=available,
        longest_context=longest_fitting(request, HALF.share(max(0, free)), most),
        most_sequences=_most_sequences(request, load.context, max(0, free)),
        times=times,
        device_map=_device_map(loaded, request, site, load),
    )


def _device_map(
    loaded: LoadedSpec, request: FitRequest, site: Site, load: Load
) -> tuple[Assignment, ...]:
    """Over the site's GPUs, its memory and its disk; empty without GPUs."""
    if not site.gpus:
        return ()
    items = {item.name: item.num_bytes for item in fixed_items(request)}
    scratch = items.get("scratch", 0) + items.get("encoder", 0)
    own = sum(n for name, n in items.items() if name != "weights")
    cpu = Device("cpu", max(0, site.memory.available_bytes - own))
    gpus = (gpu(number, total, scratch) for number, total in enumerate(site.gpus))
    kv_bytes = load.num_sequences * sequence_bytes(request, load.context)
    encoder = loaded.encoder.program if loaded.encoder is not None else None
    return map_devices(
        parts_of(loaded.program, encoder, kv_bytes), (*gpus, cpu, Device("disk", None))
    )


def _stored_as(loaded: LoadedSpec, scheme: str) -> str:
    return loaded.precision if scheme == "none" else scheme


def _most_sequences(request: FitRequest, context: int, free_bytes: int) -> int:
    one = sequence_bytes(request, context)
    return min(MOST_SEQUENCES, free_bytes // one) if one else MOST_SEQUENCES


def largest_image(loaded: LoadedSpec, config: EngineConfig) -> Image | None:
    """The largest image that the settings let through; None: the model takes none."""
    info = image_info(loaded, config)
    if info is None:
        return None
    return Image(info.max_patches, info.max_patches // info.processor.merge_size**2)


def predict(costs: Costs, speeds: Speeds, load: Load, image: Image | None) -> Times:
    """Times of a load; prompts hold no image, `image_s` is what the largest one adds."""
    context = min(load.context, load.prompt_tokens)
    first = prefill_s(costs.text, speeds, load.prompt_tokens, 0, costs.step_tokens)
    alone = decode_s(costs.text, speeds, 1, context)
    together = decode_s(costs.text, speeds, load.num_sequences, context)
    seen = None
    if image is not None and costs.encoder is not None:
        seen = image_s(costs, speeds, image, load.prompt_tokens)
    missing = {*first.missing, *alone.missing, *(seen.missing if seen else ())}
    tokens_s = load.num_sequences / together.seconds
    return Times(
        first_token_s=first.seconds,
        token_s=alone.seconds,
        tokens_s=tokens_s,
        image_s=seen.seconds if seen else None,
        missing=tuple(sorted(missing)),
        least_tokens_s=tokens_s / together.most_part,
        most_tokens_s=tokens_s / together.least_part,
    )


def image_s(costs: Costs, speeds: Speeds, image: Image, behind: int) -> Prediction:
    """What an image adds to a prompt of `behind` tokens: its encoding, and reading its tokens."""
    assert costs.encoder is not None
    encoded = encode_s(costs.encoder, speeds, image.num_patches, costs.window_patches)
    read = prefill_s(costs.text, speeds, behind + image.num_tokens, behind, costs.step_tokens)
    missing = {*encoded.missing, *read.missing}
    return Prediction(encoded.seconds + read.seconds, tuple(sorted(missing)))


def expected_speed(loaded: LoadedSpec, config: EngineConfig, speeds: Speeds) -> str | None:
    """`59.8 tokens/s (52-64), a prompt of 1,024 …`, of one stream; None: it is not known."""
    prompt = min(1024, loaded.max_position_embeddings)
    kv_dtype = KV_CACHE_DTYPES[config.cache.dtype]
    costs = costs_of(loaded, config.scheduler.max_num_batched_tokens, kv_dtype)
    times = predict(costs, speeds, Load(prompt, 1, prompt), None)
    if times.missing:
        return None
    rate, _, span = times.rate().partition(" ")
    return (
        f"{rate} tokens/s{span and f' {span}'}, a prompt of {format_count(prompt)} tokens in "
        f"{times.first_token_s:.1f} s"
    )


def describe_load(load: Load) -> str:
    """For people."""
    plural = "s" if load.num_sequences != 1 else ""
    return (
        f"{format_count(load.num_sequences)} sequence{plural} of {format_count(load.context)} "
        f"tokens, prompts of {format_count(load.prompt_tokens)}"
    )
