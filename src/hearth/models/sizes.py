"""The sizes that every decoder config has, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.errors import ModelError
from hearth.models.config_json import ConfigJson

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24
MAX_POSITIONS = 1 << 28


@dataclass(frozen=True, slots=True)
class SizeDefaults:
    """What transformers' config class takes where the file is silent (0: derived)."""

    max_position_embeddings: int
    rms_norm_eps: float
    head_dim: int = 0
    num_kv_heads: int = 0


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Checked sizes of a decoder: heads divide evenly, everything is positive."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float

    @property
    def q_rows(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim


def read_sizes(config: ConfigJson, defaults: SizeDefaults) -> DecoderSizes:
    """Reads and checks the sizes. Raises ModelError with the key, value and permitted range."""
    hidden = config.integer("hidden_size", minimum=1, maximum=MAX_WIDTH)
    heads = config.integer("num_attention_heads", minimum=1, maximum=MAX_WIDTH)
    kv_heads = config.integer(
        "num_key_value_heads", minimum=1, maximum=heads, default=defaults.num_kv_heads or heads
    )
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    return DecoderSizes(
        vocab_size=config.integer("vocab_size", minimum=1, maximum=MAX_VOCABULARY),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", minimum=1, maximum=MAX_WIDTH),
        num_layers=config.integer("num_hidden_layers", minimum=1, maximum=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(config, hidden, heads, defaults.head_dim),
        max_position_embeddings=config.integer(
            "max_position_embeddings",
            minimum=1,
            maximum=MAX_POSITIONS,
            default=defaults.max_position_embeddings,
        ),
        rms_norm_eps=config.number(
            "rms_norm_eps", above=0.0, maximum=1.0, default=defaults.rms_norm_eps
        ),
    )


def _head_dim(config: ConfigJson, hidden: int, heads: int, default: int) -> int:
    if config.has("head_dim") or default:
        return config.integer("head_dim", minimum=2, maximum=MAX_WIDTH, default=default or None)
    if hidden % heads:
        raise ModelError(
            f"{config.source}: hidden_size {hidden} is no multiple of num_attention_heads {heads}, "
            "and head_dim is missing",
            param="head_dim",
        )
    return hidden // heads
