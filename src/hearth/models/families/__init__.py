"""Family files: which architecture is mapped by which module. Modules load when first asked for.

A family module has `build_spec(config, dtype, served) -> ModelSpec`, pure data, and `READS`: the
keys of `models/features` that it reads itself.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hearth.core.errors import UnknownArchitectureError
from hearth.models.config_json import shown

if TYPE_CHECKING:
    from hearth.core.spec import DType, ModelSpec
    from hearth.models.config_json import ConfigJson

FAMILIES: dict[str, str] = {
    "Gemma2ForCausalLM": "hearth.models.families.gemma",
    "Gemma3ForCausalLM": "hearth.models.families.gemma",
    "LlamaForCausalLM": "hearth.models.families.llama",
    "MistralForCausalLM": "hearth.models.families.mistral",
    "Phi3ForCausalLM": "hearth.models.families.phi3",
    "Qwen2ForCausalLM": "hearth.models.families.qwen",
    "Qwen3ForCausalLM": "hearth.models.families.qwen",
    "Qwen3MoeForCausalLM": "hearth.models.families.qwen3_moe",
    "MixtralForCausalLM": "hearth.models.families.mixtral",
    "Glm4ForCausalLM": "hearth.models.families.glm4",
    "Glm4MoeForCausalLM": "hearth.models.families.glm4_moe",
    "Glm4vForConditionalGeneration": "hearth.models.families.glm4v",
    "Qwen2VLForConditionalGeneration": "hearth.models.families.qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "hearth.models.families.qwen2_vl",
}


class BuildSpec(Protocol):
    """Maps a config to a spec whose linear and table slots are kept in `dtype`.

    `served`: the longest sequence in tokens that will be served, which some kinds of RoPE scaling
    depend on; None: the longest that the model supports.
    """

    def __call__(self, config: ConfigJson, dtype: DType, served: int | None) -> ModelSpec: ...


@dataclass(frozen=True, slots=True)
class Family:
    """What a family module offers."""

    build_spec: BuildSpec
    reads: frozenset[str]


def named_architecture(config: ConfigJson) -> str:
    """`architectures[0]`. Raises UnknownArchitectureError when there is none."""
    listed = config.values.get("architectures")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], str):
        raise UnknownArchitectureError(
            f"{config.source}: architectures is {shown(listed)}; supported: {supported_names()}",
            hint="config.json must name its architecture",
            param="architectures",
        )
    return listed[0]


def architecture_of(config: ConfigJson) -> str:
    """`architectures[0]`. Raises UnknownArchitectureError when there is none, or none we know."""
    architecture = named_architecture(config)
    if architecture not in FAMILIES:
        raise unsupported(config, architecture)
    return architecture


def unsupported(
    config: ConfigJson, architecture: str, hint: str | None = None
) -> UnknownArchitectureError:
    """The error for an architecture without a family file."""
    return UnknownArchitectureError(
        f"{config.source}: architecture {shown(architecture)} is not supported; "
        f"supported: {supported_names()}",
        hint=hint,
        param="architectures",
    )


def supported_names() -> str:
    """The architectures that have a family file, for messages."""
    return ", ".join(sorted(FAMILIES))


def family_of(architecture: str) -> Family:
    """The family of a known architecture."""
    module = importlib.import_module(FAMILIES[architecture])
    return Family(module.build_spec, module.READS)
