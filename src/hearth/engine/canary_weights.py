"""Products of a model's own matrices against its checkpoint: packing and kernels in one look.

Fixed random rows go through single linear layers, the rounding of activations included, on the
kernels that serve; some of their outputs are computed again in numpy from the checkpoint's rows. A
wrong scale, codes in another order, a kernel that adds wrongly lies far outside what rounding
explains; see `_limit_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import CanaryError, WeightsError
from hearth.core.program import Embed, Linear, Op, Quantize, StepProgram
from hearth.core.spec import SlotKind, WeightSlot
from hearth.core.step import StepLimits, StepPlan
from hearth.engine.engine import EngineShape
from hearth.engine.plain_steps import Layout, Rows, step_plan
from hearth.host.scratch import CANARY_PLACES, CANARY_TOKENS
from hearth.kernels.codes import dequantized
from hearth.kernels.cpu.executor import CpuExecutor, Tiling
from hearth.kernels.packing import PANEL_COLUMNS, packed_bytes
from hearth.models.loader import LoadedSpec
from hearth.models.sample_rows import SampledRows, sample_rows

NUM_ROWS = 4  # that go through a layer
_SAMPLED = CANARY_TOKENS // 2  # outputs of the first and of the last part of a matrix


@dataclass(frozen=True, slots=True)
class Product:
    """One linear layer of the program, and the operation that rounds its rows, if there is one."""

    linear: Linear
    at: int
    rounding: int | None

    @property
    def slots(self) -> tuple[str, ...]:
        """Its matrix, and its bias."""
        return (self.linear.weight, *((self.linear.bias,) if self.linear.bias else ()))


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far outputs are from those of the checkpoint's rows.

    `error`: of their own size (the root of the relative squared error). `slope`: what the expected
    outputs must be multiplied with to come nearest; a wrong scale shows in it.
    """

    error: float
    slope: float


def single_shape(shape: EngineShape) -> EngineShape:
    """Room for CANARY_TOKENS tokens of a few sequences."""
    longest = min(CANARY_TOKENS, shape.limits.max_model_len)
    few_blocks = replace(shape.kv, num_blocks=(CANARY_PLACES,) * len(shape.kv.num_blocks))
    limits = StepLimits(CANARY_TOKENS, CANARY_PLACES, CANARY_TOKENS, longest)
    return EngineShape(limits, few_blocks)


def single_executor(executor: CpuExecutor, shape: EngineShape) -> CpuExecutor:
    """Another executor of the same packed weights, operation by operation, with one thread.

    `shape`: see `single_shape`.
    """
    limits = replace(shape.limits, max_model_len=CANARY_TOKENS)
    isa = executor.info.detail.partition(",")[0]
    tiling = Tiling(frozenset(), "never")
    return CpuExecutor(executor.program, executor.weights, limits, shape.kv, 1, isa, tiling)


def compare_with_checkpoint(single: CpuExecutor, loaded: LoadedSpec) -> str:
    """Compares the first and the last layer, head and embedding; says how many matrices it were.

    `single`: see `single_executor`. Raises CanaryError.
    """
    program = single.program
    products = chosen_products(loaded)
    stacks = [slot for slot in program.slots if slot.stack > 1 and slot.quant.bits]
    stacks = stacks[:2] + stacks[2:][-2:]
    embed = next(op for op in program.ops if isinstance(op, Embed))
    names = {name for product in products for name in product.slots} | {embed.table}
    names |= {slot.name for slot in stacks}
    try:
        sampled = sample_rows(loaded, names, _SAMPLED)
    except WeightsError as error:  # mapped weights serve without their checkpoint
        return f"not compared with the checkpoint: {error}"
    num_compared = 0
    for name, deviation in _deviations(single, products, embed, sampled):
        _judge(program.slot(name), deviation)
        num_compared += 1
    for slot in stacks:
        if slot.name in sampled:
            _judge(slot, _stack_deviation(single, slot, sampled[slot.name]))
            num_compared += 1
    return f"{num_compared} matrices give what the checkpoint's rows give"


def chosen_products(loaded: LoadedSpec) -> list[Product]:
    """The linear layers of the first and of the last layer, and the head."""
    layers = loaded.spec.layers
    products = products_of(loaded.program)
    weights = [product.linear.weight for product in products]
    second = weights.index(layers[1].attention.qkv) if len(layers) > 1 else len(products) - 1
    last = weights.index(layers[-1].attention.qkv)
    chosen = [*products[:second], *products[last:]]
    return list({product.linear.weight: product for product in chosen}.values())


def products_of(program: StepProgram) -> list[Product]:
    """All linear layers, in order."""
    found = []
    for at, op in enumerate(program.ops):
        if isinstance(op, Linear):
            found.append(Product(op, at, rounding_before(program.ops, at, op.x)))
    return found


def rounding_before(ops: Sequence[Op], at: int, x: int) -> int | None:
    """The operation that rounds the rows in buffer `x`, which operation `at` reads, if any."""
    for index in range(at - 1, -1, -1):
        op = ops[index]
        if isinstance(op, Quantize) and op.out == x:
            return index
        if getattr(op, "out", None) == x:
            return None
    return None


