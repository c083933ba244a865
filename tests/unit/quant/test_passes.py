"""Passes over a layer: nothing runs twice, replays are exact, and a full disk costs only time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hearth.quant.calibrated.estimate import Speed, operations_of
from hearth.quant.calibrated.products import Rounding, bfloat16_instruction, fastest_float32
from hearth.quant.calibrated.tails import Tails
from hearth.quant.calibrated.trace import Grams, Group, LayerTrace


class Part(nn.Module):
    """Two matrices, one behind the other; `is_scaled`: something comes behind the second."""

    def __init__(self, *, is_scaled: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 16)
        self._scale = 2.0 if is_scaled else None
        self.num_calls = 0

    def forward(self, rows: Tensor) -> tuple[Tensor, str]:
        self.num_calls += 1
        values = self.last(torch.relu(self.first(rows)))
        return (values if self._scale is None else values * self._scale), "of no use"


class Layer(nn.Module):
    """Two parts with residual connections."""

    def __init__(self, *, is_scaled: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.one, self.two = Part(is_scaled=is_scaled), Part()

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.one(self.norm(rows))[0]
        result: Tensor = rows + self.two(rows)[0]
        return result


NAMES = ["one.first", "one.last", "two.first", "two.last"]


@torch.no_grad()
def run_all(layer: Layer, directory: Path) -> tuple[list[Tensor], list[Tensor], Tails]:
    """What the layer gives for two sequences as it is, and after passes for all stages."""
    states = [torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    expected = [layer(state) for state in states]
    trace = LayerTrace(layer, lambda: layer(states[0]))
    stages = trace.stages(NAMES)
    assert [stage.is_once for stage in stages] == [True] * 4
    tails = Tails(directory, lambda index: layer(states[index]))
    tails.find(layer, NAMES, stages, lambda _: torch.float32)
    layer.one.num_calls = layer.two.num_calls = 0
    for stage in stages:
        grams = Grams(layer, stage.groups, (stage.groups[0].width,))
        with tails.recording(layer, stage), grams.watching() as take:
            for index in range(2):
                take(lambda index=index: tails.pass_over(index))  # type: ignore[misc]
        assert grams.found[stage.groups[0].width].num_rows == 10
    return expected, [tails.pass_over(index) for index in range(2)], tails


def test_finished_parts_run_no_more_and_give_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = Layer()
    expected, found, tails = run_all(layer, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    # A pass for each of its matrices, of both sequences; no pass for the matrices behind it.
    assert (layer.one.num_calls, layer.two.num_calls) == (4, 4)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    tails.close()


def test_a_part_that_does_not_end_in_its_matrix_runs_every_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = Layer(is_scaled=True)
    expected, found, tails = run_all(layer, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert layer.one.num_calls == 10
    tails.close()


def test_a_full_disk_makes_passes_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    torch.manual_seed(0)
    layer = Layer()
    expected, found, tails = run_all(layer, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert tails.is_full
    assert layer.one.num_calls == 10
    tails.close()


@torch.no_grad()
def test_rounded_products_follow_a_changed_weight() -> None:
    torch.manual_seed(0)
    layer, rows = Part(), torch.randn(3, 16)
    rounding = Rounding(layer, ["first"], is_wanted=True)
    with rounding.on():
        before = layer.first(rows)
        layer.first.weight.mul_(2)
        after = layer.first(rows)
        assert torch.equal(
            layer.last(before), nn.functional.linear(before, layer.last.weight, layer.last.bias)
        )
    wide = nn.functional.linear(rows, layer.first.weight, layer.first.bias)
    assert torch.equal(layer.first(rows), wide)
    assert not torch.equal(after, wide)
    assert float((after - wide).norm() / wide.norm()) < 0.01
    assert float((after - before).norm()) > 0.1
    assert rounding.kind_of(layer.first) is torch.bfloat16
    assert rounding.kind_of(layer.last) is torch.float32


@pytest.mark.parametrize("size", [24, 2500])  # one stripe, and several
def test_half_of_a_gram_matrix_is_made_whole(size: int) -> None:
    module = nn.ModuleDict({"one": nn.Linear(size, 4)})
    grams = Grams(module, [Group(["one"])])
    rows = torch.randn(1, 40, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), grams.watching() as take:
        take(lambda: module["one"](rows))
    grams.finish("")
    assert torch.allclose(grams.found["one"].sums, rows[0].T @ rows[0], atol=1e-4)
    assert torch.equal(grams.found["one"].sums, grams.found["one"].sums.T)


def test_the_processor_says_what_it_multiplies(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name: x\nflags\t\t: fpu avx512f avx512_bf16 sse\n")
    assert bfloat16_instruction(cpuinfo) == "avx512_bf16"
    cpuinfo.write_text("flags\t\t: fpu avx512f\n")
    assert bfloat16_instruction(cpuinfo) == ""
    assert bfloat16_instruction(tmp_path / "none") == ""


def test_float32_products_stay_exact_and_the_setting_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    a, b = torch.randn(300, 300), torch.randn(300, 300)
    with fastest_float32():
        found = a @ b
    exact = a.double() @ b.double()
    assert float((found.double() - exact).norm() / exact.norm()) < 1e-5
    assert torch.get_float32_matmul_precision() == before


def test_operations_of_a_layer_of_nine_billion_parameters() -> None:
    """Counted by hand: 204 million weights, 65,536 tokens."""
    matrices = [
        ("layers.0.self_attn.q_proj.weight", 4096, 4096),
        ("layers.0.self_attn.k_proj.weight", 256, 4096),
        ("layers.0.self_attn.v_proj.weight", 256, 4096),
        ("layers.0.self_attn.o_proj.weight", 4096, 4096),
        ("layers.0.mlp.gate_up_proj.weight", 27392, 4096),
        ("layers.0.mlp.down_proj.weight", 4096, 13696),
    ]
    found = operations_of(matrices, 128 * 512)
    assert found.num_weights == 203_948_032
    assert found.passes == pytest.approx(1.2 * 2 * 203_948_032 * 65536)
    assert found.exact == pytest.approx(3.2e13, rel=0.1)
    assert found.seconds(Speed(1e12, 1e12)) < found.seconds(Speed(1e12, 5e11))
