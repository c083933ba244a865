"""A model that takes images, and an engine that looks at them while their request runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.unit.images.samples import SMALL, data_url, png
from tests.unit.serve.fake_engine import EOS, FakeEngine
from tests.unit.text import builders, templates

from hearth.core.images import ImageInfo
from hearth.core.request import Request, TokenEvent
from hearth.engine.images.pixels import open_pixels
from hearth.engine.text.chat_template import ChatTemplate
from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig
from hearth.serve.model import ServedModel, TextFiles

BEGIN, IMAGE, END = "<|begin_of_image|>", "<|image|>", "<|end_of_image|>"
END_OF_ANSWER = "</answer>"


def image_model(template: str = templates.GLM4, **changes: Any) -> ServedModel:
    """As GLM-4.1V: its special tokens and template; images of 64 tokens at most."""
    backend = builders.byte_level()
    backend.add_special_tokens(["[gMASK]", "<sop>", "<|system|>", BEGIN, IMAGE, END, END_OF_ANSWER])
    backend.add_tokens(["</think>", "<answer>"])
    tokenizer = Tokenizer(backend, TokenizerConfig(special_tokens={"eos_token": "<|endoftext|>"}))
    settings: dict[str, Any] = {
        "names": ("toy",),
        "text": TextFiles(tokenizer, ChatTemplate(template, {})),
        "max_model_len": 2000,
        "vocab_size": tokenizer.num_tokens,
        "stop_token_ids": frozenset({EOS, id_of(tokenizer, END_OF_ANSWER)}),
        "created": 1_700_000_000,
        "images": ImageInfo(SMALL, id_of(tokenizer, IMAGE), 1 << 20),
    }
    return ServedModel(**{**settings, **changes})


def id_of(tokenizer: Tokenizer, text: str) -> int:
    found = tokenizer.token_id(text)
    assert found is not None
    return found


class LookingEngine(FakeEngine):
    """Opens a request's images with its first event, as late as an engine may; `seen` has them."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model.text.tokenizer)
        self.seen: list[list[NDArray[np.uint8]]] = []

    async def _events(self, request: Request) -> AsyncIterator[TokenEvent]:
        async for event in super()._events(request):
            if event.finish_reason is not None:
                found = [open_pixels(image, SMALL.patch_size) for image in request.images]
                self.seen.append(found)
            yield event


def image_part(data: bytes | None = None, **fields: Any) -> dict[str, Any]:
    url = data_url(png() if data is None else data)
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}