def run_product(
    executor: CpuExecutor, product: Product, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the layer makes of float32 rows `x`, [n, in]: [n, out]."""
    program = executor.program
    ops, plan = program.ops, _plan_of(program, len(x))
    if product.rounding is None:
        executor.write_buffer(product.linear.x, x)
    else:
        rounding = ops[product.rounding]
        assert isinstance(rounding, Quantize)
        executor.write_buffer(rounding.x, x)
        executor.execute_part(plan, product.rounding, product.rounding + 1)
    executor.execute_part(plan, product.at, product.at + 1)
    return executor.read_buffer(product.linear.out, len(x))


def fixed_rows(num_rows: int, width: int) -> NDArray[np.float32]:
    """Uniform values of variance 1, always the same; numpy.random takes 25 ms to import."""
    hashed = np.arange(1, num_rows * width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (hashed ^ (hashed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    unit = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    values: NDArray[np.float32] = (unit * 2 - 1) * np.float32(3**0.5)
    return values.reshape(num_rows, width)


def deviation_of(expected: NDArray[np.floating], actual: NDArray[np.float32]) -> Deviation:
    """Of outputs, arrays of one shape; NaN gives an infinite error."""
    one, other = expected.astype(np.float64), actual.astype(np.float64)
    size = float((one**2).sum())
    if not np.isfinite(other).all() or not np.isfinite(size):
        return Deviation(float("inf"), float("nan"))
    if size == 0:
        return Deviation(0.0 if not other.any() else float("inf"), 1.0)
    return Deviation(
        float(np.sqrt(((one - other) ** 2).sum() / size)), float((one * other).sum() / size)
    )


def _plan_of(program: StepProgram, num_rows: int) -> StepPlan:
    tokens = [token % program.vocab_size for token in range(num_rows)]
    layout = Layout(CANARY_TOKENS, 1, 1, num_rows)
    return step_plan([Rows(tokens, 0, 0, num_rows)], layout, len(program.kv_groups))


def _deviations(
    single: CpuExecutor,
    products: Sequence[Product],
    embed: Embed,
    sampled: dict[str, SampledRows],
) -> Iterator[tuple[str, Deviation]]:
    program = single.program
    for product in products:
        if any(name not in sampled for name in product.slots):
            continue
        rows = sampled[product.linear.weight]
        x = fixed_rows(NUM_ROWS, rows.values.shape[1])
        # Not by BLAS, which would keep 32 MiB for it, on whatever node it likes.
        expected = np.einsum("rk,nk->rn", x, rows.values, dtype=np.float64)
        if product.linear.bias:
            bias = sampled[product.linear.bias]
            expected = expected + bias.values[:, 0][rows.indices]
        actual = run_product(single, product, x)[:, rows.indices]
        yield product.linear.weight, deviation_of(expected, actual)
    if embed.table in sampled:
        rows = sampled[embed.table]
        plan = step_plan(
            [Rows(rows.indices.tolist(), 0, 0, 0)],
            Layout(CANARY_TOKENS, 1, 1, len(rows.indices)),
            len(program.kv_groups),
        )
        single.execute_part(plan, 0, program.ops.index(embed) + 1)
        actual = single.read_buffer(embed.out, len(rows.indices))
        yield embed.table, deviation_of(rows.values * np.float32(embed.scale), actual)


def _stack_deviation(executor: CpuExecutor, slot: WeightSlot, rows: SampledRows) -> Deviation:
    """Of the codes of an expert: what they stand for, without a kernel."""
    panel = replace(slot, rows=min(slot.rows, PANEL_COLUMNS), stack=1)
    values = dequantized(panel, executor.weights.packed(slot)[: packed_bytes(panel)])
    count = int((rows.indices < min(_SAMPLED, panel.rows)).sum())
    return deviation_of(rows.values[:count], values[rows.indices[:count]])


def _limit_of(slot: WeightSlot) -> Deviation:
    """The largest error, and distance of the slope from 1, that rounding explains.

    Measured over all families with random weights: 0.3 % where float32 becomes bfloat16, up to
    1.2 % with 8 bits on either side, up to 14 % with 4 bits (slope within 6 %); outliers make them
    larger. Codes of a checkpoint are compared with themselves. Swapped nibbles give 140 %.
    """
    bits = slot.quant.bits
    if not bits:
        return Deviation(0.03, 0.03)
    if bits == 8 or (slot.stored is not None and slot.stored.bits):
        return Deviation(0.15, 0.1)
    return Deviation(0.5, 0.2)


def _judge(slot: WeightSlot, found: Deviation) -> None:
    limit = _limit_of(slot)
    if found.error <= limit.error and abs(found.slope - 1) <= limit.slope:
        return
    kind = "embedding" if slot.kind is SlotKind.TABLE else "matrix"
    raise CanaryError(
        f"the start-up canary: {kind} {slot.name} ({slot.quant.name}) gives outputs that are "
        f"{100 * found.error:.0f} % off those of the checkpoint's rows, {found.slope:.2f} times as "
        f"large; permitted: {100 * limit.error:.0f} %, {1 - limit.slope:.2f} to "
        f"{1 + limit.slope:.2f} times: the model is not served",
        hint="start once with --weight-cache-bytes 0, which packs the weights anew, or with --isa "
        "generic, which shows whether kernels are wrong on this processor; --no-canary serves it "
        "all the same",
    )
