"""The flags of `hearth serve` that concern images; see `options` for the rules.

Some are vLLM's, taken so that its command lines work here: they say in JSON, or for an engine that
is built otherwise, what flags of hearth say. `image_settings` resolves them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from hearth.cli.options import option, quantity, quantity_or_none

_PANEL = "Images"

LimitImages = Annotated[
    int | None,
    option(
        "--limit-images",
        "Most images in a request. Default: 10.",
        min=0,
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
LimitMmPerPrompt = Annotated[
    str,
    option(
        "--limit-mm-per-prompt",
        "The same as vLLM writes it: '{\"image\": 10}'.",
        metavar="JSON",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
MaxPixels = Annotated[
    int | None,
    option(
        "--max-pixels",
        "Most pixels of an image after resizing, such as 5000000; larger ones are made smaller and "
        "have fewer tokens. A model that doubles a picture to two frames counts both. Default: the "
        "model's own.",
        parser=quantity,
        metavar="PIXELS",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
MinPixels = Annotated[
    int | None,
    option(
        "--min-pixels",
        "Least pixels of an image after resizing, counted alike. Default: the model's own.",
        parser=quantity,
        metavar="PIXELS",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
MmProcessorKwargs = Annotated[
    str,
    option(
        "--mm-processor-kwargs",
        "Both of them as vLLM writes them: '{\"max_pixels\": 5000000}'.",
        metavar="JSON",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
ImageCacheBytes = Annotated[
    int,
    option(
        "--image-cache-bytes",
        "Memory for what the model saw in earlier images, such as 256M, so that the same image is "
        "not looked at again; 0 keeps none.",
        parser=quantity_or_none,
        metavar="BYTES",
        rich_help_panel=_PANEL,
    ),
]
AllowedLocalMediaPath = Annotated[
    str,
    option(
        "--allowed-local-media-path",
        "Images of file: URLs may lie below this directory, links resolved. Whoever reaches the "
        "server may have them looked at. Default: none.",
        metavar="DIRECTORY",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
AllowedMediaDomains = Annotated[
    list[str] | None,
    option(
        "--allowed-media-domains",
        "Host whose http: and https: images are fetched; several may follow MODEL and this flag, "
        "or repeat it; * for every host. Default: none.",
        metavar="HOST",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
AllowPrivateMediaAddresses = Annotated[
    bool,
    option(
        "--allow-private-media-addresses/--no-allow-private-media-addresses",
        "Fetch images also from this machine and the local network. Whoever reaches the server "
        "can then make it ask services there.",
        rich_help_panel=_PANEL,
    ),
]
ChatTemplateContentFormat = Annotated[
    Literal["auto", "string", "openai"],
    option(
        "--chat-template-content-format",
        "Taken for vLLM's command lines and not followed: the chat template itself decides in "
        "which form it gets a message's content.",
        rich_help_panel=_PANEL,
    ),
]
