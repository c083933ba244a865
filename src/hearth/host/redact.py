"""Takes out of texts what tells who and where: names, paths, addresses, tokens.

For what leaves the machine in a support archive. It works on the values of data, not on its
encoded form, where escapes could hide a name. What it cannot know (a project's name in a path
outside of a home directory) it cannot take out: the archive's reader is told so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Names of every system; taking them out would make the archive unreadable and hide nothing.
_PUBLIC_NAMES = frozenset(("root", "user", "localhost", "ubuntu", "debian", "admin", ""))
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|AUTH", re.IGNORECASE
)
_TOKENS = re.compile(
    r"\b(?:hf|ghp|gho|github_pat|glpat|ms|sk|pk|xox[abp])[-_][A-Za-z0-9_-]{8,}"
    r"|\bAKIA[A-Z0-9]{12,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_URL_HOST = re.compile(r"(?<=://)[^/\s:]+")
_MAC = re.compile(r"(?<![0-9A-Fa-f:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", re.ASCII)
_IPV6 = re.compile(
    r"(?<![0-9A-Fa-f:.])(?=[0-9A-Fa-f:]*::|(?:[0-9A-Fa-f]{1,4}:){7})"
    r"[0-9A-Fa-f:]{2,39}(?:%\w+)?(?![0-9A-Fa-f:])"
)
_HOMES = re.compile(r"(/home/|/Users/|\\Users\\)([^/\\\s:'\"]+)")
# Of a mount: server:/export, //server/share.
_SERVER = re.compile(r"^(?:[^/\s:]+|\[[^\]]+\])(?=:/(?!/))|(?<=^//)[^/\s]+")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who and where this is. An empty text: not known."""

    user: str
    home: str
    host: str


def redact(value: Any, identity: Identity) -> Any:
    """Plain data (dicts, lists, texts, numbers) with every text redacted; keys stay."""
    if isinstance(value, str):
        return redact_text(value, identity)
    if isinstance(value, Mapping):
        return {key: redact(item, identity) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, identity) for item in value]
    return value


def redact_text(text: str, identity: Identity) -> str:
    """One text. Versions of four numbers that look like an address go, too."""
    text = _TOKENS.sub("<token>", text)
    text = _URL_LOGIN.sub("<login>@", text)
    if len(identity.home) > 1:
        text = re.sub(rf"{re.escape(identity.home.rstrip('/'))}(?![\w-])", "~", text)
    text = _HOMES.sub(r"\1<user>", text)
    text = _SERVER.sub("<server>", text)
    text = _MAC.sub("<mac>", text)
    text = _IPV6.sub("<ip>", _IPV4.sub("<ip>", text))
    for name, mark in ((identity.user, "<user>"), *_host_names(identity.host)):
        if name.lower() not in _PUBLIC_NAMES:
            text = re.sub(
                rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])",
                mark,
                text,
                flags=re.IGNORECASE,
            )
    return text


def redact_environment(environment: Mapping[str, str], identity: Identity) -> dict[str, str]:
    """Variables that concern hearth and its libraries, by name; secrets by their name are gone."""
    wanted = ("HEARTH_", "HF_", "CUDA_", "NVIDIA_", "OMP_", "OPENBLAS_", "CONDA_", "XDG_CACHE_HOME")
    found: dict[str, str] = {}
    for name in sorted(environment):
        if not name.startswith(wanted):
            continue
        if _SECRET_NAME.search(name):
            found[name] = "<secret>"
        else:
            found[name] = _URL_HOST.sub("<host>", redact_text(environment[name], identity))
    return found


def _host_names(host: str) -> tuple[tuple[str, str], ...]:
    """The name as it is, and without its domain; the longer one first."""
    short = host.partition(".")[0]
    return ((host, "<host>"), (short, "<host>")) if short != host else ((host, "<host>"),)
