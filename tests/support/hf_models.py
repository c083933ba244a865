"""Random Hugging Face models of odd sizes, and what transformers makes of them.

A case is built once a session, saved as a checkpoint, and run through `generate` and a forward
pass; every parity test, at whatever level, compares with the same `Expected`. Weights have a
deviation of 3/√(fan-in), so that attention is sharp and logits are well apart; norm weights and
biases are random, so that a norm or a bias left out shows. The file is long because most of it is
the cases' sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

NUM_NEW_TOKENS = 64
# Prompt lengths of the batch of 16; the first one also runs alone.
PROMPT_LENGTHS = (23, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 40, 64, 71)

_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "glm4_moe": (Glm4MoeConfig, Glm4MoeForCausalLM),
}


@dataclass(frozen=True)
class ModelCase:
    """A model by its sizes; `seed` is chosen so that greedy answers vary (`Expected` checks it)."""

    name: str
    family: str
    seed: int
    sizes: dict[str, Any] = field(hash=False)
    max_shard_size: str = "1GB"


CASES = (
    ModelCase(
        "llama-3x3-untied",
        "llama",
        2,
        {
            "hidden_size": 60,
            "intermediate_size": 100,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "vocab_size": 199,
            "num_hidden_layers": 2,
        },
    ),
    ModelCase(
        "llama-12x3-tied-bias",
        "llama",
        19,
        {
            "hidden_size": 96,
            "intermediate_size": 134,
            "num_attention_heads": 12,
            "num_key_value_heads": 3,
            "head_dim": 24,
            "vocab_size": 256,
            "num_hidden_layers": 2,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    ModelCase(
        "llama-7x1-mlp-bias-sharded",
        "llama",
        6,
        {
            "hidden_size": 112,
            "intermediate_size": 96,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "vocab_size": 311,
            "num_hidden_layers": 3,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        max_shard_size="200KB",
    ),
    ModelCase(
        "glm4-4x1-tied",
        "glm4",
        141,
        {
            "hidden_size": 64,
            "intermediate_size": 90,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": 257,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
        },
    ),
    ModelCase(
        "glm4-7x1-untied-sharded",
        "glm4",
        7,
        {
            "hidden_size": 70,
            "intermediate_size": 128,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "vocab_size": 300,
            "num_hidden_layers": 2,
        },
        max_shard_size="100KB",
    ),
    ModelCase(
        "glm4-5x5-no-bias",
        "glm4",
        0,
        {
            "hidden_size": 80,
            "intermediate_size": 70,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 20,
            "vocab_size": 211,
            "num_hidden_layers": 2,
            "attention_bias": False,
        },
    ),
    ModelCase(
        "qwen2-6x2-tied-some-windows",
        "qwen2",
        311,
        {
            "hidden_size": 72,
            "intermediate_size": 100,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 223,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 20,
            "max_window_layers": 1,
        },
    ),
    ModelCase(
        "mistral-4x2-window",
        "mistral",
        50,
        {
            "hidden_size": 64,
            "intermediate_size": 90,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 20,
            "vocab_size": 241,
            "num_hidden_layers": 2,
            "sliding_window": 24,
        },
    ),
    ModelCase(
        "qwen3-5x1-bias",
        "qwen3",
        9,
        {
            "hidden_size": 70,
            "intermediate_size": 96,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 18,
            "vocab_size": 229,
            "num_hidden_layers": 2,
            "attention_bias": True,
        },
    ),
    ModelCase(
        "phi3-4x2-partial-window",
        "phi3",
        3,
        {
            "hidden_size": 96,
            "intermediate_size": 102,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 233,
            "num_hidden_layers": 2,
            "sliding_window": 33,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    ModelCase(
        "gemma2-4x2-caps-windows",
        "gemma2",
        13,
        {
            "hidden_size": 64,
            "intermediate_size": 90,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 20,
            "vocab_size": 239,
            "num_hidden_layers": 3,
            "sliding_window": 24,
            "query_pre_attn_scalar": 4,
            "tie_word_embeddings": False,
            "attn_logit_softcapping": 6.0,
            "final_logit_softcapping": 20.0,
        },
    ),
    ModelCase(
        "gemma3-6x1-two-rotations",
        "gemma3",
        168,
        {
            "hidden_size": 60,
            "intermediate_size": 102,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "head_dim": 18,
            "vocab_size": 227,
            "num_hidden_layers": 4,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 14,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 4.0,
                    "rope_theta": 20000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
    ModelCase(
        "qwen3-moe-4x2-some-layers",
        "qwen3_moe",
        41,
        {
            "hidden_size": 68,
            "intermediate_size": 90,
            "moe_intermediate_size": 70,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 20,
            "vocab_size": 251,
            "num_hidden_layers": 3,
        },
    ),
    ModelCase(
        "glm4-moe-4x2-groups-shared",
        "glm4_moe",
        15,
        {
            "hidden_size": 64,
            "intermediate_size": 90,
            "moe_intermediate_size": 40,
            "n_routed_experts": 12,
            "n_group": 3,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "n_shared_experts": 2,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "attention_bias": True,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 237,
            "num_hidden_layers": 3,
        },
    ),
)
# Differs from the others in its names only: compared by the mutants' suite alone.
MIXTRAL = ModelCase(
    "mixtral-6x2-sharded",
    "mixtral",
    3,
    {
        "hidden_size": 72,
        "intermediate_size": 65,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 219,
        "num_hidden_layers": 2,
    },
    max_shard_size="100KB",
)


@dataclass(frozen=True)
class Expected:
    """What transformers says about a case: prompts, greedy tokens, and logits at every position.

    `logits[i]` is [prompt + new tokens, vocabulary], of the prompt followed by the greedy tokens.
    """

    path: Path
    prompts: tuple[tuple[int, ...], ...]
    greedy: tuple[tuple[int, ...], ...]
    logits: tuple[NDArray[np.float32], ...]

    def sequence(self, index: int) -> tuple[int, ...]:
        """Prompt and greedy answer."""
        return self.prompts[index] + self.greedy[index]

    def smallest_gap(self) -> float:
        """Between the two best logits, over every position at which a greedy token was taken."""
        gaps = []
        for prompt, rows in zip(self.prompts, self.logits):
            best = np.sort(rows[len(prompt) - 1 : -1], axis=-1)
            gaps.append(float((best[:, -1] - best[:, -2]).min()))
        return min(gaps)

    def num_distinct(self) -> int:
        """Different tokens in an answer, the least over all of them."""
        return min(len(set(answer)) for answer in self.greedy)


def build_model(case: ModelCase) -> Any:
    """The transformers model of a case, float32, with random weights from its seed."""
    config_class, model_class = _CLASSES[case.family]
    common = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"max_position_embeddings": 512, **common, **case.sizes}
    # The default grouped product of the experts wants widths that are multiples of four.
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    config = config_class(**plain, **sizes)
    config.eos_token_id = None
    torch.manual_seed(case.seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.2)
        for name, parameter in model.named_parameters():
            _randomize(name, parameter, tied=config.tie_word_embeddings)
            if case.family.startswith("gemma"):
                _adapt_to_gemma(name, parameter, tied=config.tie_word_embeddings)
    return model


def expect(
    case: ModelCase,
    path: Path,
    prepare: Callable[[Any], None] | None = None,
    build: Callable[[ModelCase], Any] = build_model,
    lengths: Sequence[int] = PROMPT_LENGTHS,
) -> Expected:
    """Saves the case's checkpoint in `path` and records what transformers answers.

    `prepare` may change the model after it was saved; `build` makes it; `lengths` are those
    of the prompts.
    """
    model = build(case)
    model.save_pretrained(path, max_shard_size=case.max_shard_size)
    if prepare is not None:
        prepare(model)
    random = np.random.default_rng(case.seed)
    vocab_size = case.sizes["vocab_size"]
    prompts = tuple(tuple(int(t) for t in random.integers(0, vocab_size, n)) for n in lengths)
    greedy = _generate(model, prompts)
    with torch.no_grad():
        logits = tuple(
            model(torch.tensor([prompt + answer])).logits[0].numpy()
            for prompt, answer in zip(prompts, greedy)
        )
    return Expected(path, prompts, greedy, logits)


def _randomize(name: str, parameter: torch.Tensor, *, tied: bool) -> None:
    """An embedding that is the head as well is made small, or every token would repeat itself."""
    if parameter.ndim >= 2:
        scale = 3.0 * parameter.shape[-1] ** -0.5
        if "embed_tokens" in name:
            scale = scale / 2 if tied else 1.0
        parameter.normal_(0.0, scale)
    elif name.endswith("bias"):
        parameter.normal_(0.0, 0.5)
    elif "q_norm" in name:  # with normed heads, attention is as sharp as this makes it
        parameter.normal_(3.0, 0.5)
    else:
        parameter.normal_(1.0, 0.2)


def _adapt_to_gemma(name: str, parameter: torch.Tensor, *, tied: bool) -> None:
    """Norms multiply by 1 + w; the embedding, multiplied by the root of the width, is kept small
    beside the normed branches, and a tied head's final norm makes up for it in the logits.
    """
    if tied and name == "model.norm.weight":
        parameter += 10.0
    elif name.endswith("norm.weight"):
        parameter -= 1.0
    if "embed_tokens" in name:
        parameter /= 12.0


def _generate(model: Any, prompts: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """`generate` for all prompts at once, padded on the left; the first one also alone."""
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts)])
    mask = torch.tensor([[0] * pad + [1] * len(prompt) for pad, prompt in zip(padding, prompts)])
    settings = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=mask, **settings)
    alone_ids = torch.tensor([prompts[0]])
    alone = model.generate(alone_ids, attention_mask=torch.ones_like(alone_ids), **settings)
    answers = tuple(tuple(row[longest:].tolist()) for row in out)
    assert answers[0] == tuple(alone[0, len(prompts[0]) :].tolist())
    return answers
