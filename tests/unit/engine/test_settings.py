"""Settings out of range are refused with flag, value and range."""

from __future__ import annotations

import pytest

from hearth.core.config import (
    CacheConfig,
    CodesConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from hearth.core.errors import ConfigError
from hearth.engine.settings import check_settings


def test_the_defaults_are_in_range() -> None:
    check_settings(EngineConfig(ModelConfig("m")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(ModelConfig("m", dtype="float64")), "--dtype is 'float64'; permitted: auto"),
        (EngineConfig(ModelConfig("m", load_format="gguf")), "--load-format is 'gguf'"),
        (EngineConfig(ModelConfig("m", max_model_len=0)), "--max-model-len is 0; permitted: 2 to"),
        (EngineConfig(ModelConfig("m", seed=-1)), "--seed is -1"),
        (
            EngineConfig(ModelConfig("m"), CacheConfig(block_size=24)),
            "--block-size is 24; permitted: 16, 32",
        ),
        (
            EngineConfig(ModelConfig("m"), CacheConfig(memory_bytes=0)),
            "--kv-cache-memory-bytes is 0",
        ),
        (
            EngineConfig(ModelConfig("m"), scheduler=SchedulerConfig(max_num_seqs=0)),
            "--max-num-seqs is 0; permitted: 1 to 16,384",
        ),
        (
            EngineConfig(ModelConfig("m"), scheduler=SchedulerConfig(max_num_batched_tokens=-5)),
            "--max-num-batched-tokens is -5",
        ),
        (EngineConfig(ModelConfig("m"), device=DeviceConfig(threads=0)), "--threads is 0"),
        (EngineConfig(ModelConfig("m", quantize="int3")), "--quantize is 'int3'; permitted: none"),
        (
            EngineConfig(ModelConfig("m", quantize="int4", codes=CodesConfig(group_size=48))),
            "--quantize-group-size is 48; permitted: 32, 64, 128",
        ),
        (
            EngineConfig(ModelConfig("m", quantize="int4", codes=CodesConfig("int4"))),
            "--activations is 'int4'; permitted: auto, int8, int8-residual, float32",
        ),
        (
            EngineConfig(ModelConfig("m", codes=CodesConfig("int8"))),
            "--activations is int8, and --quantize is none",
        ),
        (
            EngineConfig(ModelConfig("m", quantize="fp8", codes=CodesConfig("int8"))),
            "--activations is int8, and --quantize is fp8",
        ),
        (
            EngineConfig(ModelConfig("m", quantize="fp8", codes=CodesConfig("int8-residual"))),
            "--activations is int8-residual, and --quantize is fp8",
        ),
        (
            EngineConfig(ModelConfig("m"), device=DeviceConfig(None, "tpu")),
            "--executor is 'tpu'",
        ),
    ],
)
def test_a_value_out_of_range_is_named(config: EngineConfig, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(config)
    assert caught.value.message.startswith(message)
