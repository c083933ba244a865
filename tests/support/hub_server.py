"""A hub on this machine: Hugging Face's protocol and ModelScope's, and whatever may go wrong.

Two HTTP servers on two ports: the hub itself, and the host that large files are redirected to, as
huggingface.co does it. `tests/unit/hub/test_hub_server.py` lets `huggingface_hub` itself pull from
here, so that what is spoken is what the library expects.

Faults are queued by path and used up one a request; each is one of the `Fault` kinds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "test-org/toy-model"
LFS_SUFFIXES = (".safetensors", ".gguf", ".model", "tokenizer.json")
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What happens instead of a good answer.

    status: this status with these headers and this body; cut: so many bytes of the body, then the
    connection is closed; short, long: a body of another length, said to be right; corrupt: one bit
    is wrong; ignore_range: 200 with everything; slow: seconds between chunks; hold: after so many
    bytes nothing until the hub's `released` is set.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    short: int = 0
    long: int = 0
    corrupt: bool = False
    ignore_range: bool = False
    slow_s: float = 0.0
    hold: int | None = None


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    host: str  # hub, content
    method: str
    path: str
    headers: Mapping[str, str]


class FakeHub:
    """A context; `files` may be changed while it runs."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.commit = COMMIT
        self.token: str | None = None  # demanded for contents, where it is set
        self.gated = False
        self.extra_entries: list[dict[str, Any]] = []
        self.wrong_digests: dict[str, str] = {}
        self.without_digests = False
        self.seen: list[Seen] = []
        self.most_at_once = 0  # slow bodies
        self._num_writing = 0
        self._connections: set[socket.socket] = set()
        self.released = threading.Event()
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._servers: list[ThreadingHTTPServer] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for name in ("hub", "content"):
            server = _Server(("127.0.0.1", 0), _Handler)
            server.hub, server.name = self, name
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            self._servers.append(server)
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        for connection in tuple(self._connections):  # clients may keep them for later
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def content_url(self) -> str:
        # Another name, too: credentials must not follow there.
        return f"http://localhost:{self._servers[1].server_port}"

    def fail(self, path: str, *faults: Fault) -> None:
        """The next requests for a file's contents, or for "list", fail like this."""
        self._faults[path].extend(faults)

    def heal(self) -> None:
        """From now on every answer is good."""
        with self._lock:
            self._faults.clear()

    def next_fault(self, path: str) -> Fault:
        with self._lock:
            queue = self._faults[path]
            return queue.popleft() if queue else Fault()

    def connected(self, connection: socket.socket, *, is_open: bool) -> None:
        with self._lock:
            (self._connections.add if is_open else self._connections.discard)(connection)

    def writing(self, change: int) -> None:
        with self._lock:
            self._num_writing += change
            self.most_at_once = max(self.most_at_once, self._num_writing)

    def note(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)

    def requests(self, part: str, host: str = "content") -> list[Seen]:
        """GETs of this host whose path has this in it."""
        return [s for s in self.seen if s.host == host and s.method == "GET" and part in s.path]

    def ranges(self, path: str) -> list[str]:
        """The Range headers of the GETs of a file's contents, in order; empty: none."""
        wanted = sha256(self.files[path]) if is_lfs(path) else path
        host = "content" if is_lfs(path) else "hub"
        found = self.requests(wanted, host)
        return [s.headers.get("range", "") for s in found if "/api/models" not in s.path]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    hub: FakeHub
    name: str

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.hub.connected(self.connection, is_open=True)

    def finish(self) -> None:
        self.server.hub.connected(self.connection, is_open=False)
        super().finish()

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        hub = self.server.hub
        headers = {k.lower(): v for k, v in self.headers.items()}
        hub.note(Seen(self.server.name, self.command, self.path, headers))
        parts = urlsplit(self.path)
        if self.server.name == "content":
            return self._content(unquote(parts.path).removeprefix("/lfs/"))
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", parts.path):
            return self._info(match[1], unquote(match[2] or "main"))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
            return self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", parts.path):
            return self._scope_list(match[1], query)
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", parts.path):
            return self._send_file(query["FilePath"], {})
        return self._refuse(404, "EntryNotFound", "no such path")

    def _info(self, repo: str, revision: str) -> None:
        hub = self.server.hub
        fault = hub.next_fault("list")
        if fault.status:
            return self._send(fault.status, fault.body, fault.headers)
        if repo != REPO:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if revision not in ("main", "v1", hub.commit):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [self._sibling(path, data) for path, data in hub.files.items()]
        body = {"id": repo, "sha": hub.commit, "siblings": siblings + hub.extra_entries}
        return self._json(200, body)

    def _sibling(self, path: str, data: bytes) -> dict[str, Any]:
        hub = self.server.hub
        entry: dict[str, Any] = {"rfilename": path, "size": len(data)}
        if hub.without_digests:
            return entry
        entry["blobId"] = git_sha1(b"pointer" + data) if is_lfs(path) else git_sha1(data)
        if is_lfs(path):
            digest = hub.wrong_digests.get(path, sha256(data))
            entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        elif path in hub.wrong_digests:
            entry["blobId"] = hub.wrong_digests[path]
        return entry

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        hub = self.server.hub
        if repo != REPO or path not in hub.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            status = 403 if self.headers.get("Authorization") else 401
            return self._refuse(status, "GatedRepo", f"Access to model {repo} is restricted.")
        data = hub.files[path]
        common = {"X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
        if is_lfs(path):
            linked = {
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{sha256(data)}"',
                "Location": f"{hub.content_url}/lfs/{sha256(data)}",
            }
            return self._send(302, b"", {**common, **linked})
        return self._send_file(path, {**common, "ETag": f'"{git_sha1(data)}"'})

    def _content(self, digest: str) -> None:
        path = next((p for p, d in self.server.hub.files.items() if sha256(d) == digest), None)
        if path is None:
            return self._send(404, b"", {})
        return self._send_file(path, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _scope_list(self, repo: str, query: Mapping[str, str]) -> None:
        hub = self.server.hub
        fault = hub.next_fault("list")
        if fault.status:
            return self._send(fault.status, fault.body, fault.headers)
        if repo != REPO or query["Revision"] not in ("master", "v1"):
            body = {"Code": 10010205001, "Message": "record not found", "Success": False}
            return self._json(404, body)
        files: list[dict[str, Any]] = [{"Path": "sub", "Name": "sub", "Type": "tree", "Size": 0}]
        for path, data in hub.files.items():
            files.append(
                {
                    "Name": path.rpartition("/")[2],
                    "Path": path,
                    "Type": "blob",
                    "IsLFS": is_lfs(path),
                    "Size": len(data),
                    "Sha256": hub.wrong_digests.get(path, sha256(data)),
                    "Revision": hub.commit,
                }
            )
        return self._json(200, {"Code": 200, "Success": True, "Data": {"Files": files}})

    def _send_file(self, path: str, headers: dict[str, str]) -> None:
        hub = self.server.hub
        data = hub.files[path]
        if self.command == "HEAD":
            return self._send(200, data, headers)
        fault = hub.next_fault(path)
        if fault.status:
            return self._send(fault.status, fault.body, fault.headers)
        if fault.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        status, begin = 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        end = len(data)
        if asked and not fault.ignore_range:
            begin = int(asked[1])
            if begin >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status = 206
            if asked[2]:
                end = min(end, int(asked[2]) + 1)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        body = data[begin:end]
        body = body[: len(body) - fault.short] + b"x" * fault.long
        return self._send(status, body, headers, fault)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = len(body) if fault.cut is None else min(fault.cut, len(body))
        stop = limit if fault.hold is None else min(fault.hold, limit)
        self._write(body[:stop], fault.slow_s)
        if stop < limit:
            self.server.hub.released.wait(20)
            self._write(body[stop:limit], fault.slow_s)
        if fault.cut is not None:
            self.close_connection = True

    def _write(self, data: bytes, slow_s: float) -> None:
        for begin in range(0, len(data), _CHUNK):
            if slow_s:
                self.server.hub.writing(1)
                time.sleep(slow_s)
                self.server.hub.writing(-1)
            self.wfile.write(data[begin : begin + _CHUNK])
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), headers)
