"""ONNX Runtime GenAI: one generator over a batch of prompts of equal length."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from protocol import serve, started


class OnnxRuntime:
    """A model directory of its own model builder."""

    def __init__(self, message: dict[str, Any]) -> None:
        self._path = Path(message["model"])
        config = genai.Config(str(self._path))
        session = {"session_options": {"intra_op_num_threads": message["threads"]}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = genai.Model(config)

    def facts(self) -> dict[str, Any]:
        files = self._path.glob("model.onnx*")
        return {"weight_bytes": sum(file.stat().st_size for file in files), "kv": "float32"}

    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        params = genai.GeneratorParams(self._model)
        length = len(prompts[0]) + num_new
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=len(prompts)
        )
        generator = genai.Generator(self._model, params)
        started()
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        times = []
        for _ in range(num_new):
            generator.generate_next_token()
            times.append(time.monotonic())
        return [times] * len(prompts)

    def close(self) -> None:
        del self._model


if __name__ == "__main__":
    serve(OnnxRuntime)
