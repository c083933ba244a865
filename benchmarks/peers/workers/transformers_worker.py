"""transformers in bfloat16, eager, with its dynamic cache: a batch of prompts of equal length."""

from __future__ import annotations

import time
from typing import Any

import torch
from protocol import serve
from transformers import AutoModelForCausalLM


class Transformers:
    """AutoModelForCausalLM on the CPU."""

    def __init__(self, message: dict[str, Any]) -> None:
        torch.set_num_threads(message["threads"])
        model = AutoModelForCausalLM.from_pretrained(message["model"], dtype=torch.bfloat16)
        self._model = model.eval()

    def facts(self) -> dict[str, Any]:
        size = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return {"weight_bytes": size, "kv": "bfloat16"}

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        ids, cache, times = torch.tensor(prompts), None, []
        for _ in range(num_new):
            out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            times.append(time.monotonic())
        return [times] * len(prompts)

    def close(self) -> None:
        del self._model


if __name__ == "__main__":
    serve(Transformers)
