"""How a model is named: ORG/NAME[:TAG][@REVISION].

The rules are those of huggingface.co for repository ids; "--" is forbidden there, so that
`ORG--NAME` is a directory name that can be read back. A tag names a GGUF file among others, by its
quantization or its own name (hub/gguf_files); neither a repository's id nor a revision has a ":".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hearth.core.errors import ConfigError

DEFAULT_REVISION = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
# With "+": a converted model, such as main+int4-g128 (hub/converting).
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_MAX_CHARS = 96
_MAX_REVISION_CHARS = 200
_HINT = (
    "such as zai-org/AutoGLM-Phone-9B, with a revision: ORG/NAME@main, with the quantization of a "
    "GGUF file: ORG/NAME:Q4_K_M"
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """`repo` is ORG/NAME, or NAME for the few models without an owner; the others as asked."""

    repo: str
    revision: str | None = None
    tag: str | None = None

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repo}{tag}{revision}"

    @property
    def directory(self) -> str:
        """ORG--NAME."""
        return self.repo.replace("/", "--")


def parse_name(text: str) -> ModelName:
    """Raises ConfigError with the rule that is broken."""
    named, at, revision = text.partition("@")
    repo, colon, tag = named.partition(":")
    if not is_repo(repo):
        raise ConfigError(
            f"{text[:_MAX_REVISION_CHARS]!r} is not a model's name (permitted: ORG/NAME of "
            f"letters, digits, '-', '_', '.'; up to {_MAX_CHARS} characters, no '--', no '..')",
            hint=_HINT,
        )
    if colon and not _is_tag(tag):
        raise ConfigError(
            f"{tag[:_MAX_REVISION_CHARS]!r} is not the tag of a GGUF file (permitted: its "
            "quantization, or its name)",
            hint=_HINT,
        )
    if at and not _is_revision(revision):
        raise ConfigError(
            f"{revision[:_MAX_REVISION_CHARS]!r} is not a revision (permitted: a branch, a tag or "
            "a commit)",
            hint=_HINT,
        )
    return ModelName(repo, revision if at else None, tag if colon else None)


def is_name(text: str) -> bool:
    """Whether this may be a model's name; its revision was not looked at."""
    repo, colon, tag = text.partition("@")[0].partition(":")
    return is_repo(repo) and (not colon or _is_tag(tag))


def is_repo(text: str) -> bool:
    """Whether this may be a repository's id."""
    parts = text.split("/")
    return (
        1 <= len(parts) <= 2
        and len(text) <= _MAX_CHARS
        and "--" not in text
        and ".." not in text
        and all(_PART.fullmatch(part) for part in parts)
    )


def _is_tag(text: str) -> bool:
    return (
        len(text) <= _MAX_REVISION_CHARS
        and ".." not in text
        and "//" not in text
        and not text.endswith("/")
        and _TAG.fullmatch(text) is not None
    )


def _is_revision(text: str) -> bool:
    return (
        len(text) <= _MAX_REVISION_CHARS
        and ".." not in text
        and "//" not in text
        and not text.endswith(("/", ".lock"))
        and _REVISION.fullmatch(text) is not None
    )
