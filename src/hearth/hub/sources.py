"""Where models come from, and in which order hubs are asked.

    hf           huggingface.co, or what HF_ENDPOINT names
    modelscope   modelscope.cn, or what MODELSCOPE_DOMAIN names
    URL          a mirror that speaks Hugging Face's protocol; modelscope+URL: ModelScope's
    auto         hf, then hf-mirror.com (not where HF_ENDPOINT names one), then modelscope

`auto` goes on to the next one only where there was no answer. A hub that says "no such model" or
"not for you" has answered: another hub's model of that name may be another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import httpx

from hearth.core.errors import ConfigError, HearthError
from hearth.hub.listing import Listing
from hearth.hub.names import ModelName
from hearth.hub.transport import Transport

HUGGINGFACE_URL = "https://huggingface.co"
MIRROR_URL = "https://hf-mirror.com"
MODELSCOPE_URL = "https://modelscope.cn"
_MODELSCOPE_PREFIX = "modelscope+"


class Source(Protocol):
    """A hub."""

    label: str

    def list_files(self, name: ModelName, transport: Transport) -> Listing:
        """The files of a revision.

        Raises UnreachableError where it does not answer; ModelNotFoundError, GatedModelError,
        RemoteError for what it answers.
        """
        ...

    def refusal(self, response: httpx.Response, repo: str) -> HearthError:
        """What an answer with an error status means. The body has been read."""
        ...


def sources_for(
    wanted: str, environment: Mapping[str, str], token: Callable[[], str | None]
) -> tuple[Source, ...]:
    """The hubs to ask, in order. `token`: of Hugging Face, asked for when a hub may have it.

    Raises ConfigError for what is neither a word nor a URL.
    """
    from hearth.hub.huggingface import HuggingFaceSource
    from hearth.hub.modelscope import ModelScopeSource

    endpoint = environment.get("HF_ENDPOINT", "").rstrip("/")
    domain = environment.get("MODELSCOPE_DOMAIN", "").strip("/")
    secret = environment.get("MODELSCOPE_API_TOKEN") or None
    hub = HuggingFaceSource(_checked(endpoint or HUGGINGFACE_URL, "HF_ENDPOINT"), token)
    scope = ModelScopeSource(
        _checked(f"https://{domain}" if domain else MODELSCOPE_URL, "MODELSCOPE_DOMAIN"), secret
    )
    if wanted == "hf":
        return (hub,)
    if wanted == "modelscope":
        return (scope,)
    if wanted == "auto":
        # Nobody chose the mirror: it gets no token.
        mirrors = () if endpoint else (HuggingFaceSource(MIRROR_URL, lambda: None),)
        return (hub, *mirrors, scope)
    if wanted.startswith(_MODELSCOPE_PREFIX):
        url = _checked(wanted.removeprefix(_MODELSCOPE_PREFIX), "--source")
        return (ModelScopeSource(url, secret),)
    url = _checked(wanted, "--source")
    if httpx.URL(url).host.endswith(("modelscope.cn", "modelscope.ai")):
        return (ModelScopeSource(url, secret),)
    return (HuggingFaceSource(url, token),)


def _checked(text: str, setting: str) -> str:
    """An http(s) URL without its last slash. Raises ConfigError."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.userinfo:
        raise ConfigError(
            f"{setting} {text[:200]!r} is not the address of a hub",
            hint="permitted: auto, hf, modelscope, or a URL such as https://hf-mirror.com",
        )
    return text.rstrip("/")
