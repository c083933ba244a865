"""Config features that change the arithmetic: refused unless they are neutral or the family's.

The counterpart of the family files, which read what is implemented. A key here is one that some
checkpoint of an otherwise supported architecture may carry; ignoring it would give wrong answers.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from hearth.models.config_json import ConfigJson

# Key → values with which the arithmetic is the plain one.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "compression_config": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "clip_qkv": (None,),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "use_bidirectional_attention": (None, False),
    "alibi": (None, False),
}


def refuse_unimplemented(config: ConfigJson, reads: AbstractSet[str]) -> None:
    """Raises ModelError for the first feature that would change the arithmetic.

    `reads`: the keys that the family itself reads and checks.
    """
    for key, neutral in _NEUTRAL.items():
        if key not in reads and config.values.get(key) not in neutral:
            raise config.error(key, _permitted(neutral), hint=_HINT)
    if "sliding_window" not in reads:
        _refuse_window(config)


def _refuse_window(config: ConfigJson) -> None:
    if config.has("sliding_window") and config.flag("use_sliding_window", default=True):
        raise config.error(
            "sliding_window", "null", hint="this architecture has no sliding-window attention"
        )
    layer_types = config.values.get("layer_types") or []
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        raise config.error("layer_types", '"full_attention" for every layer')


def _permitted(neutral: tuple[object, ...]) -> str:
    texts = [str(value).lower() for value in neutral if value is not None]
    return ", ".join(dict.fromkeys([*texts, "null"]))


_HINT = "not implemented yet; ignoring it would give wrong answers"
