"""Measures the phone agent on held-out screens: `python -m tools.demo_model.phone_evaluate`.

Runs tasks on simulated phones whose seeds and resolutions training never draws, greedily, against
an exported directory through transformers or, with `--base-url http://127.0.0.1:8000/v1`, against
a server through HTTP. Reports two numbers: steps, each asked with the history of a perfect agent
(a tap is right inside its target's box), and whole tasks, each from its start to `finish`.
"""

import argparse
import base64
import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.demo_model.phone_steps import FIRST_HELD_OUT_SEED, Episode, copied, draw_episode

from hearth.client.wire import Target
from hearth.demo_phone.actions import Action, Finish, Tap
from hearth.demo_phone.agent import AgentClient, Conversation
from hearth.demo_phone.expert import Decision, Expert
from hearth.demo_phone.layout import element_at, layout
from hearth.demo_phone.messages import reply_text, screen_info
from hearth.demo_phone.parser import ReplyError, parse_action, split_reply
from hearth.demo_phone.session import Answerer, Device, is_success, png_of, run_task

DEFAULT_DIRECTORY = Path("src/hearth/demo_model")
MAX_ANSWER_TOKENS = 64


def transformers_answerer(directory: Path, dtype: str) -> Answerer:
    """Greedy replies of an exported directory: its own template, processor and weights."""
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, Glm4vForConditionalGeneration
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    processor: Any = Glm4vImageProcessorPil.from_pretrained(directory)
    model: Any = Glm4vForConditionalGeneration.from_pretrained(
        directory, dtype=getattr(torch, dtype)
    )
    model.eval()
    image_id = model.config.image_token_id

    def answer(messages: list[dict[str, Any]]) -> str:
        url = messages[-1]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        seen = processor(images=[picture], return_tensors="pt")
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        num_cells = int(seen["image_grid_thw"].prod()) // 4
        text = text.replace("<|image|>", "<|image|>" * num_cells)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        output = model.generate(
            input_ids=ids,
            pixel_values=seen["pixel_values"],
            image_grid_thw=seen["image_grid_thw"],
            mm_token_type_ids=(ids == image_id).int(),
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
        )
        return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))

    return answer


def http_answerer(base_url: str, model: str) -> Answerer:
    """Replies of a server, asked as the agent's client asks."""
    from hearth.client.blocking import BlockingClient

    target = Target(base_url)
    with BlockingClient(target) as client:
        name = model or client.model_names()[0]
    agent = AgentClient(target, name)
    return lambda messages: "".join(agent.reply(messages))


def held_out_episodes(first: int, count: int) -> Iterator[Episode]:
    """Episodes that training cannot draw."""
    for number in range(first, first + count):
        rng = random.Random(FIRST_HELD_OUT_SEED + number)
        yield draw_episode(rng, is_held_out=True)


@dataclass(slots=True)
class Tally:
    """Right and asked, by groups."""

    right: Counter[str]
    asked: Counter[str]

    def add(self, groups: tuple[str, ...], is_right: bool) -> None:
        """One more."""
        self.asked.update(groups)
        if is_right:
            self.right.update(groups)

    def show(self, title: str) -> None:
        """Prints the shares."""
        print(title)
        for group in sorted(self.asked):
            right, asked = self.right[group], self.asked[group]
            print(f"  {group:16} {right:4d} of {asked:4d} = {right / asked:6.1%}", flush=True)


def new_tally() -> Tally:
    """An empty one."""
    return Tally(Counter(), Counter())


def is_same(decision: Decision, action: Action, device: Device) -> bool:
    """Whether the action does what the expert's does."""
    wanted = decision.action
    if isinstance(wanted, Tap) and isinstance(action, Tap):
        element = element_at(layout(device.state, device.look), action.at)
        return element is not None and element.key == decision.target
    if isinstance(wanted, Finish):
        return isinstance(action, Finish)
    return action == wanted


def measure_steps(answer: Answerer, episodes: Iterator[Episode], *, is_verbose: bool) -> Tally:
    """Every step of the episodes, each on its own."""
    tally = new_tally()
    for episode in episodes:
        device = Device(episode.state, episode.look, episode.width, episode.height)
        expert = Expert(episode.task, episode.look)
        conversation = Conversation(episode.wording, episode.language)
        while True:
            state = device.state
            decision = expert.decide(state)
            info = screen_info(state.app, state.language)
            content = answer(conversation.messages(info, png_of(device.screenshot())))
            kind = type(decision.action).__name__
            is_right = _is_right(content, decision, device)
            tally.add(("all", kind, f"{kind} {episode.language}"), is_right)
            if is_verbose and not is_right:
                print(f"wrong step [{episode.wording}] {content!r}, not {decision.action}")
            conversation.replied(info, reply_text(decision.thought, str(decision.action)))
            device.perform(decision.action)
            if isinstance(decision.action, Finish):
                break
    return tally


def _is_right(content: str, decision: Decision, device: Device) -> bool:
    try:
        return is_same(decision, parse_action(split_reply(content).action), device)
    except ReplyError:
        return False


def measure_tasks(answer: Answerer, episodes: Iterator[Episode], *, is_verbose: bool) -> Tally:
    """Whole tasks."""
    tally = new_tally()
    for episode in episodes:
        state = copied(episode.state)
        device = Device(state, episode.look, episode.width, episode.height)
        steps = list(run_task(device, episode.wording, answer))
        is_right = is_success(episode.task, state, steps)
        tally.add(("all", episode.task.kind, episode.language), is_right)
        if is_verbose and not is_right:
            done = [f"{one.step.action}→{one.hit}" for one in steps]
            print(f"failed [{episode.wording}] " + "; ".join(done), flush=True)
    return tally


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-directory", type=Path, default=DEFAULT_DIRECTORY)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--base-url", default="", help="measure a server instead of a directory")
    parser.add_argument("--model", default="", help="the served name; default: the first one")
    parser.add_argument("--tasks", type=int, default=100, help="whole tasks to run")
    parser.add_argument("--step-episodes", type=int, default=50, help="episodes asked by steps")
    parser.add_argument("--first", type=int, default=0, help="number of the first episode")
    parser.add_argument("--verbose", action="store_true", help="print what was wrong")
    given = parser.parse_args()
    if given.base_url:
        answer = http_answerer(given.base_url, given.model)
    else:
        answer = transformers_answerer(given.model_directory, given.dtype)
    if given.step_episodes:
        episodes = held_out_episodes(given.first, given.step_episodes)
        measure_steps(answer, episodes, is_verbose=given.verbose).show("steps")
    if given.tasks:
        episodes = held_out_episodes(given.first, given.tasks)
        measure_tasks(answer, episodes, is_verbose=given.verbose).show("tasks")


if __name__ == "__main__":
    main()
