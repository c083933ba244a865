"""Checks an EngineConfig's values against their ranges, before anything is read or allocated."""

from __future__ import annotations

from hearth.core.config import EngineConfig, ModelConfig
from hearth.core.errors import ConfigError
from hearth.core.units import format_count
from hearth.engine.kv_storage import KV_CACHE_DTYPES, OFFERED
from hearth.kernels.packing import BLOCK_SIZES
from hearth.models.quantize import ACTIVATIONS, GROUP_SIZES, RESIDUAL, SCHEMES

DTYPES = ("auto", "float32", "bfloat16")
LOAD_FORMATS = ("auto", "safetensors", "dummy")
SPECULATIONS = ("auto", "ngram", "off")
EXECUTORS = ("auto", "cpu", "cuda", "reference", "automodel")
FOR_TESTS = ("cuda-on-cpu",)
MAX_TOKENS_OF_A_STEP = 1 << 20
MAX_SEQUENCES = 1 << 14
MAX_QUEUE = 1 << 20
MAX_THREADS = 1024
MAX_CONTEXT = 1 << 28


def check_settings(config: EngineConfig) -> None:
    """Raises ConfigError that names the flag, its value and what is permitted."""
    _check_choice("--dtype", config.model.dtype, DTYPES)
    _check_codes(config.model)
    _check_choice("--load-format", config.model.load_format, LOAD_FORMATS)
    if config.device.executor not in FOR_TESTS:
        _check_choice("--executor", config.device.executor, EXECUTORS)
    _check_choice("--speculative", config.speculation.method, SPECULATIONS)
    if config.cache.block_size not in BLOCK_SIZES:
        permitted = ", ".join(map(str, BLOCK_SIZES))
        raise ConfigError(f"--block-size is {config.cache.block_size}; permitted: {permitted}")
    if config.cache.dtype not in KV_CACHE_DTYPES:
        raise ConfigError(
            f"--kv-cache-dtype is {config.cache.dtype!r}; permitted: {', '.join(OFFERED)}",
            param="kv_cache_dtype",
        )
    scheduler = config.scheduler
    _check_range("--max-num-seqs", scheduler.max_num_seqs, 1, MAX_SEQUENCES)
    _check_range(
        "--max-num-batched-tokens", scheduler.max_num_batched_tokens, 1, MAX_TOKENS_OF_A_STEP
    )
    _check_range("--max-queued-requests", scheduler.max_queued_requests, 1, MAX_QUEUE)
    _check_range("--seed", config.model.seed, 0, (1 << 63) - 1)
    if config.model.max_model_len is not None:
        _check_range("--max-model-len", config.model.max_model_len, 2, MAX_CONTEXT)
    if config.model.window is not None:
        _check_range("--window", config.model.window, 1, MAX_CONTEXT)
    if config.cache.memory_bytes is not None:
        _check_range("--kv-cache-memory-bytes", config.cache.memory_bytes, 1, 1 << 50)
    if config.weight_cache.max_bytes is not None:
        _check_range("--weight-cache-bytes", config.weight_cache.max_bytes, 0, 1 << 50)
    if config.device.threads is not None:
        _check_range("--threads", config.device.threads, 1, MAX_THREADS)


def _check_codes(model: ModelConfig) -> None:
    _check_choice("--quantize", model.quantize, (*SCHEMES, "auto"))
    _check_choice("--activations", model.codes.activations, ACTIVATIONS)
    if model.codes.group_size not in GROUP_SIZES:
        permitted = ", ".join(map(str, GROUP_SIZES))
        raise ConfigError(
            f"--quantize-group-size is {model.codes.group_size}; permitted: {permitted}"
        )
    if model.codes.activations == "int8" and model.quantize == "none":
        raise ConfigError(
            "--activations is int8, and --quantize is none: rows of int8 are multiplied with codes",
            param="activations",
            hint="set --quantize int8 or int4, or leave --activations out",
        )
    if model.codes.activations in ("int8", RESIDUAL) and model.quantize == "fp8":
        raise ConfigError(
            f"--activations is {model.codes.activations}, and --quantize is fp8, which is "
            "multiplied with float32 rows",
            param="activations",
            hint="set --quantize int8, which takes as much memory, or leave --activations out",
        )


def _check_choice(flag: str, value: str, permitted: tuple[str, ...]) -> None:
    if value not in permitted:
        raise ConfigError(f"{flag} is {value!r}; permitted: {', '.join(permitted)}")


def _check_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(
            f"{flag} is {format_count(value)}; permitted: {format_count(least)} to "
            f"{format_count(most)}"
        )
