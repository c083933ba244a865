"""Family files: which architecture is mapped by which module. Modules load when first asked for.

A family module has one public function `build_spec(config, dtype) -> ModelSpec`, pure data.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from hearth.core.errors import UnknownArchitectureError
from hearth.models.config_json import shown

if TYPE_CHECKING:
    from hearth.core.spec import DType, ModelSpec
    from hearth.models.config_json import ConfigJson

FAMILIES: dict[str, str] = {
    "LlamaForCausalLM": "hearth.models.families.llama",
    "Glm4ForCausalLM": "hearth.models.families.glm4",
}


class BuildSpec(Protocol):
    """Maps a config to a spec whose linear and table slots are kept in `dtype`."""

    def __call__(self, config: ConfigJson, dtype: DType) -> ModelSpec: ...


def architecture_of(config: ConfigJson) -> str:
    """`architectures[0]`. Raises UnknownArchitectureError when there is none, or none we know."""
    listed = config.values.get("architectures")
    supported = ", ".join(sorted(FAMILIES))
    if not isinstance(listed, list) or not listed:
        raise UnknownArchitectureError(
            f"{config.source}: architectures is {shown(listed)}; supported: {supported}",
            hint="config.json must name its architecture",
            param="architectures",
        )
    if not isinstance(listed[0], str) or listed[0] not in FAMILIES:
        raise UnknownArchitectureError(
            f"{config.source}: architecture {shown(listed[0])} is not supported; "
            f"supported: {supported}",
            param="architectures",
        )
    return listed[0]


def family_of(architecture: str) -> BuildSpec:
    """The mapping function of a known architecture."""
    module = importlib.import_module(FAMILIES[architecture])
    return cast(BuildSpec, module.build_spec)
