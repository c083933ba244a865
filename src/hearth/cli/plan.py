"""`hearth plan`: what a model needs and how fast it would be here, before it is downloaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hearth.cli.config_file import Config
from hearth.cli.options import CpuBind, Isa, Numa, Threads, option, quantity

if TYPE_CHECKING:
    from hearth.cli.plan_report import PlanReport

DOES_NOT_FIT = 1
_PREFIX = "PLAN_"

PlannedModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Directory of a Hugging Face model, a config.json alone, a GGUF file, or a hub's "
        "ORG/NAME, of GGUF files ORG/NAME:Q4_K_M.",
    ),
]
Context = Annotated[
    int | None,
    option(
        "--max-model-len",
        "Tokens of a sequence, prompt and answer. Default: 8k, or what the model supports.",
        parser=quantity,
        metavar="TOKENS",
        prefix=_PREFIX,
        show_default=False,
    ),
]
Concurrency = Annotated[
    int, option("--concurrency", "Sequences at a time.", min=1, max=4096, prefix=_PREFIX)
]
PromptTokens = Annotated[
    int,
    option("--prompt-tokens", "Tokens of a prompt.", parser=quantity, prefix=_PREFIX),
]
MaxPixels = Annotated[
    int | None,
    option(
        "--max-pixels",
        "Pixels of an image at most. Default: the model's own.",
        parser=quantity,
        metavar="PIXELS",
        prefix=_PREFIX,
        show_default=False,
    ),
]
Memory = Annotated[
    int | None,
    option(
        "--memory",
        "Plan for so much free memory instead of this machine's.",
        parser=quantity,
        metavar="BYTES",
        prefix=_PREFIX,
        show_default=False,
    ),
]
GpuMemory = Annotated[
    str,
    option(
        "--gpu-memory",
        "Memory of each GPU to plan for, such as 24GiB,24GiB. Default: the GPUs of this machine.",
        metavar="BYTES[,BYTES]",
        prefix=_PREFIX,
        show_default=False,
    ),
]
FromSource = Annotated[
    str,
    option(
        "--source",
        "Hub of a model that is not here: auto, hf, modelscope, or a URL; as of hearth pull.",
        metavar="SOURCE",
        prefix=_PREFIX,
    ),
]
TargetStep = Annotated[
    float | None,
    option(
        "--target-step",
        "Seconds that a phone agent's later step may take: says which pixels and precision meet "
        "it, and up to which context.",
        min=0.01,
        metavar="SECONDS",
        prefix=_PREFIX,
        show_default=False,
    ),
]
Measure = Annotated[
    bool,
    option(
        "--measure",
        "Measure kernels, memory, disk and GPU copies first (some 20 s).",
        prefix=_PREFIX,
    ),
]
KvCacheDtype = Annotated[
    Literal["auto", "bf16", "int8", "int4", "fp8", "bfloat16", "fp8_e4m3"],
    option(
        "--kv-cache-dtype",
        "Plan for keys and values that are stored so. auto: as the weights' float type.",
        prefix=_PREFIX,
    ),
]
AsJson = Annotated[bool, option("--json", "The plan as JSON.", prefix=_PREFIX)]


@dataclass(frozen=True, slots=True)
class PlanFlags:
    """What was asked for."""

    model: str
    source: str
    context: int | None
    concurrency: int
    prompt_tokens: int
    max_pixels: int | None
    memory: int | None
    gpu_memory: str
    target_step_s: float | None
    measure: bool
    threads: int | None
    cpu_bind: str
    numa: str
    isa: str
    kv_cache_dtype: str = "auto"


def plan(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    model: PlannedModel,
    max_model_len: Context = None,
    concurrency: Concurrency = 1,
    prompt_tokens: PromptTokens = 1024,
    max_pixels: MaxPixels = None,
    memory: Memory = None,
    gpu_memory: GpuMemory = "",
    target_step: TargetStep = None,
    measure: Measure = False,
    source: FromSource = "auto",
    threads: Threads = None,
    cpu_bind: CpuBind = "auto",
    numa: Numa = "auto",
    isa: Isa = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
    as_json: AsJson = False,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Say what a model needs, what fits, and how fast it would be on this machine.

    Reads no more than the model's description and the headers of its weights. Exit code 1: it fits
    in no precision.
    """
    from hearth.cli.plan_report import make_report, write_json, write_text

    flags = PlanFlags(
        model,
        source,
        max_model_len,
        concurrency,
        prompt_tokens,
        max_pixels,
        memory,
        gpu_memory,
        target_step,
        measure,
        threads,
        cpu_bind,
        numa,
        isa,
        kv_cache_dtype,
    )
    report: PlanReport = make_report(flags)
    (write_json if as_json else write_text)(report, sys.stdout)
    if not any(outlook.fits for outlook in report.outlooks):
        raise typer.Exit(DOES_NOT_FIT)
