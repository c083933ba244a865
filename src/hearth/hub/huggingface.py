"""Hugging Face's hub and its mirrors.

    GET /api/models/REPO/revision/REVISION?blobs=true   commit; files with size, blob id, LFS sha256
    GET /REPO/resolve/COMMIT/PATH                       contents; a redirect for large files

As `huggingface_hub` asks (HfApi.model_info with files_metadata, hf_hub_url). The library itself
is used for the user's token alone: since version 2 it throws away what a broken download has (each
process writes to a file of its own name) and it compares no checksums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from hearth.core.errors import (
    GatedModelError,
    HearthError,
    ModelNotFoundError,
    RemoteError,
)
from hearth.hub.digests import digest_or_none
from hearth.hub.listing import Listing, RemoteFile, check_path, check_size, check_unique
from hearth.hub.names import COMMIT, DEFAULT_REVISION, ModelName
from hearth.hub.transport import Transport, checked_token, explanation, may_carry_secrets

_NO_ACCESS = (401, 403)
_LOGIN = "log in (hf auth login) or set HF_TOKEN to a token of yours with read access"


class HuggingFaceSource:
    """A hub at `endpoint`. `token`: the user's, None where there is none."""

    def __init__(self, endpoint: str, token: Callable[[], str | None]) -> None:
        self.endpoint = endpoint
        self.label = httpx.URL(endpoint).netloc.decode("ascii")
        self._find_token = token
        self._token: str | None = None

    def list_files(self, name: ModelName, transport: Transport) -> Listing:
        """See Source."""
        self._token = checked_token(self._find_token(), "the token of Hugging Face (HF_TOKEN)")
        if self._token and not may_carry_secrets(self.endpoint):
            transport.note(f"the token is not sent to {self.endpoint}: it has no encryption")
            self._token = None
        revision = name.revision or DEFAULT_REVISION
        where = f"{self.endpoint}/api/models/{name.repo}/revision/{quote(revision, safe='')}"
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        response = transport.get(f"{where}?blobs=true", headers)
        if not response.is_success:
            raise self.refusal(response, name.repo)
        info = _object(response, self.label)
        commit = info.get("sha")
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise RemoteError(f"{self.label} gives no commit of {name}", hint="is it a hub?")
        siblings = info.get("siblings")
        if not isinstance(siblings, list):
            raise RemoteError(f"{self.label} lists no files of {name}", hint="is it a hub?")
        files = tuple(self._file(entry, name.repo, commit) for entry in siblings)
        return Listing(
            self.label,
            name.repo,
            revision,
            commit,
            check_unique(files, self.label),
            f"{self.endpoint}/{name.repo}",
            headers,
        )

    def refusal(self, response: httpx.Response, repo: str) -> HearthError:
        """See Source. The hub says 401 for what does not exist, too, to whom it does not know."""
        status, said = response.status_code, explanation(response)
        code = response.headers.get("X-Error-Code", "")
        page = f"{self.endpoint}/{repo}"
        because = f": {said}" if said else ""
        if code == "GatedRepo" or (status in _NO_ACCESS and "gated" in said.lower()):
            ask = "" if self._token is None else "this account was not given access; "
            return GatedModelError(
                f"{repo} is gated on {self.label} ({status}){because}",
                hint=f"{ask}ask for access at {page} and {_LOGIN}",
                status=status,
            )
        if code == "RevisionNotFound":
            return ModelNotFoundError(
                f"{repo} has no such revision on {self.label}{because}",
                hint=f"see its branches and tags at {page}/tree/main",
            )
        if status == 404 or code in ("RepoNotFound", "EntryNotFound"):
            return ModelNotFoundError(
                f"{self.label} knows no model {repo} ({status}){because}",
                hint=f"check the name; if the model is private, {_LOGIN}",
            )
        if status in _NO_ACCESS:
            whose = "with the token sent" if self._token else "without a token"
            return GatedModelError(
                f"{self.label} does not show {repo} {whose} ({status}){because}",
                hint=f"check the name; if the model is private or gated, see {page} and {_LOGIN}",
                status=status,
            )
        return RemoteError(f"{self.label} answers {status} for {repo}{because}", status=status)

    def _file(self, entry: object, repo: str, commit: str) -> RemoteFile:
        if not isinstance(entry, dict):
            raise RemoteError(f"{self.label} lists something that is no file")
        path = check_path(entry.get("rfilename"), self.label)
        lfs = entry.get("lfs")
        if isinstance(lfs, dict):
            digest = digest_or_none("sha256", lfs.get("sha256"))
            num_bytes = lfs.get("size", entry.get("size"))
        else:
            digest = digest_or_none("git-sha1", entry.get("blobId"))
            num_bytes = entry.get("size")
        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        return RemoteFile(path, check_size(num_bytes, path, self.label), digest, url)


def user_token() -> str | None:
    """The user's token: HF_TOKEN, or that of `hf auth login`, refreshed where it must be."""
    from huggingface_hub import get_token

    return get_token()


def _object(response: httpx.Response, label: str) -> dict[str, Any]:
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RemoteError(
            f"{label} answers with something that is not JSON",
            hint="is it a hub? A login page of the network answers like this, too",
        )
    return found
