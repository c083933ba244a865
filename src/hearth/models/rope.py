"""RoPE parameters of a config.json, in both spellings, to a `RopeSpec`.

transformers 5 writes `rope_parameters {rope_type, rope_theta, partial_rotary_factor, …}`; before,
the same stood as `rope_theta`, `partial_rotary_factor` and `rope_scaling {rope_type or type, …}`.
The arithmetic of the scaling kinds is in `rope_scaling`; an unknown kind is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hearth.core.errors import ModelError
from hearth.core.spec import RopePairing, RopeSpec
from hearth.models.config_json import ConfigJson, is_integer
from hearth.models.rope_scaling import RopeBase, RopeContext, longest_context, scale

DEFAULT_THETA = 10000.0
_LARGEST_THETA = 1e15
_NUM_POSITION_ROWS = 3


@dataclass(frozen=True, slots=True)
class RopeShape:
    """What a family knows of its rotation beside the config.

    `partial_default` None: always the whole head; transformers ignores partial_rotary_factor for
    such a family, other engines apply it, so that it must be absent or 1. Where there is a
    `sections_of`, the config must have it. `aliases`: other names of scaling kinds.
    """

    head_dim: int
    pairing: RopePairing = RopePairing.HALF
    partial_default: float | None = None
    theta_default: float = DEFAULT_THETA
    sections_of: str = ""  # the key of the frequencies' split over three rows of positions
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadRope:
    """A rotation, and the longest context (tokens) that its scaling gives the model."""

    spec: RopeSpec
    longest_context: int


def read_rope(config: ConfigJson, shape: RopeShape, context: RopeContext) -> ReadRope:
    """The rotary embedding of a config with one for all layers. Raises ModelError."""
    # Where both are there, transformers lets rope_scaling win.
    section = config.section("rope_scaling") or config.section("rope_parameters")
    if section is not None:
        nested = [key for key, value in section.values.items() if isinstance(value, dict)]
        if nested:
            raise ModelError(
                f"{section.source} differs per layer type ({', '.join(nested)}); "
                "permitted: one for all"
            )
    return read_section(config, section, shape, context)


def read_section(
    config: ConfigJson, section: ConfigJson | None, shape: RopeShape, context: RopeContext
) -> ReadRope:
    """The rotary embedding of one section; what it lacks stands at the top of the config."""
    section = section or ConfigJson(f"{config.source}: rope_parameters", {})
    theta_source = section if section.has("rope_theta") else config
    theta = theta_source.number(
        "rope_theta", above=0.0, maximum=_LARGEST_THETA, default=shape.theta_default
    )
    rotary_dim = _rotary_dim(config, section, shape)
    base = RopeBase(section, config, theta, rotary_dim, context)
    aliases = dict(shape.aliases)
    scaled = scale(base, aliases)
    spec = RopeSpec(
        rotary_dim,
        shape.pairing,
        scaled.inv_freq,
        sections=_sections(section, shape, rotary_dim) if shape.sections_of else (),
        attention_scaling=scaled.attention_scaling,
    )
    return ReadRope(spec, longest_context(base, aliases, context.own))


def _sections(section: ConfigJson, shape: RopeShape, rotary_dim: int) -> tuple[int, ...]:
    """How many frequencies follow time, height and width. Raises ModelError: never guessed.

    A model whose images are rotated by other positions than it was trained with answers texts
    well, and sees everything at the wrong place.
    """
    value = section.values.get(shape.sections_of)
    listed = value if isinstance(value, list) else []
    half = rotary_dim // 2
    is_split = len(listed) == _NUM_POSITION_ROWS and all(is_integer(n) and n >= 0 for n in listed)
    if not is_split or sum(listed) != half:
        raise section.error(
            shape.sections_of,
            f"three numbers of frequencies (time, height, width) whose sum is {half}",
            hint="take the config.json of the model itself; without it images cannot be placed",
        )
    return tuple(listed)


def _rotary_dim(config: ConfigJson, section: ConfigJson, shape: RopeShape) -> int:
    key = "partial_rotary_factor"
    source = section if section.has(key) else config
    default = 1.0 if shape.partial_default is None else shape.partial_default
    factor = source.number(key, above=0.0, maximum=1.0, default=default)
    rotary_dim = int(shape.head_dim * factor)
    if rotary_dim < 2 or rotary_dim % 2:
        raise ModelError(
            f"{config.source}: head_dim {shape.head_dim} × partial_rotary_factor {factor:g} gives "
            f"{rotary_dim} rotary dimensions; permitted: an even number from 2",
            param=key,
        )
    if shape.partial_default is None and rotary_dim != shape.head_dim:
        raise ModelError(
            f"{config.source}: partial_rotary_factor gives {rotary_dim} of {shape.head_dim} "
            "rotary dimensions; permitted for this architecture: 1",
            param=key,
        )
    return rotary_dim
