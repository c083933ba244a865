"""RoPE parameters of a config.json, in both spellings, to a `RopeSpec`.

transformers 5 writes `rope_parameters {rope_type, rope_theta, partial_rotary_factor}`; before, the
same stood as `rope_theta`, `partial_rotary_factor` and `rope_scaling {rope_type or type, …}`.
Scaling kinds other than `default` are refused, never ignored.
"""

from __future__ import annotations

import struct

from hearth.core.errors import ModelError
from hearth.core.spec import RopePairing, RopeSpec
from hearth.models.config_json import ConfigJson, shown

DEFAULT_THETA = 10000.0
_LARGEST_THETA = 1e15


def read_rope(
    config: ConfigJson, *, head_dim: int, pairing: RopePairing, partial_default: float
) -> RopeSpec:
    """The rotary embedding of a config. Raises ModelError for scaling that is not implemented."""
    # Where both are there, transformers lets rope_scaling win.
    section = config.section("rope_scaling") or config.section("rope_parameters")
    _refuse_scaling(section)
    theta_source = section if section is not None and section.has("rope_theta") else config
    theta = theta_source.number(
        "rope_theta", above=0.0, maximum=_LARGEST_THETA, default=DEFAULT_THETA
    )
    key = "partial_rotary_factor"
    factor_source = section if section is not None and section.has(key) else config
    factor = factor_source.number(key, above=0.0, maximum=1.0, default=partial_default)
    rotary_dim = int(head_dim * factor)
    if rotary_dim < 2 or rotary_dim % 2:
        raise ModelError(
            f"{config.source}: head_dim {head_dim} × partial_rotary_factor {factor:g} gives "
            f"{rotary_dim} rotary dimensions; permitted: an even number from 2",
            param=key,
        )
    return RopeSpec(rotary_dim, pairing, inverse_frequencies(theta, rotary_dim))


def inverse_frequencies(theta: float, rotary_dim: int) -> tuple[float, ...]:
    """1 / theta^(2i / rotary_dim), rounded to float32 after each operation as transformers does.

    `[rotary_dim / 2]` values that float32 represents exactly. (torch's vectorized power may
    differ from these by one unit in the last place.)
    """
    return tuple(
        _float32(1.0 / _float32(theta ** _float32(i / rotary_dim))) for i in range(0, rotary_dim, 2)
    )


def _refuse_scaling(section: ConfigJson | None) -> None:
    if section is None:
        return
    nested = [key for key, value in section.values.items() if isinstance(value, dict)]
    if nested:
        raise ModelError(
            f"{section.source} differs per layer type ({', '.join(nested)}); permitted: one for all"
        )
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.text(key, default="default")
    if kind != "default":
        raise ModelError(
            f"{section.source}: {key} is {shown(kind)}; permitted: default",
            hint="RoPE scaling is not implemented yet; without it the model would answer wrongly",
            param=key,
        )


def _float32(value: float) -> float:
    result: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return result
