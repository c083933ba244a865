"""Sampling without a sort: greedy rows and draws by temperature, with log-probabilities.

Logits are read in parts of fixed size, so that what a row gets does not depend on the others. The
first kernel leaves of each part its largest logit, that one's lowest id, and the sums of
exp(logit − largest) and of exp((logit − largest) / temperature); the second adds them in order, in
float64, draws, and walks through the one part in which the draw falls. Rows with top_k, top_p or
min_p, edits, given or best tokens go through `sampling`.
"""

# Kernels have types of their own, and as many arguments as tensors need.
# ruff: noqa: PLR0913, PLR0917
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hearth.kernels.triton.plan_buffer import SamplingTensors
from hearth.kernels.triton.sampling import SampledTensors

PART = 4096
_LEAST = tl.constexpr(-87.0)


@triton.jit
def _uniform(seed_low, seed_high, position, choice):
    """The first word of Philox4x32-10 as (word >> 8 + ½) · 2⁻²⁴, float64."""
    a: tl.constexpr = 0xD2511F53
    b: tl.constexpr = 0xCD9E8D57
    c0 = position.to(tl.uint32, bitcast=True)
    c1 = choice.to(tl.uint32, bitcast=True)
    c2 = c0 & 0
    c3 = c0 & 0
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        first = c0.to(tl.uint64) * a
        second = c2.to(tl.uint64) * b
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = (second & 0xFFFFFFFF).to(tl.uint32)
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = (first & 0xFFFFFFFF).to(tl.uint32)
        k0 = ((k0.to(tl.uint64) + 0x9E3779B9) & 0xFFFFFFFF).to(tl.uint32)
        k1 = ((k1.to(tl.uint64) + 0xBB67AE85) & 0xFFFFFFFF).to(tl.uint32)
    return ((c0 >> 8).to(tl.float64) + 0.5) * 5.9604644775390625e-08


