"""A child process that validates bodies of many small values, so that the event loop need not.

A thread would not do: parsing and validation hold the interpreter's lock from beginning to end.
The child is started when the first such body comes, and ends when its standard input does, that is
with the server. It answers one request after the other:

    request: schema's name and body        reply: the pickled model, or why it was refused
    frame:   8 bytes little-endian length, then so many bytes
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TypeVar, cast

from pydantic import BaseModel

from hearth.core.errors import EngineError
from hearth.serve.http.errors import BodyError, validated

Schema = TypeVar("Schema", bound=BaseModel)
_LENGTH_BYTES = 8
_MAX_EXTRA_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why a body was refused; the parts of a BodyError."""

    message: str
    hint: str | None
    param: str | None


class BodyWorker:
    """The parent's side; safe to share between requests, which wait for each other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hearth-body")
        self._process: subprocess.Popen[bytes] | None = None

    async def validate(self, raw: bytes | bytearray, schema: type[Schema]) -> Schema:
        """The validated body. Raises BodyError, or EngineError when the child died."""
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(self._thread, self._ask, raw, schema)
        if isinstance(reply, _Refused):
            raise BodyError(reply.message, hint=reply.hint, param=reply.param)
        return cast("Schema", reply)

    def close(self) -> None:
        """Ends the child. A body that comes later starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            atexit.unregister(self.close)

    def _ask(self, raw: bytes | bytearray, schema: type[BaseModel]) -> object:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin, f"{schema.__module__}:{schema.__qualname__}".encode())
            _write(process.stdin, raw)
            return pickle.loads(_read(process.stdout))  # noqa: S301 -- from our own child
        except (OSError, EOFError) as error:
            self.close()
            raise EngineError("the process that reads large bodies died", hint="retry") from error

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            atexit.register(self.close)
        return self._process


def main() -> None:
    """The child: answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            module, _, name = _read(source).decode().partition(":")
            raw = _read(source)
        except EOFError:
            return
        schema: type[BaseModel] = getattr(importlib.import_module(module), name)
        try:
            reply: object = _without_ballast(validated(raw, schema))
        except BodyError as error:
            reply = _Refused(error.message, error.hint, error.param)
        _write(target, pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))


def _without_ballast(model: BaseModel) -> BaseModel:
    """Of unknown fields only the names are told: large values need not be sent back."""
    extra = model.model_extra or {}
    for name, value in extra.items():
        if len(pickle.dumps(value)) > _MAX_EXTRA_BYTES:
            extra[name] = "a large value"
    return model


def _write(stream: IO[bytes], payload: bytes | bytearray) -> None:
    stream.write(len(payload).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(payload)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """One frame. Raises EOFError at the stream's end."""
    header = stream.read(_LENGTH_BYTES)
    size = int.from_bytes(header, "little")
    payload = stream.read(size) if len(header) == _LENGTH_BYTES else b""
    if len(header) != _LENGTH_BYTES or len(payload) != size:
        raise EOFError
    return payload


if __name__ == "__main__":
    # Under its own name, so that what it pickles can be read by the parent.
    importlib.import_module("hearth.serve.http.body_worker").main()
