"""The names that `hearth quantize --scheme` takes, as compressed-tensors and vLLM use them."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.config import DEFAULT_CODES, CodesConfig
from hearth.core.errors import ConfigError
from hearth.models.quantize import GROUP_SIZES
from hearth.quant.checkpoint import Scheme


@dataclass(frozen=True, slots=True)
class _Named:
    name: str  # of models.quantize.SCHEMES
    zero_points: bool = False
    per_row: bool = False


_SCHEMES = {
    "w4a16": _Named("int4"),
    "w4a16-asym": _Named("int4", zero_points=True),
    "w8a16": _Named("int8"),
    "w8a8": _Named("int8", per_row=True),
    "fp8": _Named("fp8", per_row=True),
}
NAMES = tuple(_SCHEMES)


def scheme_named(name: str, group_size: int | None) -> Scheme:
    """`group_size` None: the default. Raises ConfigError for what there is not."""
    if name not in _SCHEMES:
        raise ConfigError(f"--scheme {name!r} is not known; permitted: {', '.join(NAMES)}")
    found = _SCHEMES[name]
    if found.per_row and group_size is not None:
        raise ConfigError(
            f"--group-size is {group_size}, but {name} has one scale for a whole row",
            hint="leave --group-size out, or take --scheme w8a16, which has groups",
        )
    size = DEFAULT_CODES.group_size if group_size is None else group_size
    if size not in GROUP_SIZES:
        permitted = ", ".join(map(str, GROUP_SIZES))
        raise ConfigError(f"--group-size is {size}; permitted: {permitted}")
    codes = CodesConfig(group_size=size, zero_points=found.zero_points)
    return Scheme(found.name, codes, found.per_row)


def check_method(scheme: Scheme, method: str) -> None:
    """Raises ConfigError for a method that has no such codes."""
    if scheme.name == "fp8" and method != "rtn":
        raise ConfigError(
            f"--method is {method}, but its corrections are for codes at equal steps, and those of "
            "fp8 grow with a weight's size; permitted: rtn",
            hint="leave --method out, or take --scheme w8a16, which loses less in as much space",
        )
