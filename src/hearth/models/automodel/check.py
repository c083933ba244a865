"""Before a model is served: paged, chunked and in company, does it answer as it does by itself?

Two short random prompts go through the model's own eager attention, each alone and whole, and
through ours in chunks that mix both, over a small cache of scattered blocks. A model that mixes
tokens in a way that the trace could not see gives other logits then, and is refused here instead of
answering wrongly.
"""

from __future__ import annotations

import torch

from hearth.core.errors import ModelError
from hearth.core.step import KvConfig
from hearth.kernels.reference.kv import GroupTables, PagedKv, SequenceRows, StepTensors
from hearth.models.automodel import interface
from hearth.models.automodel.executor import CheckReport, PagedModel

LENGTHS = (19, 11)
# (sequence, rows) of each step; together they cover LENGTHS.
STEPS = (((0, 7),), ((0, 1), (1, 4)), ((1, 1), (0, 1)), ((0, 10), (1, 6)))
BLOCK_SIZE = 4
# Largest error of a row's logits, relative to their deviation, that rounding explains by itself.
FLOOR = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
# Where it is above the floor: how many times the difference between two ways of transformers' own
# (eager and sdpa) it may be, and where a comparison says nothing any more.
NOISE_FACTOR, CEILING = 4.0, 0.3


def check_paged(paged: PagedModel, seed: int = 0) -> CheckReport:
    """Compares; leaves the model with our attention. Raises ModelError with the numbers.

    `paged` must be without --window, which makes the answers others on purpose.
    """
    prompts = _prompts(paged, seed)
    with torch.no_grad():
        expected = _own(paged, prompts, "eager")
        if not torch.isfinite(expected).all():
            raise ModelError(f"{paged.spec.architecture} gives logits that are not finite")
        error = _relative_error(_paged(paged, prompts), expected)
        permitted, noise = FLOOR[paged.model.dtype], 0.0
        if error > permitted:
            noise = _noise(paged, prompts, expected)
            permitted = min(CEILING, max(permitted, NOISE_FACTOR * noise))
    if not error <= permitted:  # NaN is no pass
        raise ModelError(
            f"{paged.spec.architecture} cannot be served through transformers: with paged "
            f"attention its logits differ by {error:.2g} of their deviation from those of its own "
            f"attention; permitted: {permitted:.2g}",
            hint=_hint(noise),
        )
    return CheckReport(error, permitted)


def _hint(noise: float) -> str:
    if noise * NOISE_FACTOR < CEILING:
        return "it mixes tokens in a way that is not known here"
    return (
        f"transformers' own eager and sdpa attention differ by {noise:.2g} here, too much to tell: "
        "try --dtype float32"
    )


def _prompts(paged: PagedModel, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vocab_size, device = paged.spec.program.vocab_size, paged.spec.device
    longest = paged.spec.max_position_embeddings
    return [
        torch.randint(0, vocab_size, (min(n, longest),), generator=generator).to(device)
        for n in LENGTHS
    ]


def _own(paged: PagedModel, prompts: list[torch.Tensor], implementation: str) -> torch.Tensor:
    """Logits of all rows by transformers' own attention, each prompt alone, one after the other."""
    model = paged.model
    model.set_attn_implementation(implementation)
    try:
        rows = [
            model(
                input_ids=prompt[None],
                position_ids=torch.arange(len(prompt), device=prompt.device)[None],
                use_cache=False,
            ).logits[0]
            for prompt in prompts
        ]
    finally:
        model.set_attn_implementation(interface.NAME)
    return torch.cat(rows).float()


def _noise(paged: PagedModel, prompts: list[torch.Tensor], expected: torch.Tensor) -> float:
    """How far transformers' two attentions are apart; 0 where the model has one only."""
    try:
        return _relative_error(_own(paged, prompts, "sdpa"), expected)
    except ValueError:
        return 0.0


def _paged(paged: PagedModel, prompts: list[torch.Tensor]) -> torch.Tensor:
    """The same by our attention, in the chunks of STEPS."""
    groups = paged.spec.program.kv_groups
    num_blocks = sum(-(-n // BLOCK_SIZE) for n in LENGTHS)
    config = KvConfig(BLOCK_SIZE, (num_blocks,) * len(groups), paged.spec.dtype.value)
    kv = PagedKv(groups, config, paged.spec.device)
    scattered = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1))
    split = -(-LENGTHS[0] // BLOCK_SIZE)
    tables = tuple(part.to(paged.spec.device) for part in (scattered[:split], scattered[split:]))
    collected: list[list[torch.Tensor]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    for chunks in STEPS:
        kept = [(s, min(n, len(prompts[s]) - done[s])) for s, n in chunks]
        kept = [(s, n) for s, n in kept if n > 0]
        if not kept:
            continue
        logits = paged.logits(_step(prompts, kept, done, tables, len(groups)), kv)
        row = 0
        for sequence, n in kept:
            collected[sequence].append(logits[row : row + n])
            done[sequence] += n
            row += n
    return torch.cat([row for rows in collected for row in rows]).float()


def _step(
    prompts: list[torch.Tensor],
    chunks: list[tuple[int, int]],
    done: list[int],
    tables: tuple[torch.Tensor, ...],
    num_groups: int,
) -> StepTensors:
    """One step over the next rows of the sequences, all of whose logits are wanted."""
    device = prompts[0].device
    positions = [torch.arange(done[s], done[s] + n, device=device) for s, n in chunks]
    slots = [
        tables[s][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
        for (s, _), p in zip(chunks, positions, strict=True)
    ]
    sequences: list[SequenceRows] = []
    row = 0
    for s, n in chunks:
        sequences.append(SequenceRows(row, row + n, done[s]))
        row += n
    listed = tuple(tables[s] for s, _ in chunks)
    group = GroupTables(torch.cat(slots), listed, (0,) * len(chunks))
    flat = torch.cat(positions)
    return StepTensors(
        tokens=torch.cat([prompts[s][done[s] : done[s] + n] for s, n in chunks]),
        positions=flat.expand(3, -1),
        sequences=tuple(sequences),
        logit_rows=torch.arange(row, device=device),
        groups=(group,) * num_groups,
    )


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest root mean square error of a row, over the row's deviation."""
    deviation = expected.std(-1).clamp_min(1e-30)
    error = (actual - expected).square().mean(-1).sqrt() / deviation
    return float(error.max()) if bool(torch.isfinite(error).all()) else float("nan")
