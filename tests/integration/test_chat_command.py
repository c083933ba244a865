"""`hearth chat` and `hearth complete` as they are used: in pipes, and at a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from tests.integration.server import ENDLESS_TOKENS, Server, environment, free_port


def hearth(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hearth.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment(),
    )


class Terminal:
    """A pseudo-terminal with a program on it, started as scripts do it: SIGINT ignored."""

    def __init__(self, *arguments: str) -> None:
        self.screen = ""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.execve(
                sys.executable, [sys.executable, "-m", "hearth.cli", *arguments], environment()
            )

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, after: int = 0, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.screen[after:]:
            assert time.monotonic() < deadline, f"{text!r} is not on the screen: {self.screen!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self._fd, 65536).decode("utf-8", "replace")
                except OSError:  # the program has ended
                    assert text in self.screen[after:], self.screen
                    return

    def enter(self, line: str, shows: str, prompt: str = "\r\n> ") -> None:
        """Types a line, or Ctrl-C, and waits for what it shows, and then for the next prompt."""
        seen = len(self.screen)
        self.type(line if line == "\x03" else f"{line}\r")
        self.wait_for(shows, seen)
        self.wait_for(prompt, self.screen.index(shows, seen))

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    found = Terminal(*arguments)
    try:
        yield found
    except BaseException:
        os.kill(found.pid, signal.SIGKILL)
        raise


def test_a_pipe_gets_the_answer_alone(server: Server) -> None:
    done = hearth("chat", "--base-url", server.url, "--temperature", "0", stdin="What is hearth?\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == server.ask("What is hearth?") + "\n"


def test_completions_come_from_the_prompt_or_stdin(server: Server) -> None:
    arguments = ["--base-url", server.url, "--temperature", "0", "--max-tokens", "6"]
    by_argument = hearth("complete", "hearth is", *arguments, "--echo")
    by_stdin = hearth("complete", *arguments, "--echo", stdin="hearth is")
    assert by_argument.stdout == by_stdin.stdout
    assert by_argument.stdout.startswith("hearth is")
    assert hearth("complete", *arguments).returncode == 2


def test_a_server_that_is_not_there_is_one_message() -> None:
    done = hearth("chat", "--base-url", f"http://127.0.0.1:{free_port()}", stdin="Hi")
    assert done.returncode == 7
    assert "cannot be reached" in done.stderr
    assert "what to do:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_is_served_for_the_chat_and_ended_with_it() -> None:
    from hearth.cli.settings import BUILT_IN_DIR

    before = {process.pid for process in psutil.process_iter()}
    done = hearth("chat", str(BUILT_IN_DIR), "--temperature", "0", stdin="What is hearth?")
    assert done.returncode == 0, done.stderr
    assert "hearth" in done.stdout
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in before and str(BUILT_IN_DIR) in (process.info["cmdline"] or [])
    ]
    assert left == []


def test_a_model_that_cannot_be_served_is_explained() -> None:
    done = hearth("chat", "/no/such/model", stdin="Hi")
    assert done.returncode == 7
    assert "there is no directory /no/such/model" in done.stderr


@pytest.mark.timeout(120)
def test_a_conversation_at_a_terminal_and_ctrl_c(endless_server: Server) -> None:
    with terminal("chat", "--base-url", endless_server.url) as screen:
        screen.wait_for("\r\n> ")
        screen.enter("/set temperature 0", "temperature is 0")
        screen.enter("/set max_tokens 8", "max_tokens is 8")
        screen.enter("What is \\", "\r\n. ", prompt="")
        screen.enter("hearth?", "hearth?\r\n")  # and then the prompt: the answer has ended
        screen.enter("/set ignore_eos true", "ignore_eos is true")
        screen.enter(f"/set max_tokens {ENDLESS_TOKENS}", f"max_tokens is {ENDLESS_TOKENS}")
        screen.enter("Count to ten thousand", "thousand\r\n", prompt="")
        while endless_server.health()["running"] == 0:
            time.sleep(0.02)
        screen.enter("\x03", "(stopped)")  # Ctrl-C: the answer stops, the program does not
        endless_server.wait_idle()
        screen.enter("/help", "/clear")
        screen.enter("\x03", "(/quit or Ctrl-D ends)")
        screen.type("/quit\r")
        assert screen.end() == 0
    assert "Traceback" not in screen.screen
