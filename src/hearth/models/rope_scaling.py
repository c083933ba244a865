"""How each kind of RoPE scaling changes frequencies and the attention factor: pure arithmetic.

The formulas are those of transformers' modeling_rope_utils, rounded to float32 where torch rounds.
Kinds whose frequencies there follow the length of the current sequence (dynamic, and longrope's
choice between its two lists) follow the longest sequence that is served here: keys are cached
rotated, so that one sequence cannot change its frequencies while it grows, and the answer to a
request must not depend on its company. They equal transformers where the whole sequence is as long
(dynamic: or not longer than the original context; longrope: or on the same side of it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hearth.core.errors import ModelError
from hearth.models.config_json import ConfigJson, is_number, shown
from hearth.models.rounding import float32

_LARGEST_FACTOR = 1e6
_MOST_POSITIONS = 1 << 28


@dataclass(frozen=True, slots=True)
class RopeContext:
    """The lengths that scaling depends on, in tokens.

    `own`: the config's max_position_embeddings; `served`: the longest sequence that will be
    served, None for the longest that the model supports.
    """

    own: int
    served: int | None = None


@dataclass(frozen=True, slots=True)
class RopeBase:
    """What is scaled: theta^(−2i / rotary_dim), and the config that says how."""

    section: ConfigJson
    config: ConfigJson
    theta: float
    rotary_dim: int
    context: RopeContext

    def original(self) -> int:
        """The context that the model was first trained with; the top level of the file wins."""
        key = "original_max_position_embeddings"
        source = self.config if self.config.has(key) else self.section
        return source.integer(key, minimum=2, maximum=_MOST_POSITIONS, default=self.context.own)

    def factor(self, default: float | None = None) -> float:
        """How far the context is stretched."""
        return self.section.number("factor", above=0.0, maximum=_LARGEST_FACTOR, default=default)


@dataclass(frozen=True, slots=True)
class ScaledRope:
    """Radians a position, [rotary_dim / 2] of float32; the factor of cosine and sine."""

    inv_freq: tuple[float, ...]
    attention_scaling: float = 1.0


def inverse_frequencies(theta: float, rotary_dim: int) -> tuple[float, ...]:
    """1 / theta^(2i / rotary_dim), rounded to float32 after each operation as transformers does.

    `[rotary_dim / 2]` values that float32 represents exactly. (torch's vectorized power may
    differ from these by one unit in the last place.)
    """
    return tuple(float32(1.0 / power) for power in _powers(theta, rotary_dim))


def longest_context(base: RopeBase, aliases: dict[str, str], own: int) -> int:
    """The longest context that the model supports, in tokens.

    linear and dynamic stretch the original context by their factor; yarn too, unless the config
    already gives the longer one; llama3 and longrope configs always give the longer one.
    """
    kind = kind_of(base.section, aliases)
    if kind == "dynamic":
        return max(own, int(base.factor() * own))
    if kind == "linear":
        return max(own, int(base.factor() * base.original()))
    if kind == "yarn":
        return max(own, int(base.factor(default=1.0) * base.original()))
    return own


def kind_of(section: ConfigJson, aliases: dict[str, str]) -> str:
    """The kind of scaling that a section asks for."""
    kind = section.text("rope_type" if section.has("rope_type") else "type", default="default")
    return aliases.get(kind, kind)


def scale(base: RopeBase, aliases: dict[str, str]) -> ScaledRope:
    """Frequencies by the section's kind; `aliases` are other names. Raises ModelError."""
    kind = kind_of(base.section, aliases)
    if kind not in _KINDS:
        key = "rope_type" if base.section.has("rope_type") else "type"
        raise ModelError(
            f"{base.section.source}: {key} is {shown(kind)}; permitted: {', '.join(_KINDS)}",
            hint="ignoring this RoPE scaling would give wrong answers",
            param=key,
        )
    return _KINDS[kind](base)


def _default(base: RopeBase) -> ScaledRope:
    return ScaledRope(inverse_frequencies(base.theta, base.rotary_dim))


def _linear(base: RopeBase) -> ScaledRope:
    """Positions divided by the factor."""
    factor = float32(base.factor())
    plain = inverse_frequencies(base.theta, base.rotary_dim)
    return ScaledRope(tuple(float32(frequency / factor) for frequency in plain))


