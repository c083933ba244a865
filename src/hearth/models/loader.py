"""From a model directory to everything that an engine needs before the weights.

Imports neither torch nor numpy: `load_model_spec` takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearth.core.program import StepProgram
from hearth.core.spec import DType, ModelSpec
from hearth.models.config_json import ConfigJson, read_config
from hearth.models.dtype import checkpoint_dtype, resolve_dtype
from hearth.models.families import architecture_of, family_of
from hearth.models.features import refuse_unimplemented
from hearth.models.generation_config import GenerationDefaults, read_generation_defaults
from hearth.models.lower import lower


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A model directory, read except for its weights."""

    path: Path
    spec: ModelSpec
    program: StepProgram
    generation: GenerationDefaults
    dtype: DType
    dtype_reason: str
    config: ConfigJson
    warnings: tuple[str, ...] = ()


def load_model_spec(path: str | Path, dtype: str = "auto") -> LoadedSpec:
    """Reads config.json and generation_config.json and lowers the model.

    `dtype`: auto, float32 or bfloat16. Raises ModelNotFoundError, UnknownArchitectureError,
    ModelError (a value in a file) or ConfigError (`dtype`).
    """
    directory = Path(path)
    config = read_config(directory)
    build_spec = family_of(architecture_of(config))
    refuse_unimplemented(config)
    choice = resolve_dtype(dtype, checkpoint_dtype(config))
    spec = build_spec(config, choice.dtype)
    generation = read_generation_defaults(directory, config, spec.vocab_size)
    return LoadedSpec(
        path=directory,
        spec=spec,
        program=lower(spec),
        generation=generation,
        dtype=choice.dtype,
        dtype_reason=choice.reason,
        config=config,
        warnings=generation.warnings,
    )
