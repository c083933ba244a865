"""A prompt with images: where they stand in its tokens, and that nothing else looks like one.

A chat template writes one image token for each image; the model sees it as many times as the image
has tokens. Knows nothing of HTTP, and nothing of how images are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hearth.core.errors import RequestError
from hearth.core.images import ImageInput
from hearth.core.units import format_count
from hearth.engine.images.sources import ImageSource
from hearth.serve.notices import IMAGE_READ, Notice

if TYPE_CHECKING:
    from hearth.engine.images.loader import LoadedImages


@dataclass(frozen=True, slots=True)
class PromptImages:
    """The images of a prompt; whoever ends the request closes them.

    `notices`: what the client should know of how its images were read.
    """

    inputs: tuple[ImageInput, ...]
    loaded: LoadedImages
    notices: tuple[Notice, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Of all images together."""
        return sum(image.num_tokens for image in self.inputs)

    def close(self) -> None:
        """Gives the pixels back. May be called twice."""
        self.loaded.close()


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The tokens of a conversation, and its images where it has any.

    `is_reasoning`: it ends within reasoning: with `<think>`, which some chat templates put there
    for the model, or with a message to be continued that has not closed its own.
    """

    tokens: Sequence[int]
    images: PromptImages | None = None
    is_reasoning: bool = False

    def close(self) -> None:
        """Gives the images back. May be called twice."""
        if self.images is not None:
            self.images.close()


@dataclass(frozen=True, slots=True)
class ImageToken:
    """The token that stands for images: its id, and its text for messages."""

    token_id: int
    text: str

    def check_count(self, prompt: Sequence[int], num_images: int, param: str) -> None:
        """Raises RequestError unless the prompt has one image token for each image."""
        num_tokens = prompt.count(self.token_id)
        if num_tokens == num_images:
            return
        if num_tokens < num_images:
            raise RequestError(
                f"the model's chat template writes {_images(num_tokens)} of the "
                f"{format_count(num_images)} in the {param}",
                hint="put images into messages of the user, as parts of a content list",
                param=param,
            )
        raise RequestError(
            f"the image token {self.text} stands {format_count(num_tokens)} times in the {param}, "
            f"with {_images(num_images)} (permitted: once for each image)",
            hint=f"take {self.text} out of the texts; an image is a content part of a chat message",
            param=param,
        )


def placed(
    prompt: Sequence[int],
    token: ImageToken,
    sources: Sequence[ImageSource],
    loaded: LoadedImages,
) -> ChatPrompt:
    """The prompt with each image token in the place of one, as many times as it has tokens.

    The prompt's image tokens stand for the images in their order.
    """
    tokens: list[int] = []
    inputs: list[ImageInput] = []
    start = 0
    for image in loaded.images:
        end = prompt.index(token.token_id, start)
        tokens += prompt[start:end]
        inputs.append(
            ImageInput(
                digest=image.digest,
                first_token=len(tokens),
                num_tokens=image.num_tokens,
                grid_height=image.grid_height,
                grid_width=image.grid_width,
                path=image.file.path,
            )
        )
        tokens += [token.token_id] * image.num_tokens
        start = end + 1
    tokens += prompt[start:]
    notices = [
        Notice(IMAGE_READ, source.where, f"{source.where}: {note}")
        for source, image in zip(sources, loaded.images, strict=True)
        for note in image.notes
    ]
    return ChatPrompt(tokens, PromptImages(tuple(inputs), loaded, tuple(notices)))


def _images(count: int) -> str:
    return "no image" if count == 0 else f"{format_count(count)} image{'s' if count > 1 else ''}"
