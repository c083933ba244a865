"""What a model needs of this host, planned as the engine plans it; nothing is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hearth.cli.described import described
from hearth.core.config import CacheConfig, EngineConfig, ModelConfig
from hearth.core.errors import CapacityError, KernelError, ModelError, UnknownArchitectureError
from hearth.engine.executor import BackendChoice, choose_backend, load_spec
from hearth.engine.outlook import spec_of
from hearth.engine.planning import AUTO_CONTEXT, fit_request, memory_of
from hearth.host.checks.needs import ModelNeeds, SchemeNeed
from hearth.host.fit import fit, needed_bytes
from hearth.host.placement import place_threads
from hearth.kernels.packing import arena_bytes
from hearth.models.config_json import read_config
from hearth.models.families import named_architecture
from hearth.models.loader import LoadedSpec
from hearth.models.quantize import distinct_schemes


def read_needs(model: str, context: int | None = None) -> ModelNeeds:
    """What a directory or a config file needs, with a context of so many tokens.

    None: 8192, or the longest of the model. What cannot be served is in `refusal`. Raises
    ModelNotFoundError and ModelError for what is no model at all, ConfigError for a context that
    is longer than the model's.
    """
    with described(model, "auto") as found:
        return _read(model, found.directory, context)


def _read(name: str, directory: Path, context: int | None) -> ModelNeeds:
    config = EngineConfig(ModelConfig(str(directory)), CacheConfig())
    architecture = named_architecture(read_config(directory))
    needs = ModelNeeds(name, architecture, 0, ())
    try:
        backend = choose_backend(config.device, directory)
        if backend.name == "automodel":  # planning it would import torch
            return replace(needs, needs_transformers=True)
        threads = place_threads("auto", None).num_threads  # as the engine has it
        names = distinct_schemes(spec_of(backend, config, "none").spec)
        schemes = tuple(_need(s, backend, config, threads, context) for s in names)
        return replace(needs, num_parameters=_num_parameters(backend, config), schemes=schemes)
    except (ModelError, KernelError, CapacityError) as error:
        # Without the kernels, and without a family file, torch would serve it, if it were there.
        is_for_torch = isinstance(error, KernelError | UnknownArchitectureError)
        hint = error.hint or ""
        return replace(
            needs, refusal=error.message, refusal_hint=hint, needs_transformers=is_for_torch
        )


def _need(
    scheme: str, backend: BackendChoice, config: EngineConfig, threads: int, context: int | None
) -> SchemeNeed:
    stored = replace(config, model=replace(config.model, quantize=scheme))
    loaded = load_spec(backend, stored)
    assert isinstance(loaded, LoadedSpec)
    request = fit_request(backend, stored, loaded, threads)
    num_tokens = context or min(loaded.max_position_embeddings, AUTO_CONTEXT)
    needed = needed_bytes(request, num_tokens)
    weights = arena_bytes(loaded.program.slots)
    memory = memory_of(loaded)
    try:
        fit(replace(request, max_model_len=num_tokens), memory)
    except CapacityError as error:
        return SchemeNeed(
            scheme, weights, needed, num_tokens, False, error.message, error.hint or ""
        )
    return SchemeNeed(scheme, weights, needed, num_tokens, True)


def _num_parameters(backend: BackendChoice, config: EngineConfig) -> int:
    loaded = load_spec(backend, config)
    assert isinstance(loaded, LoadedSpec)
    return sum(slot.total_rows * max(1, slot.cols) for slot in loaded.program.slots)
