"""From a model directory to everything that an engine needs before the weights.

Imports neither torch nor numpy: `load_model_spec` takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hearth.core.config import DEFAULT_CODES, CodesConfig
from hearth.core.errors import WeightsError
from hearth.core.program import EncoderProgram, StepProgram
from hearth.core.spec import DType, ModelSpec
from hearth.models.config_json import ConfigJson, read_config
from hearth.models.dtype import checkpoint_dtype, resolve_dtype
from hearth.models.families import architecture_of, family_of
from hearth.models.features import refuse_unimplemented
from hearth.models.formats.forms import StoredForms, read_stored, with_stored
from hearth.models.generation_config import GenerationDefaults, read_generation_defaults
from hearth.models.lower import lower
from hearth.models.lower_vision import lower_vision
from hearth.models.quantize import quantized
from hearth.models.safetensors_file import TensorEntry, read_checkpoint
from hearth.models.stored import KEY
from hearth.models.windows import with_window


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A model directory, read except for its weights."""

    path: Path
    spec: ModelSpec
    program: StepProgram
    encoder: EncoderProgram | None  # of images
    generation: GenerationDefaults
    dtype: DType
    dtype_reason: str
    config: ConfigJson
    window: int | None = None  # that of --window
    quantize: str = "none"  # none, int8, int4
    codes: CodesConfig = DEFAULT_CODES
    stored: StoredForms | None = None  # what the checkpoint has as codes
    warnings: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The model's class, as config.json names it."""
        return self.spec.architecture

    @property
    def precision(self) -> str:
        """What matrices are that `quantize` leaves alone: "bfloat16", or "as stored" for codes."""
        return "as stored" if self.stored is not None else str(self.dtype)

    @property
    def max_position_embeddings(self) -> int:
        """The longest context."""
        return self.spec.max_position_embeddings

    def at_length(self, max_model_len: int) -> LoadedSpec:
        """The same model for sequences of up to `max_model_len` tokens.

        Only frequencies of RoPE scaling that depends on the length differ; slots, buffers and KV
        groups, and so every size, stay the same.
        """
        family = family_of(architecture_of(self.config))
        spec = family.build_spec(self.config, self.dtype, max_model_len)
        spec = with_stored(with_window(spec, self.window), self.stored, self.codes)
        spec = quantized(spec, self.quantize, self.codes)
        return replace(self, spec=spec, program=lower(spec), encoder=lower_vision(spec))


def load_model_spec(
    path: str | Path,
    dtype: str = "auto",
    max_model_len: int | None = None,
    window: int | None = None,
    quantize: str = "none",
    codes: CodesConfig = DEFAULT_CODES,
) -> LoadedSpec:
    """Reads config.json and generation_config.json and lowers the model.

    `dtype`: auto, float32 or bfloat16. `max_model_len`: the longest sequence that will be served,
    None for the longest that the model supports (see `LoadedSpec.at_length`). `window`: see
    `windows.with_window`; `quantize` and `codes`: see `quantize.quantized`. Raises
    ModelNotFoundError, UnknownArchitectureError, ModelError (a value in a file) or ConfigError
    (`dtype`, `window`).
    """
    directory = Path(path)
    config = read_config(directory)
    family = family_of(architecture_of(config))
    refuse_unimplemented(config, family.reads)
    choice = resolve_dtype(dtype, checkpoint_dtype(config))
    spec = with_window(family.build_spec(config, choice.dtype, max_model_len), window)
    stored = read_stored(config, _stored_tensors(directory, config))
    spec = quantized(with_stored(spec, stored, codes), quantize, codes)
    generation = read_generation_defaults(directory, config, spec.vocab_size)
    return LoadedSpec(
        path=directory,
        spec=spec,
        program=lower(spec),
        encoder=lower_vision(spec),
        generation=generation,
        dtype=choice.dtype,
        dtype_reason=choice.reason,
        config=config,
        window=window,
        quantize=quantize,
        codes=codes,
        stored=stored,
        warnings=(*generation.warnings, *(() if stored is None else stored.warnings)),
    )


def _stored_tensors(directory: Path, config: ConfigJson) -> Mapping[str, TensorEntry] | None:
    """Of a quantized checkpoint; None for a plain one, and where not all files are here.

    What is wrong with them is told by who reads the weights.
    """
    if not config.has(KEY):
        return None
    try:
        return read_checkpoint(directory).tensors
    except WeightsError:
        return None
