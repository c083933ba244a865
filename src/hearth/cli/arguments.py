"""The command line of `hearth serve` where it is more than Click knows: as vLLM's users write it.

* `--served-model-name a b`: several values after one flag. Click knows one value a flag; each
  further value gets the flag in front of it.
* `--mm_processor_kwargs`: underscores in a flag's name are dashes.
* Flags of other servers that have another name here are named with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperOption

from hearth.cli.help import SectionedCommand

REPEATED = ("--served-model-name", "--allowed-media-domains")

_MODEL = "MODEL, without a flag: hearth serve DIRECTORY"
_CACHE = "--image-cache-bytes"
# Of vLLM and SGLang: what says the same here.
_ELSEWHERE: Mapping[str, str] = {
    "--context-length": "--max-model-len",
    "--mm-process-config": "--max-pixels, or --mm-processor-kwargs '{\"max_pixels\": 5000000}'",
    "--model": _MODEL,
    "--model-path": _MODEL,
    "--gpu-memory-utilization": "--kv-cache-memory-bytes",
    "--mem-fraction-static": "--kv-cache-memory-bytes",
    "--max-running-requests": "--max-num-seqs",
    "--chunked-prefill-size": "--max-num-batched-tokens",
    "--disable-radix-cache": "--no-enable-prefix-caching",
    "--mm-processor-cache-gb": _CACHE,
    "--mm-processor-cache-type": _CACHE,
}


class ServeCommand(SectionedCommand):
    """A command with flags that take several values, in the spellings of other servers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Typer's Click is private
        """Click's own, on the rewritten arguments."""
        flags = {
            name: not option.is_flag
            for option in self.params
            if isinstance(option, TyperOption)
            for name in (*option.opts, *option.secondary_opts)
        }
        rewritten = dashed(args, flags)
        for name in _names(rewritten, flags):
            if name not in flags and (ours := _ELSEWHERE.get(name.replace("_", "-"))):
                ctx.fail(f"No such option: {name}; did you mean {ours}?")
        for flag in REPEATED:
            rewritten = repeat_flag(rewritten, flag, flags)
        return super().parse_args(ctx, rewritten)


def dashed(args: Sequence[str], takes_value: Mapping[str, bool]) -> list[str]:
    """The arguments with dashes in place of underscores in the names of known flags.

    `takes_value`: every flag, and whether a value follows it; values stay as they are.
    """
    found: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*found, arg, *rest]
        name, equals, value = arg.partition("=")
        if name.startswith("--") and (flag := name.replace("_", "-")) in takes_value:
            arg = f"{flag}{equals}{value}"
        found.append(arg)
        if takes_value.get(arg, False) and (following := next(rest, None)) is not None:
            found.append(following)
    return found


def _names(args: Sequence[str], takes_value: Mapping[str, bool]) -> Iterator[str]:
    """The names of the flags, known or not."""
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return
        if arg.startswith("--"):
            yield arg.partition("=")[0]
        if takes_value.get(arg, False):
            next(rest, None)


def repeat_flag(args: Sequence[str], flag: str, takes_value: Mapping[str, bool]) -> list[str]:
    """`MODEL --flag a b --other` becomes `MODEL --flag a --flag b --other`.

    Where MODEL has not been named yet, a further value may be MODEL, so that only the first is
    the flag's. `takes_value`: every flag, and whether a value follows it.
    """
    found: list[str] = []
    has_model = False
    is_flags = False  # the value before was one of `flag`
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*found, arg, *rest]
        if arg.startswith("-"):
            found.append(arg)
            is_flags = arg.partition("=")[0] == flag
            if takes_value.get(arg, False) and (value := next(rest, None)) is not None:
                found.append(value)
                is_flags = is_flags and not value.startswith("-")
        elif has_model and is_flags:
            found += [flag, arg]
        else:
            found.append(arg)
            has_model, is_flags = True, False
    return found
