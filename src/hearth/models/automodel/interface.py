"""Our entry in transformers' registries of attention and mask functions, under the name hearth.

The attention function finds what to do in the module that calls it: `attach` puts a `Site` there,
which records the call (`trace`) or computes it over the paged cache (`attention`). So there is no
global state, and any number of models may be loaded. The mask function builds no mask: it hands
transformers' mask predicate on, so that a trace can see what a layer is meant to attend to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

NAME = "hearth"
_SITE = "_hearth_site"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer hands to attention: query, key, value [1, heads, T, head_dim].

    `sinks` [heads]: logits that take part in the softmax without a value. `others`: arguments that
    are not None and that attention does not know.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scale: float
    soft_cap: float
    sinks: torch.Tensor | None
    others: dict[str, Any] = field(default_factory=dict)


class Site(Protocol):
    """What stands at an attention module."""

    def attend(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """The mixed values, [1, T, heads, value_dim]."""
        ...


def register() -> None:
    """Adds both functions to transformers' registries; a second call changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_predicate)


def attach(module: torch.nn.Module, site: Site) -> None:
    """Has `site` answer the attention calls of `module`."""
    setattr(module, _SITE, site)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: mixed values [1, T, heads, value_dim], no weights."""
    scale = arguments.pop("scaling", None)
    soft_cap = arguments.pop("softcap", None)
    sinks = arguments.pop("s_aux", None)
    call = AttentionCall(
        query,
        key,
        value,
        attention_mask,
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        soft_cap=float(soft_cap or 0.0),
        sinks=sinks,
        others={name: value for name, value in arguments.items() if value is not None},
    )
    site: Site = getattr(module, _SITE)
    return site.attend(module, call), None


def mask_predicate(
    batch_size: int, q_length: int, *, mask_function: Any, device: Any = None, **_: Any
) -> torch.Tensor:
    """Transformers' mask interface: an empty tensor that carries `mask_function`."""
    mask = torch.empty((batch_size, 1, q_length, 0), device=device)
    mask.predicate = mask_function  # type: ignore[attr-defined]  # read by `trace` alone
    return mask
