"""The flags of `hearth serve`: one declaration each, with vLLM's name where it means the same.

Every flag is also an environment variable: HEARTH_ and the flag's name. A flag wins over the
variable, the variable over the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from hearth.cli.quantity import parse_quantity

ENV_PREFIX = "HEARTH_"
MAX_PORT = 65535


def option(flag: str, text: str, *, prefix: str = "", short: str = "", **settings: Any) -> Any:
    """A flag with its environment variable. `flag` may name its negation: `--a/--no-a`.

    `prefix` stands between HEARTH_ and the name, where commands mean different things by it;
    `short` is the flag in one letter, such as -o.
    """
    name = flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    flags = (flag, short) if short else (flag,)
    return typer.Option(*flags, help=text, envvar=f"{ENV_PREFIX}{prefix}{name}", **settings)


def quantity(text: str | int) -> int:
    """A positive number with a unit. Raises what tells Click that the value is wrong."""
    try:
        return parse_quantity(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _port(text: str | int) -> int:
    digits = str(text)
    if not (digits.isascii() and digits.isdigit() and int(digits) <= MAX_PORT):
        raise typer.BadParameter(f"{digits!r} is not a port (permitted: 0 to {MAX_PORT})")
    return int(digits)


def quantity_or_none(text: str | int) -> int:
    """As `quantity`, and 0. Raises what tells Click that the value is wrong."""
    return 0 if str(text).strip() == "0" else quantity(text)


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        envvar=f"{ENV_PREFIX}MODEL",
        help="Directory of a Hugging Face model, a GGUF file, or a pulled model's name: ORG/NAME, "
        "ORG/NAME:Q4_K_M. Without it the built-in model is served.",
        show_default=False,
    ),
]
Host = Annotated[
    str,
    option("--host", "Address to listen on; 0.0.0.0 for every network.", rich_help_panel="HTTP"),
]
Port = Annotated[
    int,
    option(
        "--port",
        "Port to listen on; 0 takes a free one.",
        parser=_port,
        metavar="PORT",
        rich_help_panel="HTTP",
    ),
]
ServedModelName = Annotated[
    list[str] | None,
    option(
        "--served-model-name",
        "Name that clients may use; several may follow MODEL and this flag, or repeat it. "
        "Default: the directory's name.",
        metavar="NAME",
        rich_help_panel="HTTP",
        show_default=False,
    ),
]
ReasoningParser = Annotated[
    Literal["none", "think", "deepseek_r1", "glm45", "qwen3"],
    option(
        "--reasoning-parser",
        "Give what a chat's answer has between <think> and </think> as `reasoning_content` instead "
        "of in `content`: `think`, or one of vLLM's names for it. Not for phone agents, which need "
        "it in `content`.",
        rich_help_panel="HTTP",
    ),
]
MaxBodyBytes = Annotated[
    int,
    option(
        "--max-body-bytes",
        "Largest request body, such as 32M.",
        parser=quantity,
        metavar="BYTES",
        rich_help_panel="HTTP",
    ),
]
RequestTimeout = Annotated[
    float,
    option(
        "--request-timeout",
        "Seconds after which a request ends, complete or not; a client's own `timeout` may be "
        "shorter. 0: no limit.",
        min=0,
        rich_help_panel="HTTP",
    ),
]
ShutdownTimeout = Annotated[
    float,
    option(
        "--shutdown-timeout",
        "Seconds that running answers get after Ctrl-C or SIGTERM; a "
        "second signal ends them at once.",
        min=0,
        rich_help_panel="HTTP",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    option(
        "--dtype",
        "Precision of weights; the KV cache follows it by itself.",
        rich_help_panel="Model",
    ),
]
Quantize = Annotated[
    Literal["none", "int8", "int4", "fp8", "auto"],
    option(
        "--quantize",
        "Store matrices as 8-bit or 4-bit codes, rounded while they load; head and embedding "
        "keep 8 bits. auto: the most exact of none, int8, int4 that fits into memory. fp8 (e4m3) "
        "takes int8's memory, loses more and is slower on a CPU.",
        rich_help_panel="Model",
    ),
]
Activations = Annotated[
    Literal["auto", "int8", "int8-residual", "float32"],
    option(
        "--activations",
        "What codes are multiplied with: rows rounded to int8, a scale for each group of values; "
        "int8-residual: and a second int8 for what is left in groups with outliers; or float32 "
        "rows, which lose nothing more and take several times as long. auto: int8.",
        rich_help_panel="Model",
    ),
]
QuantizeGroupSize = Annotated[
    int,
    option(
        "--quantize-group-size",
        "Columns that share a scale: 32, 64 or 128. Smaller ones lose less and take more memory.",
        metavar="COLUMNS",
        rich_help_panel="Model",
    ),
]
LoadFormat = Annotated[
    Literal["auto", "safetensors", "dummy"],
    option(
        "--load-format",
        "Where weights come from; dummy fills in random ones.",
        rich_help_panel="Model",
    ),
]
MaxModelLen = Annotated[
    int | None,
    option(
        "--max-model-len",
        "Longest prompt and answer together, in tokens, such as 8192 or "
        "32K. Default: the model's own.",
        parser=quantity,
        metavar="TOKENS",
        rich_help_panel="Model",
        show_default=False,
    ),
]
Window = Annotated[
    int | None,
    option(
        "--window",
        "Limit the attention of every layer to the last so many tokens, for a model without a "
        "sliding window: bounds the KV cache; what lies further back is forgotten.",
        parser=quantity,
        metavar="TOKENS",
        rich_help_panel="Model",
        show_default=False,
    ),
]
Seed = Annotated[
    int,
    option("--seed", "Seed of dummy weights.", min=0, rich_help_panel="Model"),
]
MaxNumSeqs = Annotated[
    int,
    option("--max-num-seqs", "Most requests in one step.", min=1, rich_help_panel="Engine"),
]
MaxNumBatchedTokens = Annotated[
    int,
    option("--max-num-batched-tokens", "Most tokens in one step.", min=1, rich_help_panel="Engine"),
]
MaxQueuedRequests = Annotated[
    int,
    option(
        "--max-queued-requests",
        "Requests that may wait; more get 429.",
        min=1,
        rich_help_panel="Engine",
    ),
]
BlockSize = Annotated[
    int,
    option("--block-size", "Tokens in a block of KV cache.", min=1, rich_help_panel="Engine"),
]
EnablePrefixCaching = Annotated[
    bool,
    option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        "Reuse the KV cache of equal beginnings.",
        rich_help_panel="Engine",
    ),
]
Speculative = Annotated[
    Literal["auto", "ngram", "off"],
    option(
        "--speculative",
        "Draft tokens that followed the same text before, and verify them: answers stay the same, "
        "those that repeat something come faster. auto: where the kernels are bit-identical.",
        rich_help_panel="Engine",
    ),
]
KvCacheMemoryBytes = Annotated[
    int | None,
    option(
        "--kv-cache-memory-bytes",
        "Size of the KV cache, such as 2G or 512M. Default: from the free memory.",
        parser=quantity,
        metavar="BYTES",
        rich_help_panel="Engine",
        show_default=False,
    ),
]
KvCacheDtype = Annotated[
    Literal["auto", "bf16", "int8", "int4", "fp8", "bfloat16", "fp8_e4m3"],
    option(
        "--kv-cache-dtype",
        "How keys and values are stored: int8, fp8 (e4m3) and int4 take about a half and a quarter "
        "of bf16's memory and lose a little; bfloat16 and fp8_e4m3 are other names. auto: floats "
        "as the weights' own.",
        rich_help_panel="Engine",
    ),
]
WeightCacheBytes = Annotated[
    int | None,
    option(
        "--weight-cache-bytes",
        "Disk space for packed weights, such as 20G; the least recently used go first, 0 keeps "
        "none. Default: a quarter of the free space.",
        parser=quantity_or_none,
        metavar="BYTES",
        rich_help_panel="Engine",
        show_default=False,
    ),
]
WeightCacheDir = Annotated[
    str,
    option(
        "--weight-cache-dir",
        "Where packed weights are kept, so that the next start maps them. Default: "
        "hearth/weights in the user's cache directory.",
        metavar="DIRECTORY",
        rich_help_panel="Engine",
        show_default=False,
    ),
]
WeightCacheVerify = Annotated[
    bool,
    option(
        "--weight-cache-verify/--no-weight-cache-verify",
        "Compare the checksums of all packed weights at the start.",
        rich_help_panel="Engine",
    ),
]
Executor = Annotated[
    Literal["auto", "cpu", "cuda", "reference", "automodel"],
    option(
        "--executor",
        "What runs the model; cuda: a GPU, with hearth[cuda], not yet tried on a card; automodel: "
        "transformers' own code, slower, with hearth[torch].",
        rich_help_panel="Engine",
    ),
]
Threads = Annotated[
    int | None,
    option(
        "--threads",
        "Threads of the CPU executor. Default: one a physical core that is free, of a hybrid "
        "processor the performance cores alone.",
        min=1,
        rich_help_panel="Engine",
        show_default=False,
    ),
]
Canary = Annotated[
    bool,
    option(
        "--canary/--no-canary",
        "Try the model before it is served, and refuse it where its kernels or its weights give "
        "garbage.",
        rich_help_panel="Engine",
    ),
]
Stage = Annotated[
    str,
    option(
        "--stage",
        "Serve from a copy of the model in this directory, on a fast disk; made where there is "
        "none (hearth pull --stage).",
        metavar="DIRECTORY",
        rich_help_panel="Engine",
    ),
]
CpuBind = Annotated[
    str,
    option(
        "--cpu-bind",
        "Logical CPUs of the CPU executor's threads: a list like 0,2,4-7, a thread for each; none "
        "leaves them to Linux; auto gives each a core that no other server has.",
        metavar="auto|none|LIST",
        rich_help_panel="Engine",
    ),
]
Numa = Annotated[
    str,
    option(
        "--numa",
        "NUMA node whose cores and memory are used; none: all; auto: the freest, where there are "
        "several.",
        metavar="auto|none|NODE",
        rich_help_panel="Engine",
    ),
]
Isa = Annotated[
    str,
    option(
        "--isa",
        "Instruction set of the CPU executor: avx512_bf16, avx512 (with VNNI), avx2, generic; auto "
        "takes the best that runs here.",
        metavar="ISA",
        rich_help_panel="Engine",
    ),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    option("--log-level", "What is logged to stderr; debug shows traces of errors."),
]


def environment_names(command: Any) -> set[str]:
    """The environment variables that a command reads."""
    hints = get_type_hints(command, include_extras=True)
    infos = (info for hint in hints.values() for info in get_args(hint)[1:])
    return {info.envvar for info in infos if isinstance(getattr(info, "envvar", None), str)}


def unknown_variables(environment: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """One warning for each HEARTH_ variable that no flag has."""
    names = set(known)
    warnings: list[str] = []
    for name in sorted(environment):
        if name.startswith(ENV_PREFIX) and name not in names:
            close = difflib.get_close_matches(name, names, 1)
            guess = f"; did you mean {close[0]}?" if close else ""
            warnings.append(f"the environment variable {name} has no meaning here{guess}")
    return warnings
