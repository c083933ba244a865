"""The banner says what was chosen and why, and its curl line survives a shell."""

from __future__ import annotations

import io
import json
import shlex

from rich.console import Console
from tests.unit.serve.fake_engine import toy_model
from tests.unit.serve.image_model import image_model

from hearth.cli.banner import Banner, curl_line, print_banner
from hearth.cli.clock import StartupClock
from hearth.cli.settings import EngineFlags, ServeSettings, engine_config, find_model
from hearth.core.config import DEFAULT_CODES, Choice, Resolved, WeightCacheConfig
from hearth.core.step import ExecutorInfo
from hearth.engine.messages import Ready
from hearth.serve.model import ServedModel

CACHE = WeightCacheConfig()
FLAGS = EngineFlags(
    dtype="auto",
    quantize="none",
    codes=DEFAULT_CODES,
    load_format="auto",
    max_model_len=None,
    window=None,
    seed=0,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_queued_requests=16,
    block_size=32,
    enable_prefix_caching=True,
    speculative="auto",
    kv_cache_memory_bytes=None,
    kv_cache_dtype="auto",
    executor="auto",
    threads=None,
    isa="auto",
    cpu_bind="auto",
    numa="auto",
    weight_cache=CACHE,
)
READY = Ready(
    resolved=Resolved(
        model_name="toy",
        architecture="ToyForCausalLM",
        dtype="bfloat16",
        max_model_len=100,
        vocab_size=10,
        eos_token_ids=(0,),
        choices=(Choice("dtype", "bfloat16", "the checkpoint is [bold] bfloat16"),),
        warnings=("a slower kernel is used",),
    ),
    executor=ExecutorInfo("cpu", "avx2, 2 threads", "best here", bit_identical=True),
    memory=("weights: 5.65 MiB = 3 parameters", "KV cache: 1 MiB = 2 blocks"),
    timings_s={"python": 0.2, "weights": 0.1},
)


def banner_text(
    host: str = "127.0.0.1",
    width: int = 80,
    template: str | None = "x",
    model: ServedModel | None = None,
) -> str:
    model_dir = find_model(None)
    settings = ServeSettings(
        engine=engine_config(model_dir, FLAGS),
        model_dir=model_dir,
        names=("toy",),
        host=host,
        port=0,
        max_body_bytes=1,
        shutdown_timeout_s=1.0,
        request_timeout_s=0.0,
        log_level="info",
        warnings=("HEARTH_X has no meaning",),
    )
    clock = StartupClock()
    clock.end("python")
    output = io.StringIO()
    console = Console(file=output, width=width, highlight=False, soft_wrap=True)
    model = model or toy_model(template)
    print_banner(Banner(settings, 8123, model, READY, clock), console)
    return output.getvalue()


def test_every_choice_stands_with_its_reason() -> None:
    text = banner_text()
    for part in (
        "toy, org/alias (ToyForCausalLM) at http://127.0.0.1:8123",
        "dtype: bfloat16 (the checkpoint is [bold] bfloat16)",
        "avx2, 2 threads (best here)",
        "weights: 5.65 MiB (3 parameters)",
        "prefix caching: on",
        "temperature 0.5",
        "warning: a slower kernel is used",
        "warning: HEARTH_X has no meaning",
        "python 0.20 + weights 0.10",
    ):
        assert part in text
    assert "\033" not in text


def test_what_a_user_must_know_is_a_warning() -> None:
    assert "no chat template" not in banner_text()
    assert "no chat template" in banner_text(template=None)
    assert "no authentication" in banner_text(host="0.0.0.0")


def test_images_and_their_bounds_are_told_where_a_model_takes_them() -> None:
    told = "images: 10 a request, 64 tokens each at most (--limit-images; 12,544 to 100,352 pixels"
    assert f"{told}, in 2 frames)" in banner_text(model=image_model())
    assert "images:" not in banner_text()


def test_the_curl_line_is_one_line_even_on_a_narrow_screen() -> None:
    line = next(line for line in banner_text(width=40).splitlines() if line.startswith("curl"))
    words = shlex.split(line)
    assert words[1] == "http://127.0.0.1:8123/v1/chat/completions"
    assert json.loads(words[-1])["model"] == "toy"


def test_the_curl_line_survives_any_model_name() -> None:
    name = 'it\'s "a" $model'
    assert json.loads(shlex.split(curl_line("http://x", name))[-1])["model"] == name


def test_the_curl_line_of_a_model_without_a_template_is_a_completion() -> None:
    line = next(x for x in banner_text(template=None).splitlines() if x.startswith("curl"))
    words = shlex.split(line)
    assert words[1] == "http://127.0.0.1:8123/v1/completions"
    assert "prompt" in json.loads(words[-1])
