"""The start banner: what was chosen and why, where the time went, and a line that works.

On a terminal in colours; elsewhere plain text, so that a log stays readable.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hearth import __version__
from hearth.cli.clock import StartupClock
from hearth.cli.settings import ServeSettings
from hearth.core.config import Choice
from hearth.serve.listen import is_loopback, url_of
from hearth.serve.model import NO_TEMPLATE, ServedModel
from hearth.serve.sampling import sampling_choice

if TYPE_CHECKING:
    from hearth.engine.messages import Ready

EXAMPLE = "What is hearth?"


@dataclass(frozen=True, slots=True)
class _Row:
    """A value, and why it is that."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Banner:
    """What the banner is made of."""

    settings: ServeSettings
    port: int
    model: ServedModel
    ready: Ready
    clock: StartupClock

    @property
    def url(self) -> str:
        """The server's address for a client on this machine."""
        return url_of(self.settings.host, self.port)

    def choices(self) -> list[Choice]:
        """Every automatic value with its reason."""
        engine = self.settings.engine
        executor = self.ready.executor
        caching = engine.cache.enable_prefix_caching
        own = [
            Choice("running on", f"{executor.name}: {executor.detail}", executor.reason),
            Choice(
                "prefix caching",
                "on" if caching else "off",
                f"blocks of {engine.cache.block_size} tokens"
                if caching
                else "--no-enable-prefix-caching",
            ),
            sampling_choice(self.model.defaults),
            *self._images(),
        ]
        resolved = [c for c in self.ready.resolved.choices if c.name != "executor"]
        return [own[0], *resolved, *own[1:]]

    def _images(self) -> list[Choice]:
        """How many images a request may have, and how large they become."""
        info = self.model.images
        if info is None:
            return []
        spec = info.processor
        most = min(spec.max_patches, info.max_patches) // spec.merge_size**2
        counted = f", in {spec.frames} frames" if spec.frames > 1 else ""
        return [
            Choice(
                "images",
                f"{self.settings.media.limit_images} a request, {most:,} tokens each at most",
                f"--limit-images; {spec.min_pixels:,} to {spec.max_pixels:,} pixels{counted}",
            )
        ]

    def warnings(self) -> list[str]:
        """What the user should know before relying on this server."""
        found = [*self.settings.warnings, *self.ready.resolved.warnings]
        if self.model.text.template is None:
            found.append(NO_TEMPLATE)
        if not is_loopback(self.settings.host):
            found.append(
                f"--host {self.settings.host}: everyone who reaches this address may use the "
                "model; there is no authentication yet"
            )
        return found


def curl_line(url: str, model_name: str, *, chats: bool = True) -> str:
    """A command that can be copied to a shell and answers: a chat, or else a completion."""
    body: dict[str, object] = {"model": model_name}
    if chats:
        body["messages"] = [{"role": "user", "content": EXAMPLE}]
    else:
        body |= {"prompt": EXAMPLE, "max_tokens": 32}
    address = f"{url}/v1/{'chat/' if chats else ''}completions"
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {address} -H 'Content-Type: application/json' -d {data}"


class _Stdout(Console):
    """A console that outlives its reader: `hearth serve | head -1` goes on serving."""

    def on_broken_pipe(self) -> None:
        """Rich's own ends the process here; what is still to come goes nowhere."""
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def print_banner(banner: Banner, console: Console | None = None) -> None:
    """Prints it to stdout."""
    console = console or _Stdout(highlight=False, soft_wrap=True)
    resolved = banner.ready.resolved
    names = ", ".join(banner.model.names)
    title = Text(f"hearth {__version__}", style="bold")
    title.append(f" serves {names} ({resolved.architecture}) at ", style="not bold")
    title.append(banner.url, style="bold cyan")
    console.print(title)
    _print_rows(console, [*_choice_rows(banner), *_memory_rows(banner)])
    for warning in banner.warnings():
        console.print(Text(f"  warning: {warning}", style="yellow"))
    console.print(Text(f"  {_timing_line(banner)}", style="dim"))
    console.print(f"  API documentation: {banner.url}/docs")
    console.print("  Try it:\n", style="bold")
    chats = banner.model.text.template is not None
    console.print(Text(curl_line(banner.url, banner.model.names[0], chats=chats)))
    console.print()
    console.file.flush()


def _choice_rows(banner: Banner) -> list[_Row]:
    return [_Row(choice.name, choice.value, choice.reason) for choice in banner.choices()]


def _memory_rows(banner: Banner) -> list[_Row]:
    """The memory plan's lines, `name: size = arithmetic`.

    The KV cache stands among the choices already, with the reason for its size.
    """
    rows: list[_Row] = []
    for line in banner.ready.memory:
        name, _, rest = line.partition(": ")
        size, _, arithmetic = rest.partition(" = ")
        if name != "KV cache":
            rows.append(_Row(name, size, arithmetic))
    return rows


def _print_rows(console: Console, rows: Iterable[_Row]) -> None:
    """A grid on a terminal, whose last column wraps; lines elsewhere."""
    if not console.is_terminal:
        for row in rows:
            reason = f" ({row.reason})" if row.reason else ""
            console.print(Text(f"  {row.name}: {row.value}{reason}"))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(style="green")
    grid.add_column(style="dim")
    for row in rows:
        grid.add_row(Text(f"  {row.name}"), Text(row.value), Text(row.reason))
    console.print(grid, soft_wrap=False)


def _timing_line(banner: Banner) -> str:
    """`ready in 0.93 s: python 0.12 + … (engine: …)`."""
    own = _sum_of(banner.clock.phases_s)
    engine = _sum_of(banner.ready.timings_s)
    return f"ready in {banner.clock.total_s:.2f} s = {own}; the engine meanwhile: {engine}"


def _sum_of(phases_s: Mapping[str, float]) -> str:
    return " + ".join(f"{name} {seconds:.2f}" for name, seconds in phases_s.items())
