"""ModelScope.

    GET /api/v1/models/REPO/repo/files?Revision=R&Recursive=true   Path, Size, Sha256, Revision
    GET /api/v1/models/REPO/repo?Revision=R&FilePath=PATH          contents; ranges work

Revision is "master" where nobody says otherwise. The list names no commit of the repository, only
for each file the one that changed it last: contents are asked for at that one, so that they stay
what they were when they were listed, and the commit of the whole is made from the checksums.
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlencode

import httpx

from hearth.core.errors import GatedModelError, HearthError, ModelNotFoundError, RemoteError
from hearth.hub.digests import digest_or_none
from hearth.hub.listing import Listing, RemoteFile, check_path, check_size, check_unique
from hearth.hub.names import DEFAULT_REVISION, ModelName
from hearth.hub.transport import Transport, checked_token, explanation, may_carry_secrets

_DEFAULT_REVISION = "master"
_OK = 200
_NO_ACCESS = (401, 403)
_HIDDEN = (".gitignore", ".gitattributes")


class ModelScopeSource:
    """A hub at `endpoint`. `token`: MODELSCOPE_API_TOKEN's, or None."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint
        self.label = httpx.URL(endpoint).netloc.decode("ascii")
        self._token = token if token and may_carry_secrets(endpoint) else None

    def list_files(self, name: ModelName, transport: Transport) -> Listing:
        """See Source."""
        if name.revision in (None, DEFAULT_REVISION):
            revision = _DEFAULT_REVISION
        else:
            revision = str(name.revision)
        query = urlencode({"Revision": revision, "Recursive": "true"})
        url = f"{self.endpoint}/api/v1/models/{name.repo}/repo/files?{query}"
        # The site's own client sends the token as its session's cookie.
        token = checked_token(self._token, "MODELSCOPE_API_TOKEN")
        headers = {"Cookie": f"m_session_id={token}"} if token else {}
        response = transport.get(url, headers)
        body = _body(response)
        if not response.is_success or body.get("Code", _OK) != _OK:
            raise self.refusal(response, name.repo)
        data = body.get("Data")
        entries = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise RemoteError(f"{self.label} lists no files of {name}", hint="is it ModelScope?")
        files = tuple(
            self._file(entry, name.repo, revision)
            for entry in entries
            if not (isinstance(entry, dict) and entry.get("Type") == "tree")
        )
        files = tuple(file for file in files if file.path not in _HIDDEN)
        return Listing(
            self.label,
            name.repo,
            name.revision or DEFAULT_REVISION,
            _commit(files),
            check_unique(files, self.label),
            f"{self.endpoint}/models/{name.repo}",
            headers,
        )

    def refusal(self, response: httpx.Response, repo: str) -> HearthError:
        """See Source."""
        status, said = response.status_code, explanation(response)
        because = f": {said}" if said else ""
        page = f"{self.endpoint}/models/{repo}"
        if status in _NO_ACCESS:
            return GatedModelError(
                f"{self.label} does not give {repo} ({status}){because}",
                hint=f"ask for access at {page} and set MODELSCOPE_API_TOKEN to your access token",
                status=status,
            )
        if status in (404, _OK):  # an answer of its own with another code: not found, or similar
            return ModelNotFoundError(
                f"{self.label} knows no model {repo}, or not this revision{because}",
                hint=f"check the name at {page}",
            )
        return RemoteError(f"{self.label} answers {status} for {repo}{because}", status=status)

    def _file(self, entry: object, repo: str, revision: str) -> RemoteFile:
        if not isinstance(entry, dict):
            raise RemoteError(f"{self.label} lists something that is no file")
        path = check_path(entry.get("Path"), self.label)
        changed = entry.get("Revision")
        at = changed if isinstance(changed, str) and changed else revision
        query = urlencode({"Revision": at, "FilePath": path})
        return RemoteFile(
            path,
            check_size(entry.get("Size"), path, self.label),
            digest_or_none("sha256", entry.get("Sha256")),
            f"{self.endpoint}/api/v1/models/{repo}/repo?{query}",
        )


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _commit(files: tuple[RemoteFile, ...]) -> str:
    """A name for these contents, as long as a commit's and never one."""
    lines = sorted(f"{file.path}\0{file.num_bytes}\0{file.digest}\n" for file in files)
    return "ms-" + hashlib.sha256("".join(lines).encode()).hexdigest()[:37]
