"""Image parts of a message's content, in the forms that clients send.

    {"type": "image_url", "image_url": {"url": "data:…", "detail": "auto"}}   OpenAI's chat API
    {"type": "image_url", "image_url": "data:…"}                              short for it
    {"type": "input_image", "image_url": "data:…", "detail": "auto"}          OpenAI's responses API
    {"type": "image", "image": "data:…"}, {"type": "image", "url": "data:…"}  transformers

`detail`: "low" makes the image small (512 · 512 pixels at most, or the model's least), as OpenAI
documents it; "auto", "high" and "original" are the model's own size.
"""

from __future__ import annotations

from typing import Any

from hearth.core.errors import RequestError
from hearth.engine.images.sources import ImageSource
from hearth.serve.http.schemas import ContentPart

IMAGE_PARTS = ("image_url", "input_image", "image")
PERMITTED = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
DETAILS = ("auto", "low", "high", "original")
_SHOWN_CHARS = 40


def image_of(where: str, part: ContentPart) -> ImageSource:
    """The image that a part names. Raises RequestError; `where` is the part's path."""
    extra = part.model_extra or {}
    named = [part.image_url, extra.get("image"), extra.get("url")]
    place, detail = f"{where}.image_url", extra.get("detail")
    value = next((one for one in named if one is not None), None)
    if isinstance(value, dict):
        detail = value.get("detail", detail)
        value = value.get("url")
    if not isinstance(value, str):
        came = "nothing" if value is None else f"a {_json_type(value)}"
        raise RequestError(
            f"{place}: an image part needs a URL as a string, and has {came} (permitted: "
            f"{PERMITTED})",
            param=place,
        )
    if detail is not None and detail not in DETAILS:
        shown = repr(detail)[:_SHOWN_CHARS]
        raise RequestError(
            f"{place}.detail: {shown} is not a detail (permitted: {', '.join(DETAILS)})",
            param=f"{place}.detail",
        )
    return ImageSource(place, value, is_low_detail=detail == "low")


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", list: "list"}
    return names.get(type(value), "value of another type")
