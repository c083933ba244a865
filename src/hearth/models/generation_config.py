"""generation_config.json: stop tokens and default sampling of a model.

Stop tokens: those of generation_config.json where it names any, else those of config.json
(transformers' precedence). Sampling: explicit `do_sample: false` is greedy whatever else is set;
otherwise the file's temperature, top_p, top_k and min_p; repetition_penalty and max_new_tokens
apply to both. What the file leaves open stays None, so that the server's own default (temperature
1, OpenAI's) applies. These are the fields that vLLM takes from the file, but max_new_tokens is a
default here, never a bound on what a request asks for. Fields that change the output and that are
not applied are named in `warnings`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hearth.core.errors import ModelError
from hearth.models.config_json import ConfigJson, is_number, read_json, shown

FILE_NAME = "generation_config.json"
MAX_REPETITION_PENALTY = 100.0  # also what a request may ask for

# Fields that change what is generated, with the values that do nothing.
_NOT_APPLIED: dict[str, tuple[object, ...]] = {
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "guidance_scale": (None, 1, 1.0),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None, []),
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a request gets where it says nothing; None: the model's files say nothing either."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    reason: str = "no generation_config.json"
    warnings: tuple[str, ...] = ()


def read_generation_defaults(
    directory: Path, config: ConfigJson, vocab_size: int
) -> GenerationDefaults:
    """Defaults from the directory's two files. Raises ModelError on values out of range."""
    path = directory / FILE_NAME
    generation = read_json(path) if path.exists() else ConfigJson(FILE_NAME, {})
    eos_file = generation if generation.has("eos_token_id") else config
    warnings: list[str] = []
    eos = _valid_ids(eos_file, vocab_size, warnings)
    warnings += [
        f"{FILE_NAME}: {key} is {shown(generation.values[key])}, which is not applied"
        for key, neutral in _NOT_APPLIED.items()
        if key in generation.values and generation.values[key] not in neutral
    ]
    if not path.exists():
        return GenerationDefaults(eos, warnings=tuple(warnings))
    always = GenerationDefaults(
        eos,
        repetition_penalty=_bounded(
            generation, "repetition_penalty", 0.0, MAX_REPETITION_PENALTY, open_below=True
        ),
        max_new_tokens=_max_new_tokens(generation),
        reason=FILE_NAME,
        warnings=tuple(warnings),
    )
    if not generation.flag("do_sample", default=True):
        return replace(always, temperature=0.0, reason=f"{FILE_NAME}: do_sample is false")
    return replace(
        always,
        temperature=_bounded(generation, "temperature", 0.0, 100.0),
        top_p=_bounded(generation, "top_p", 0.0, 1.0, open_below=True),
        top_k=_top_k(generation, vocab_size),
        min_p=_bounded(generation, "min_p", 0.0, 1.0),
    )


def _max_new_tokens(source: ConfigJson) -> int | None:
    if not source.has("max_new_tokens"):
        return None
    return source.integer("max_new_tokens", minimum=1, maximum=1 << 31)


def _valid_ids(source: ConfigJson, vocab_size: int, warnings: list[str]) -> tuple[int, ...]:
    ids = source.token_ids("eos_token_id")
    valid = tuple(i for i in ids if 0 <= i < vocab_size)
    if valid != ids:
        outside = sorted(set(ids) - set(valid))
        warnings.append(
            f"{source.source}: eos_token_id {outside} outside the vocabulary (0 to "
            f"{vocab_size - 1}) is ignored"
        )
    return valid


def _bounded(
    source: ConfigJson, key: str, minimum: float, maximum: float, *, open_below: bool = False
) -> float | None:
    if not source.has(key):
        return None
    value = source.values[key]
    if not is_number(value) or not minimum <= value <= maximum or (open_below and value == minimum):
        least = f"above {minimum:g}" if open_below else f"from {minimum:g}"
        raise source.error(key, f"a number {least} to {maximum:g}")
    return float(value)


def _top_k(source: ConfigJson, vocab_size: int) -> int | None:
    """`top_k`; −1 means off (as in vLLM), and so does anything ≥ the vocabulary."""
    if not source.has("top_k"):
        return None
    try:
        value = source.integer("top_k", minimum=-1, maximum=1 << 31)
    except ModelError as error:
        raise source.error("top_k", "an integer from 0 (off)") from error
    return 0 if value < 0 or value >= vocab_size else value
