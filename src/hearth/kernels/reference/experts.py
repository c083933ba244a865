"""The operation `Experts` in plain torch: which experts serve a row, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from hearth.core.spec import RouterScoring, RouterSpec

# Keeps a sum of sigmoid scores that all vanish from dividing by zero, as transformers does.
LEAST_SUM = 1e-20


@dataclass(frozen=True)
class Routes:
    """The experts of each row by ascending index, and their weights; [T, top_k] each."""

    experts: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """The matrices of all experts: [E, 2 · intermediate, hidden] and [E, hidden, intermediate]."""

    gate_up: torch.Tensor
    down: torch.Tensor


def route(logits: torch.Tensor, router: RouterSpec, bias: torch.Tensor | None) -> Routes:
    """Chooses the experts of each row of logits, [T, E]."""
    is_softmax = router.scoring is RouterScoring.SOFTMAX
    scores = logits.softmax(dim=-1) if is_softmax else logits.sigmoid()
    rank = scores if bias is None else scores + bias
    if router.num_groups > 1:
        rank = _of_best_groups(rank, router)
    elif is_softmax and bias is None:  # the same order, without what the softmax rounds away
        rank = logits
    experts = _best(rank, router.top_k).sort(dim=-1).values
    weights = scores.gather(-1, experts)
    if router.normalize:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / (total if is_softmax else total + LEAST_SUM)
    return Routes(experts, weights * router.scale)


def mix(
    x: torch.Tensor,
    routes: Routes,
    weights: ExpertWeights,
    activate: Callable[[torch.Tensor], torch.Tensor],
    rounded: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The weighted sum of each row's experts, [T, hidden].

    `rounded`: what becomes of the weighted inputs of `down`, [T · top_k, intermediate], before it.
    """
    if not len(x):  # a step without wanted rows
        return x.new_zeros(0, weights.down.shape[1])
    chosen = routes.experts.flatten()
    pairs = chosen.argsort(stable=True)  # of row and expert, in the order of the experts
    row = pairs // routes.experts.shape[-1]
    counts = chosen.bincount(minlength=weights.down.shape[0]).tolist()
    parts = []
    for expert, rows in enumerate(torch.split(x[row], counts)):
        if counts[expert]:
            gate, up = functional.linear(rows, weights.gate_up[expert]).chunk(2, dim=-1)
            parts.append(activate(gate) * up)
    gated = torch.cat(parts) * routes.weights.flatten()[pairs, None]
    if rounded is not None:  # in the order of the rows
        places = pairs.argsort()
        gated = rounded(gated[places])[pairs]
    outs = [
        functional.linear(rows, weights.down[expert])
        for expert, rows in enumerate(torch.split(gated, counts))
        if counts[expert]
    ]
    return x.new_zeros(len(x), weights.down.shape[1]).index_add(0, row, torch.cat(outs))


def _best(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the largest values; of equals the lower index, which `topk` does not promise."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _of_best_groups(rank: torch.Tensor, router: RouterSpec) -> torch.Tensor:
    """The ranks, −∞ for experts of groups that are not among the best."""
    size = router.num_experts // router.num_groups
    groups = rank.reshape(*rank.shape[:-1], router.num_groups, size)
    of_groups = groups.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
    is_out = torch.ones_like(of_groups, dtype=torch.bool)
    is_out = is_out.scatter(-1, _best(of_groups, router.top_groups), False)
    return groups.masked_fill(is_out[..., None], float("-inf")).flatten(-2)
