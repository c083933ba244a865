"""Notices: what a request asked for and did not get, told in the response and in the log.

A notice concerns one request; it has a stable code, so that logs and clients can match on it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger("hearth.serve")

IGNORED_FIELD = "ignored_field"  # a known field of the API that is not applied yet
UNKNOWN_FIELD = "unknown_field"  # a field that no version of hearth knows
OVERRIDDEN_FIELD = "overridden_field"  # two fields contradict each other; the message says who won

TRUNCATED_PROMPT = "truncated_prompt"  # the request asked for it; the message says how much
IMAGE_READ = "image_read"  # not all of an image was taken, or it is not what it was said to be


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that the client should know; `param` is the field's path."""

    code: str
    param: str
    message: str

    def body(self) -> dict[str, str]:
        """As it stands in the response's `warnings`."""
        return {"code": self.code, "param": self.param, "message": self.message}


def log_notices(request_id: str, notices: Sequence[Notice]) -> None:
    """Writes one log line a notice."""
    for notice in notices:
        logger.warning(
            "%s request=%s param=%s: %s", notice.code, request_id, notice.param, notice.message
        )
