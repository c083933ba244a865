"""`hearth demo phone`: watch a model use a simulated phone.

Draws the phone's screens, sends them to a server as a phone agent does, carries out what comes
back, and shows every step; with --out the screenshots are kept, with the taps marked in them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearth.cli import connection as to
from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.errors import ConfigError

if TYPE_CHECKING:
    from hearth.demo_phone.agent import AgentClient
    from hearth.demo_phone.session import Device, SeenStep
    from hearth.demo_phone.tasks import Task

FAILED = 1
MIN_SIDE, MAX_SIDE = 200, 4000
TERMINAL_COLUMNS = 36
_PREFIX = "DEMO_"

Scene = Annotated[
    Literal["phone"],
    typer.Argument(metavar="SCENE", help="What to show; there is one scene: phone."),
]
TaskText = Annotated[
    str | None,
    option(
        "--task",
        "What the phone is asked to do, such as 'Turn on Wi-Fi'. Default: a random task.",
        metavar="TEXT",
        prefix=_PREFIX,
        show_default=False,
    ),
]
Lang = Annotated[
    Literal["en", "zh"], option("--lang", "The phone's language, and the task's.", prefix=_PREFIX)
]
Resolution = Annotated[
    str, option("--resolution", "The screen's size.", metavar="WIDTHxHEIGHT", prefix=_PREFIX)
]
Seed = Annotated[
    int | None,
    option(
        "--seed",
        "Which phone: its colours, its icons' places, its start. Default: another one each time.",
        prefix=_PREFIX,
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    option(
        "--out",
        "Write numbered screenshots there, with the taps marked.",
        metavar="DIR",
        prefix=_PREFIX,
        show_default=False,
    ),
]
Live = Annotated[bool, option("--live", "Draw every screen in the terminal.", prefix=_PREFIX)]


def demo(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    scene: Scene = "phone",  # noqa: ARG001 -- the only one; here so that others can come
    task: TaskText = None,
    lang: Lang = "en",
    resolution: Resolution = "1080x2400",
    seed: Seed = None,
    out: Out = None,
    live: Live = False,
    base_url: to.OptionalBaseUrl = None,
    model_name: to.ServedName = None,
    api_key: to.ApiKey = None,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Watch a model use a simulated phone through the server, step by step."""
    from hearth.cli.own_server import connect
    from hearth.client.blocking import BlockingClient
    from hearth.demo_phone.agent import AgentClient

    _require_pillow()
    scenery = _scenery(task, lang, _size(resolution), seed)
    folder = _folder(out)
    with connect(base_url, api_key, None) as target:
        with BlockingClient(target) as client:
            name = model_name or to.first_name(client)
        with AgentClient(target, name) as agent:
            is_done = _watch(agent, scenery, _Shown(folder, live))
    if not is_done:
        raise typer.Exit(FAILED)


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401 -- asked for here, so that its absence is one clear message
    except ImportError as error:
        raise ConfigError(
            "the simulated phone needs Pillow to draw its screens",
            hint="pip install pillow",
        ) from error


def _size(text: str) -> tuple[int, int]:
    """Width and height. Raises ConfigError."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) == 2 and all(one.isascii() and one.isdigit() for one in parts):
        width, height = (int(one) for one in parts)
        if all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height)) and width < height:
            return width, height
    raise ConfigError(
        f"--resolution {text!r} is not a portrait screen "
        f"(permitted: WIDTHxHEIGHT, each {MIN_SIDE} to {MAX_SIDE}, the height larger)",
        hint="such as --resolution 1080x2400",
    )


@dataclass(frozen=True, slots=True)
class _Scenery:
    """A task, its wording, and a phone on which it is still to be done."""

    task: Task
    wording: str
    device: Device


def _scenery(
    text: str | None, language: Literal["en", "zh"], size: tuple[int, int], seed: int | None
) -> _Scenery:
    """The scenery of a seed. Raises ConfigError for a text that is no task."""
    import random

    from hearth.demo_phone.look import random_look
    from hearth.demo_phone.session import Device
    from hearth.demo_phone.tasks import random_task, read_task, starting_state, wordings

    number = random.SystemRandom().randrange(1 << 20) if seed is None else seed
    rng = random.Random(number)
    task = random_task(rng) if text is None else read_task(text, language)
    state = starting_state(task, language, rng)
    look = random_look(rng, *size)
    print(f"phone: {size[0]}×{size[1]}, --lang {language}, --seed {number}")
    wording = text or wordings(task, language)[0]
    print(f"task: {wording}", flush=True)
    return _Scenery(task, wording, Device(state, look, *size))


def _folder(out: Path | None) -> Path | None:
    if out is None:
        return None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be used: {error.strerror}") from error
    return out


class _Shown:
    """Where steps are shown: always a line, a picture in a folder, a drawing in the terminal."""

    def __init__(self, folder: Path | None, is_live: bool) -> None:
        self._folder = folder
        self._is_live = is_live

    def show(self, seen: SeenStep) -> None:
        """One step."""
        from hearth.demo_phone.show import half_blocks, marked

        step = seen.step
        picture = marked(seen.screenshot, step.action)
        if self._is_live:
            print(half_blocks(picture, TERMINAL_COLUMNS))
        thought = step.thinking
        for tag in ("<think>", "</think>", "<answer>"):
            thought = thought.replace(tag, "")
        print(f"{seen.number + 1}. {thought}")
        aim = f"  → {seen.hit}" if seen.hit else ""
        print(f"   {step.action}{aim}", flush=True)
        if step.error:
            print(f"   {step.error}", file=sys.stderr, flush=True)
        if self._folder is not None:
            path = self._folder / f"{seen.number + 1:02d}.png"
            picture.save(path)


def _watch(agent: AgentClient, scenery: _Scenery, shown: _Shown) -> bool:
    """Runs the task; says at the end whether it is done, and returns it. Raises RemoteError."""
    from hearth.demo_phone.session import is_success, run_task

    steps = []
    device = scenery.device

    def answer(messages: list[dict[str, Any]]) -> str:
        return "".join(agent.reply(messages))

    for seen in run_task(device, scenery.wording, answer):
        shown.show(seen)
        steps.append(seen)
    is_done = is_success(scenery.task, device.state, steps)
    print("the task is done" if is_done else "the task is not done")
    return is_done
