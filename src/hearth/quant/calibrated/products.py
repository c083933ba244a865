"""How a run multiplies: which arithmetic torch takes on this processor, and why.

Two choices, both by what the processor is seen to do. Linear layers of the model run in bfloat16
where it has instructions for that: inputs and weights are rounded to what models are served with,
everything between them stays float32. Products of float32 go to oneDNN where its are as exact as
float32 is: the library that torch takes otherwise (MKL) leaves AVX-512 of AMD's processors unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = {"avx512_bf16", "amx_bf16"}
# Of a float32 product's relative error: those of bfloat16 have 2e-3.
_EXACT = 1e-5


def bfloat16_instruction(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's instructions for products of bfloat16, as Linux calls them, or ""."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return next((flag for flag in flags if flag in _FLAGS), "")


@contextmanager
def fastest_float32() -> Iterator[None]:
    """float32 products by oneDNN where that is exact: "medium" lets it round to bfloat16.

    It does so on processors with AMX alone, which a product of known result shows.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        if not _is_exact():
            torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _is_exact() -> bool:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=random) for _ in range(2))
    exact = a.double() @ b.double()
    return bool(((a @ b).double() - exact).norm() <= _EXACT * exact.norm())


class Rounding:
    """Runs linear layers in bfloat16 within `on()`; their weights may change in between."""

    def __init__(self, module: nn.Module, names: Sequence[str], *, is_wanted: bool) -> None:
        """`names`: the layers that take part, of what is not wanted none."""
        found = [module.get_submodule(name) for name in names] if is_wanted else []
        self._linear = [child for child in found if type(child) is nn.Linear]
        self._weights: dict[nn.Module, tuple[int, Tensor]] = {}

    def kind_of(self, module: nn.Module) -> torch.dtype:
        """What a linear layer reads within `on()`."""
        return torch.bfloat16 if module in self._linear else torch.float32

    @contextmanager
    def on(self) -> Iterator[None]:
        """A context in which products are rounded."""
        for module in self._linear:
            vars(module)["forward"] = self._forward(module)
        try:
            yield
        finally:
            for module in self._linear:
                del vars(module)["forward"]

    def _forward(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        own: Tensor | None = module.bias
        bias = None if own is None else own.bfloat16()

        def forward(rows: Tensor) -> Tensor:
            return linear(rows.bfloat16(), self._weight(module), bias).float()

        return forward

    def _weight(self, module: nn.Linear) -> Tensor:
        """In bfloat16, made again when the module's has changed."""
        version = module.weight._version
        known = self._weights.get(module)
        if known is None or known[0] != version:
            known = self._weights[module] = version, module.weight.bfloat16()
        return known[1]
