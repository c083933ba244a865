"""How a model is named: ORG/NAME, or ORG/NAME@REVISION.

The rules are those of huggingface.co for repository ids; "--" is forbidden there, so that
`ORG--NAME` is a directory name that can be read back.
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
_MAX_CHARS = 96
_MAX_REVISION_CHARS = 200


@dataclass(frozen=True, slots=True)
class ModelName:
    """`repo` is ORG/NAME, or NAME for the few models without an owner; `revision` as asked."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def directory(self) -> str:
        """ORG--NAME."""
        return self.repo.replace("/", "--")


def parse_name(text: str) -> ModelName:
    """Raises ConfigError with the rule that is broken."""
    repo, at, revision = text.partition("@")
    hint = "such as zai-org/AutoGLM-Phone-9B, or with a revision: ORG/NAME@main"
    if not is_repo(repo):
        raise ConfigError(
            f"{text[:_MAX_REVISION_CHARS]!r} is not a model's name (permitted: ORG/NAME of "
            f"letters, digits, '-', '_', '.'; up to {_MAX_CHARS} characters, no '--', no '..')",
            hint=hint,
        )
    if at and not _is_revision(revision):
        raise ConfigError(
            f"{revision[:_MAX_REVISION_CHARS]!r} is not a revision (permitted: a branch, a tag or "
            "a commit)",
            hint=hint,
        )
    return ModelName(repo, revision if at else None)


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


def _is_revision(text: str) -> bool:
    return (
        len(text) <= _MAX_REVISION_CHARS
        and ".." not in text
        and "//" not in text
        and not text.endswith(("/", ".lock"))
        and _REVISION.fullmatch(text) is not None
    )
