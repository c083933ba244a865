"""One step of a phone agent on a model of AutoGLM-Phone-9B's shapes: seconds of each stage.

    python -m benchmarks.phone_step CONFIG_DIR [--pixels 9633792,5000000,1250000] [--steps 2]
                                    [--quantize int4] [--json FILE] [-- FLAGS OF hearth serve]

CONFIG_DIR holds config.json and preprocessor_config.json; weights are random, the tokenizer is the
text model's with the tokens of images behind it. For each bound of pixels a server is started
and asked about a screenshot of 1080 × 2400 with a prompt as long as the agent's, then once more
with another screenshot (the second step, whose text is in the prefix cache).

Stages: front end (decode, resize, tokenize: what is left of the time to the first token), encoder
and text prefill (the engine's own clocks). Limits: int8 operations of the encoder's linear layers
at the int8 peak and its attention at that of bfloat16 pairs, measured in the same run. Memory: the
peak of both processes, beside the plan. Never asserts.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from benchmarks.ceilings import Ceiling, Ops, running_ceilings
from PIL import Image
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.program import Attend, EncoderProgram
from hearth.core.spec import SlotKind
from hearth.engine.images.resize import Size, num_tokens_of, resized_size
from hearth.models.image_sizes import default_processor
from hearth.models.loader import load_model_spec

SYSTEM_TOKENS = 2000  # about, of the agent's Chinese system prompt with this tokenizer
SCREEN = (1080, 2400)
NEW_TOKENS = 16
TOKENS = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "</answer>")
TEMPLATE = """[gMASK]<sop>
{%- for m in messages -%}<|{{ m.role }}|>
{% if m.content is string %}{{ m.content }}{% else %}
{%- for item in m.content -%}
{%- if item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif item.type == 'text' %}{{ item.text }}
{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>
{% endif -%}
"""


@dataclass
class Step:
    """What one request took, in seconds, and how long its image was."""

    pixels: int
    step: int
    image_tokens: int
    prompt_tokens: int
    cached_tokens: int
    first_token_s: float
    encode_s: float
    prefill_s: float
    encode_limit_s: float
    token_s: float  # a generated one

    @property
    def front_end_s(self) -> float:
        """Decoding, resizing, tokens, messages: what is neither encoder nor text."""
        return max(0.0, self.first_token_s - self.encode_s - self.prefill_s)


def write_model(source: Path, directory: Path) -> None:
    """The configuration with a tokenizer that goes with it."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((TEXT_MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    first = len(tokenizer["model"]["vocab"])
    plain = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [
        {**plain, "id": first + i, "content": token} for i, token in enumerate(TOKENS)
    ]
    config["image_token_id"] = first + 1
    config["text_config"]["eos_token_id"] = [0, first + 3]
    processor = (source / "preprocessor_config.json").read_text(encoding="utf-8")
    for name, text in (
        ("config.json", json.dumps(config)),
        ("tokenizer.json", json.dumps(tokenizer, ensure_ascii=False)),
        ("tokenizer_config.json", json.dumps({"eos_token": "<|endoftext|>"})),
        ("chat_template.jinja", TEMPLATE),
        ("preprocessor_config.json", processor),
    ):
        (directory / name).write_text(text, encoding="utf-8")


def screenshot(seed: int) -> str:
    """A data URL of a screen: areas of one colour, some texture; RGBA as the phone gives it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (SCREEN[1] // 60, SCREEN[0] // 60, 4))
    pixels = np.kron(coarse, np.ones((60, 60, 1))).astype(np.uint8)
    pixels[::7, ::5, :3] ^= 31
    pixels[..., 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def encoder_limit_s(encoder: EncoderProgram, num_tokens: int, ceiling: Ceiling) -> float:
    """Linear layers at the int8 peak, attention at that of bfloat16 pairs."""
    program, merged = encoder.program, num_tokens
    patches = num_tokens * encoder.merge_rows
    int8 = 0.0
    for slot in program.slots:
        if slot.kind is SlotKind.LINEAR and slot.name.startswith("vision."):
            is_merger = "merger" in slot.name or "downsample" in slot.name
            int8 += 2.0 * slot.rows * slot.cols * (merged if is_merger else patches)
    attends = [op for op in program.ops if isinstance(op, Attend)]
    pairs = sum(4.0 * op.num_heads * op.head_dim * patches**2 for op in attends)
    return ceiling.compute_s(Ops(int8=int8, pairs=pairs))


class Served:
    """A server on the model, its images bounded by `pixels`."""

    def __init__(self, model: Path, pixels: int, flags: list[str]) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115
        command = [
            *(sys.executable, "-m", "hearth.cli", "serve", str(model), "--port", "0"),
            *("--load-format", "dummy", "--max-pixels", str(pixels), *flags),
        ]
        self.popen = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.url = self._await_url()

    def _await_url(self) -> str:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            text = Path(self.log.name).read_text(encoding="utf-8")
            if "Try it" in text and "http://" in text:
                return "http://" + text.split("http://", 1)[1].split()[0].split("/")[0].rstrip(",")
            if self.popen.poll() is not None:
                raise SystemExit(text)
            time.sleep(0.2)
        raise SystemExit("the server did not start")

    def engine(self) -> dict[str, Any]:
        counts: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=600).json()["engine"]
        return counts

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat; ends the program where it is refused."""
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=3600)
        if answer.status_code != 200:
            raise SystemExit(f"{answer.text}\n{Path(self.log.name).read_text()}")
        found: dict[str, Any] = answer.json()
        return found

    def peak_bytes(self) -> int:
        """Of both processes."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        pids = [str(self.popen.pid), *children.split()]
        return sum(_status_kib(pid, "VmHWM") for pid in pids) * 1024

    def close(self) -> None:
        self.popen.send_signal(signal.SIGINT)
        self.popen.wait(60)


def _status_kib(pid: str, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:", 1)[1].split()[0])


def ask(served: Served, number: int, image_tokens: int, limit_s: float) -> Step:
    """One step of the conversation; its first token, then the others from the cache."""
    system = "tap swipe type " * (SYSTEM_TOKENS // 5)
    image = {"type": "image_url", "image_url": {"url": screenshot(number)}}
    text = {"type": "text", "text": f"step {number}: what is to be done?"}
    body: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": [image, text]},
        ],
        "temperature": 0.0,
        "ignore_eos": True,
    }
    before, started = served.engine(), time.perf_counter()
    usage = served.post(body | {"max_tokens": 1})["usage"]
    first_token_s = time.perf_counter() - started
    after = served.engine()
    served.post(body | {"max_tokens": 1 + NEW_TOKENS})
    last = served.engine()
    alone_s = _difference(after, last, "execute_seconds") / (1 + NEW_TOKENS)
    return Step(
        pixels=0,
        step=number,
        image_tokens=image_tokens,
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        first_token_s=first_token_s,
        encode_s=_difference(before, after, "encode_seconds"),
        prefill_s=_difference(before, after, "execute_seconds"),
        encode_limit_s=limit_s,
        token_s=alone_s,
    )


def _difference(before: dict[str, Any], after: dict[str, Any], name: str) -> float:
    return float(after[name]) - float(before[name])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--pixels", default="9633792,5000000,1250000")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    found: list[Step] = []
    peaks: list[str] = []
    with tempfile.TemporaryDirectory() as name, running_ceilings(2) as ceilings:
        write_model(options.config, Path(name))
        loaded = load_model_spec(name, quantize=options.quantize)
        encoder, vision = loaded.encoder, loaded.spec.vision
        assert encoder is not None
        assert vision is not None
        for pixels in map(int, options.pixels.split(",")):
            ceiling = ceilings.measure()
            served = Served(Path(name), pixels, ["--quantize", options.quantize, *options.flags])
            spec = replace(default_processor(vision), max_pixels=pixels)
            tokens = num_tokens_of(resized_size(Size(SCREEN[1], SCREEN[0]), spec), spec)
            limit_s = encoder_limit_s(encoder, tokens, ceiling)
            try:
                for number in range(1, options.steps + 1):
                    step = ask(served, number, tokens, limit_s)
                    step.pixels = pixels
                    found.append(step)
                    print(step, f"front end {step.front_end_s:.2f} s", flush=True)
                peaks.append(f"{pixels}: peak {served.peak_bytes() / 2**30:.2f} GiB")
                print(peaks[-1], ceiling, flush=True)
                print(Path(served.log.name).read_text(encoding="utf-8"))
            finally:
                served.close()
    if options.json:
        options.json.write_text(json.dumps([asdict(step) for step in found], indent=1))


if __name__ == "__main__":
    main()