@triton.jit
def _uniform_kernel(seed_low, seed_high, position, choice, out, count, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    u = _uniform(
        tl.load(seed_low + row, mask=inside, other=0),
        tl.load(seed_high + row, mask=inside, other=0),
        tl.load(position + row, mask=inside, other=0),
        tl.load(choice + row, mask=inside, other=0),
    )
    tl.store(out + row, u, mask=inside)


@triton.jit
def _parts_kernel(
    logits, temperature, tops, ids, sums, weights, vocab, stride, num_parts, PART: tl.constexpr
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = part * PART + tl.arange(0, PART)
    inside = token < vocab
    values = tl.load(logits + row * stride + token, mask=inside, other=float("-inf"))
    top = tl.max(values, axis=0)
    place = row * num_parts + part
    tl.store(tops + place, top)
    tl.store(ids + place, tl.min(tl.where(inside & (values == top), token, vocab), axis=0))
    # ∞ less ∞ would be NaN: a part without any finite logit counts as nothing.
    base = tl.where(tl.abs(top) < float("inf"), top, 0.0)
    less = values - base
    tl.store(sums + place, tl.sum(tl.exp(less), axis=0))
    heat = tl.load(temperature + row)
    power = less / tl.where(heat > 0, heat, 1.0)
    weight = tl.where(power < _LEAST, 0.0, tl.exp(power))
    tl.store(weights + place, tl.sum(weight, axis=0))


@triton.jit
def _finish_kernel(
    logits, temperature, uniforms, num_logprobs, tops, ids, sums, weights, tokens, logprobs,
    vocab, stride, num_parts, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    is_part = part < num_parts
    place = row * num_parts + part
    top_of = tl.load(tops + place, mask=is_part, other=float("-inf"))
    top = tl.max(top_of, axis=0)
    base = tl.where(tl.abs(top) < float("inf"), top, 0.0)
    id_of = tl.load(ids + place, mask=is_part, other=vocab)
    token = tl.min(tl.where(top_of == top, id_of, vocab), axis=0)
    scale = tl.exp((top_of - base).to(tl.float64))
    own = tl.load(sums + place, mask=is_part, other=0.0).to(tl.float64)
    total = tl.sum(tl.where(is_part, own * scale, 0.0), axis=0)
    log_sum = tl.log(tl.where(tl.abs(top) < float("inf"), total, 1.0))
    heat = tl.load(temperature + row)
    if (heat > 0) & (tl.abs(top) < float("inf")):
        power = (top_of - base) / heat
        far = tl.where(power < _LEAST, 0.0, tl.exp(power)).to(tl.float64)
        weight_of = tl.load(weights + place, mask=is_part, other=0.0).to(tl.float64) * far
        running = tl.cumsum(tl.where(is_part, weight_of, 0.0), axis=0)
        target = tl.load(uniforms + row) * tl.sum(weight_of, axis=0)
        # The last part with any weight, should rounding leave none beyond the target.
        last = tl.max(tl.where(weight_of > 0, part, 0), axis=0)
        chosen = tl.minimum(tl.sum((running <= target).to(tl.int32), axis=0), last)
        before = tl.sum(tl.where(part < chosen, weight_of, 0.0), axis=0)
        member = tl.arange(0, PART)
        inside = chosen * PART + member < vocab
        values = tl.load(
            logits + row * stride + chosen * PART + member, mask=inside, other=float("-inf")
        )
        power = (values - base) / heat
        weight = tl.where(power < _LEAST, 0.0, tl.exp(power)).to(tl.float64)
        walked = tl.cumsum(weight, axis=0)
        index = tl.sum((walked <= target - before).to(tl.int32), axis=0)
        last = tl.max(tl.where(weight > 0, member, 0), axis=0)
        token = chosen * PART + tl.minimum(index, last)
    tl.store(tokens + row, token)
    value = tl.load(logits + row * stride + token)
    logprob = ((value - base).to(tl.float64) - log_sum).to(tl.float32)
    is_wanted = tl.load(num_logprobs + row) >= 0
    tl.store(logprobs + row, tl.where(is_wanted, logprob, float("nan")))


def uniforms(how: SamplingTensors) -> torch.Tensor:
    """See `sampling.uniforms`; one launch. Allocates [R] float64."""
    count = how.position.shape[0]
    out = torch.empty(count, dtype=torch.float64, device=how.position.device)
    if count:
        _uniform_kernel[(triton.cdiv(count, 32),)](
            how.seed_low, how.seed_high, how.position, how.choice, out, count, ROWS=32
        )
    return out


def sample_without_sort(logits: torch.Tensor, how: SamplingTensors) -> SampledTensors:
    """One token a row of [R, vocabulary] float32, and its log-probability, in three launches.

    Temperatures alone: no filter, no edit, nothing given, no best tokens. Allocates [R] results.
    """
    count, vocab = logits.shape
    num_parts = triton.cdiv(vocab, PART)
    floats = torch.empty((3, count, num_parts), dtype=torch.float32, device=logits.device)
    ids = torch.empty((count, num_parts), dtype=torch.int32, device=logits.device)
    tokens = torch.empty(count, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(count, dtype=torch.float32, device=logits.device)
    tops, sums, weights = floats
    if count:
        _parts_kernel[(count, num_parts)](
            logits, how.temperature, tops, ids, sums, weights, vocab, logits.stride(0), num_parts,
            PART=PART, enable_fp_fusion=False,
        )  # fmt: skip
        _finish_kernel[(count,)](
            logits, how.temperature, uniforms(how), how.num_logprobs, tops, ids, sums, weights,
            tokens, logprobs, vocab, logits.stride(0), num_parts,
            PARTS=triton.next_power_of_2(num_parts), PART=PART, enable_fp_fusion=False,
        )  # fmt: skip
    return SampledTensors(tokens, logprobs)
