"""Compiles what a launcher launches for a card that is not there, and reads what came out.

Tensors may be on the device "meta": only types and strides count. Needs a process in which Triton's
interpreter is not chosen (no `TRITON_INTERPRET`), and ptxas, which Triton brings along.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int64: "*i64",
}  # fmt: skip
_INSTRUCTION = re.compile(r"^\s+/\*\w+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)", re.MULTILINE)
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True, slots=True)
class Compiled:
    """Of a kernel: registers and spilled bytes a thread, shared bytes, instructions by name."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def compiled(launch: Callable[[], None], capability: int) -> list[Compiled]:
    """What `launch` would run on a card such as 90, in order."""
    results: list[Compiled] = []

    def compile_instead(kernel: Any, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        kwargs.pop("grid"), kwargs.pop("warmup")
        values = dict(zip(kernel.arg_names, args)) | kwargs
        results.append(_compile(kernel, values, options, capability))

    with _patched(JITFunction, "run", compile_instead):
        launch()
    return results


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


def _compile(
    kernel: Any, values: dict[str, Any], options: dict[str, int], capability: int
) -> Compiled:
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        general = parameter.do_not_specialize
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not general):
            signature[parameter.name], constants[index,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not general:
                attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _read(kernel.__name__, result.asm["cubin"], result.metadata.shared)


def _read(name: str, cubin: bytes, shared_bytes: int) -> Compiled:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    instructions: dict[str, int] = {}
    for instruction in re.findall(
        r"^\s+/\*\w+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)", sass, re.MULTILINE
    ):
        instructions[instruction] = instructions.get(instruction, 0) + 1
    return Compiled(name, int(found[1]), int(found[2]), shared_bytes, instructions)
