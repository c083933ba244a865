"""hearth over its public interface: `hearth serve` in processes of its own, asked over HTTP.

Prompts go as token ids to /v1/completions, answers come as server-sent events; so HTTP, JSON and
this client take their share of the two cores, which no other engine here has to pay for. A text
event is a token; where a token gave no text of its own (part of a character), the moments of the
others are spread over all of them, and the number of tokens is the server's own count.

`options`: {"flags": [flags of hearth serve], "cache_dir": where packed weights are kept}.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.serving import Seen, follow
from protocol import serve  # type: ignore[import-not-found]  # it stands beside this script

from hearth.client.streaming import StreamPool
from hearth.client.wire import Target

START_TIMEOUT_S = 300.0
POLL_S = 0.002


class Hearth:
    """A running server; the first run waits for it."""

    def __init__(self, message: dict[str, Any]) -> None:
        options = message["options"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        command = [
            *(sys.executable, "-m", "hearth.cli", "serve", message["model"]),
            *("--port", str(self._port), "--threads", str(message["threads"])),
            *("--max-model-len", str(message["max_len"])),
            *("--max-num-seqs", str(message["max_streams"])),
            *("--weight-cache-dir", options["cache_dir"], "--no-enable-prefix-caching"),
            *("--speculative", "off"),
            *options["flags"],
        ]
        self._log = tempfile.NamedTemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (kept)
        self._spawned = time.time()
        self._command = command
        self._cache = Path(options["cache_dir"])
        self.spawned_at = time.monotonic()
        self._popen = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self.pid = self._popen.pid
        self._loop = asyncio.new_event_loop()
        self._pool: StreamPool | None = None

    def facts(self) -> dict[str, Any]:
        return {"command": self._command[2:], "kv": "bfloat16"}

    def _connected(self) -> StreamPool:
        if self._pool is None:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not self._is_listening():
                if self._popen.poll() is not None or time.monotonic() > deadline:
                    log = Path(self._log.name).read_text(encoding="utf-8")
                    raise OSError(f"hearth did not start:\n{log}")
                time.sleep(POLL_S)
            self._pool = StreamPool(Target(f"http://127.0.0.1:{self._port}"))
        return self._pool

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        seen = self._loop.run_until_complete(self._all(self._connected(), prompts, num_new))
        for one in seen:
            if one.error or one.num_tokens != num_new:
                raise OSError(one.error or f"{one.num_tokens} tokens instead of {num_new}")
        return [_of_each_token(one.times, num_new) for one in seen]

    async def _all(self, pool: StreamPool, prompts: list[list[int]], num_new: int) -> list[Seen]:
        how = {"max_tokens": num_new, "temperature": 0, "ignore_eos": True}
        asked = (follow(pool, {"prompt": prompt, **how}) for prompt in prompts)
        return list(await asyncio.gather(*asked))

    def settle(self) -> None:
        """Waits for the packed weights, which are written behind the first answers.

        Those of another version may lie there already: the banner says whether they were mapped.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_settled():
            if time.monotonic() > deadline:
                raise OSError(f"hearth keeps no packed weights in {self._cache}")
            time.sleep(0.1)

    def _is_settled(self) -> bool:
        banner = re.search(r"weight cache: (\w+)", Path(self._log.name).read_text(encoding="utf-8"))
        if banner is None or banner[1] == "mapped":
            return banner is not None
        files = self._cache.glob("**/*.packed")
        return any(file.stat().st_mtime >= self._spawned for file in files)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._popen.send_signal(signal.SIGINT)
        try:
            self._popen.wait(30)
        except subprocess.TimeoutExpired:
            self._popen.kill()


def _of_each_token(times: list[float], num_tokens: int) -> list[float]:
    if not times:
        raise OSError("a stream brought no text")
    return [times[i * len(times) // num_tokens] for i in range(num_tokens)]


if __name__ == "__main__":
    serve(Hearth)