def _dynamic(base: RopeBase) -> ScaledRope:
    """NTK: a larger theta for sequences beyond the original context."""
    factor, own, dim = base.factor(), base.context.own, base.rotary_dim
    if dim == 2:
        raise base.section.error("rope_type", "dynamic only with more than 2 rotary dimensions")
    length = max(own, base.context.served or int(factor * own))
    stretch = factor * length / own - (factor - 1)
    return ScaledRope(inverse_frequencies(base.theta * stretch ** (dim / (dim - 2)), dim))


def _yarn(base: RopeBase) -> ScaledRope:
    """Slow frequencies interpolated, fast ones kept, a ramp between (arXiv 2309.00071)."""
    section, dim, original = base.section, base.rotary_dim, base.original()
    factor = base.factor(default=base.context.own / original)

    def bound(key: str, default: float) -> float:
        rotations = section.number(key, above=0.0, maximum=_LARGEST_FACTOR, default=default)
        turns = math.log(original / (rotations * 2 * math.pi))
        return dim * turns / (2 * math.log(base.theta))

    low, high = bound("beta_fast", 32.0), bound("beta_slow", 1.0)
    if section.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    frequencies = []
    for i, power in enumerate(_powers(base.theta, dim)):
        kept = float32(1.0 - min(max(float32(float32(i - low) / width), 0.0), 1.0))
        slow, fast = float32(1.0 / float32(factor * power)), float32(1.0 / power)
        frequencies.append(float32(float32(slow * float32(1.0 - kept)) + float32(fast * kept)))
    return ScaledRope(tuple(frequencies), _yarn_attention(section, factor))


def _yarn_attention(section: ConfigJson, factor: float) -> float:
    def get_mscale(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    own = section.number("attention_factor", above=0.0, maximum=_LARGEST_FACTOR, default=0.0)
    if own:
        return own
    scales = [
        section.number(key, above=-1.0, maximum=_LARGEST_FACTOR, default=0.0)
        for key in ("mscale", "mscale_all_dim")
    ]
    if all(scales):
        return get_mscale(scales[0]) / get_mscale(scales[1])
    return get_mscale(1.0)


def _llama3(base: RopeBase) -> ScaledRope:
    """Long wavelengths stretched, short ones kept, a ramp between (Llama 3.1)."""
    factor, original = base.factor(), base.original()
    low, high = (
        base.section.number(key, above=0.0, maximum=_LARGEST_FACTOR)
        for key in ("low_freq_factor", "high_freq_factor")
    )
    if low >= high:
        raise base.section.error("low_freq_factor", f"a number below high_freq_factor ({high:g})")

    def one(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            return frequency
        if wavelength > original / low:
            return float32(frequency / factor)
        smooth = (original / wavelength - low) / (high - low)
        return float32((1 - smooth) * frequency / factor + smooth * frequency)

    plain = inverse_frequencies(base.theta, base.rotary_dim)
    return ScaledRope(tuple(one(frequency) for frequency in plain))


def _longrope(base: RopeBase) -> ScaledRope:
    """A factor for each frequency, of two lists (arXiv 2402.13753)."""
    original, own = base.original(), base.context.own
    factor = base.factor(default=own / original)
    attention = base.section.number(
        "attention_factor", above=0.0, maximum=_LARGEST_FACTOR, default=0.0
    )
    if not attention:
        attention = 1.0
        if factor > 1.0:
            attention = math.sqrt(1 + math.log(factor) / math.log(original))
    is_long = (base.context.served or own) > original
    factors = _factors(base, "long_factor" if is_long else "short_factor")
    powers = _powers(base.theta, base.rotary_dim)
    frequencies = (float32(1.0 / float32(f * power)) for f, power in zip(factors, powers))
    return ScaledRope(tuple(frequencies), attention)


def _factors(base: RopeBase, key: str) -> list[float]:
    listed, count = base.section.values.get(key), base.rotary_dim // 2
    is_list = isinstance(listed, list) and all(is_number(f) and f > 0 for f in listed)
    if not isinstance(listed, list) or not is_list or len(listed) != count:
        raise base.section.error(key, f"a list of {count} numbers above 0")
    return [float32(float(factor)) for factor in listed]


def _powers(theta: float, rotary_dim: int) -> list[float]:
    return [float32(theta ** float32(i / rotary_dim)) for i in range(0, rotary_dim, 2)]


_KINDS: dict[str, Callable[[RopeBase], ScaledRope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
