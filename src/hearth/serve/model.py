"""ServedModel: everything about the model that the front end knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hearth.core.config import Resolved
from hearth.core.errors import ModelNotServedError, TokenizerError
from hearth.core.images import ImageInfo
from hearth.core.quality import QualitySummary, RoundingLoss
from hearth.engine.text.chat_template import ChatTemplate, load_chat_template
from hearth.engine.text.tokenizer import Tokenizer
from hearth.models.generation_config import GenerationDefaults

NO_TEMPLATE = "the model has no chat template: /v1/chat/completions will answer with an error"


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Tokenizer and chat template of a model directory."""

    tokenizer: Tokenizer
    template: ChatTemplate | None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the names that clients may use; the first one is its own."""

    names: tuple[str, ...]
    text: TextFiles
    max_model_len: int
    vocab_size: int
    stop_token_ids: frozenset[int]
    created: int
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    executor: str = "cpu"  # what runs it: ExecutorInfo.name
    images: ImageInfo | None = None  # None: it takes none
    separates_reasoning: bool = False  # from the content of a chat's answers
    planned_bytes: int = 0  # memory of the server, by its plan
    quality: QualitySummary | None = None  # what its quantization was measured to cost
    rounding: RoundingLoss | None = None  # what codes that were made while loading lose
    kv_cache_dtype: str = ""  # how keys and values are stored

    def resolve_name(self, asked: str | None) -> str:
        """The name to answer under. Raises ModelNotServedError."""
        if asked is None:
            return self.names[0]
        if asked not in self.names:
            served = ", ".join(repr(name) for name in self.names)
            raise ModelNotServedError(
                f"the model {asked!r} does not exist here; served: {served}",
                hint="use a served name, or start the server with --served-model-name",
                param="model",
            )
        return asked


def load_text_files(model_dir: Path) -> TextFiles:
    """Reads tokenizer and chat template. Raises TokenizerError."""
    tokenizer = Tokenizer.load(model_dir)
    return TextFiles(tokenizer, load_chat_template(model_dir, tokenizer.config))


def served_model(
    names: tuple[str, ...],
    text: TextFiles,
    resolved: Resolved,
    defaults: GenerationDefaults,
    created: int,
    executor: str = "cpu",
    *,
    separates_reasoning: bool = False,
) -> ServedModel:
    """Joins what the engine resolved with the text files.

    An answer ends at the stop tokens of the model's files and at the tokenizer's own end token.

    Raises:
        TokenizerError: the tokenizer has ids that the model does not have.
    """
    text.tokenizer.check_vocabulary(resolved.vocab_size)
    stops = set(resolved.eos_token_ids)
    if (eos := text.tokenizer.eos_token_id) is not None:
        stops.add(eos)
    if not names:
        raise TokenizerError("a served model needs a name")
    return ServedModel(
        names=names,
        text=text,
        max_model_len=resolved.max_model_len,
        vocab_size=resolved.vocab_size,
        stop_token_ids=frozenset(stops),
        created=created,
        defaults=defaults,
        executor=executor,
        images=resolved.images,
        separates_reasoning=separates_reasoning,
        planned_bytes=resolved.planned_bytes,
        quality=resolved.quality,
        rounding=resolved.rounding,
        kv_cache_dtype=resolved.kv_cache_dtype,
    )
