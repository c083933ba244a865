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
_PUBLIC_NAMES = frozenset(
    ("root", "user", "localhost", "ubuntu", "debian", "admin", "vm", "host", "server", "")
)
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASS|PWD|CREDENTIAL|(?:^|_)KEYS?(?:_|$)|API_?KEY|ACCESS_?KEY|AUTH|COOKIE"
    r"|SIGNATURE",
    re.IGNORECASE,
)
# Variables that name a machine, with or without a scheme before it.
_PLACE_NAME = re.compile(r"(?:^|_)(?:HOST|ENDPOINT|PROXY|SERVER|ADDRESS|ADDR)S?(?:_|$)", re.ASCII)
_TOKENS = re.compile(
    r"\b(?:hf|gh[opsur]|github_pat|glpat|ms|sk|pk|rk|r8|npm|pypi|nvapi|xox[a-z])"
    r"[-_][A-Za-z0-9_-]{8,}"
    r"|\bA[KS]IA[A-Z0-9]{12,}"
    r"|\bAIza[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"
    r"|(?<=\bBearer )[^\s\"'<]{6,}",
    re.ASCII,
)
# A password may hold any character, so everything up to the last @ goes where a : stands before it.
_URL_LOGIN = re.compile(r"(?<=://)(?:[^/\s@]*:[^\s'\"]*|[^/\s@]+)@")
# key=value and "key": value of what is called a secret, in a query, a command line or JSON; and
# --key value. Counts of tokens are no secrets.
_SECRET_WORDS = (
    r"(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|credentials?|signature"
    r"|sig|auth|authorization)"
)
_SECRET_PAIR = re.compile(
    rf"(?<![A-Za-z0-9])((?:[\w-]*[_-])?{_SECRET_WORDS}[\"']?(?:=|:\s*(?=[\"'])|:(?=\S))[\"']?)"
    r"(?!<)[^\s\"'&;,]+",
    re.IGNORECASE | re.ASCII,
)
_SECRET_FLAG = re.compile(
    rf"(?<!\S)(--?(?:[\w-]*-)?{_SECRET_WORDS}\s+)(?!<)[^\s\"',]+", re.IGNORECASE | re.ASCII
)
_URL_HOST = re.compile(r"(?<=://)[^/\s:]+")
_MAC = re.compile(r"(?<![0-9A-Fa-f:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", re.ASCII)
_IPV6 = re.compile(
    r"(?<![0-9A-Fa-f:.])(?=[0-9A-Fa-f:]*::|(?:[0-9A-Fa-f]{1,4}:){7})"
    r"[0-9A-Fa-f:]{2,39}(?:%\w+)?(?![0-9A-Fa-f:])"
)
# Names of Windows may have spaces, where another part of the path follows.
_HOMES = re.compile(
    r"(/home/)([^/\\\s:'\"]+)"
    r"|(/Users/|\\Users\\)([^/\\\s:'\"]+(?: [^/\\\s:'\"]+)*(?=[/\\])|[^/\\\s:'\"]+)"
)
# Of a mount, alone or in a sentence: server:/export, //server/share.
_SERVER = re.compile(r"(?<!\S)(?:(?:[^/\s:]+|\[[^\]\s]+\])(?=:/(?!/))|(//)[^/\s]+)")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who and where this is. An empty text: not known. `others`: more names of users."""

    user: str
    home: str
    host: str
    others: tuple[str, ...] = ()


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
    text = _SECRET_FLAG.sub(r"\1<secret>", _SECRET_PAIR.sub(r"\1<secret>", text))
    if len(identity.home) > 1:
        text = re.sub(rf"{re.escape(identity.home.rstrip('/'))}(?![\w-])", "~", text)
    text = _HOMES.sub(lambda found: f"{found[1] or found[3]}<user>", text)
    text = _SERVER.sub(lambda found: f"{found[1] or ''}<server>", text)
    text = _MAC.sub("<mac>", text)
    text = _IPV6.sub("<ip>", _IPV4.sub("<ip>", text))
    names = [(name, "<user>") for name in (identity.user, *identity.others)]
    for name, mark in (*names, *_host_names(identity.host)):
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
            if _PLACE_NAME.search(name) and "://" not in found[name]:
                found[name] = "<host>"
    return found


def _host_names(host: str) -> tuple[tuple[str, str], ...]:
    """The name as it is, and without its domain; the longer one first."""
    short = host.partition(".")[0]
    return ((host, "<host>"), (short, "<host>")) if short != host else ((host, "<host>"),)
