"""OpenVINO GenAI's continuous batching, driven step by step through its own requests.

No CACHE_DIR: with one, loading takes longer here, and the first request as long as without.
`options`: properties of the CPU plugin.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import serve

BLOCK_TOKENS = 32  # of the CPU plugin


class OpenVino:
    """A ContinuousBatchingPipeline on the CPU."""

    def __init__(self, message: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        blocks = -(-message["max_len"] // BLOCK_TOKENS) + 1
        scheduler.num_kv_blocks = max(message["kv_tokens"] // BLOCK_TOKENS + blocks, blocks)
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = message["max_streams"]
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        model = Path(message["model"])
        properties = {"INFERENCE_NUM_THREADS": message["threads"], **message["options"]}
        self._model = model
        self._pipe = genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties, {})
        self._next = 0

    def facts(self) -> dict[str, Any]:
        size = (self._model / "openvino_model.bin").stat().st_size
        return {"weight_bytes": size, "kv": "u8 (the plugin's default)"}

    def _config(self, num_new: int) -> genai.GenerationConfig:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_new
        config.ignore_eos = True
        config.do_sample = False
        return config

    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        arrivals: list[list[float]] = [[] for _ in prompts]
        handles = []
        for prompt in prompts:
            ids = ov.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipe.add_request(self._next, ids, self._config(num_new)))
            self._next += 1
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            now = time.monotonic()
            for handle, times in zip(handles, arrivals):
                while handle.can_read():
                    for output in handle.read().values():
                        times.extend([now] * len(output.generated_ids))
        return arrivals

    def close(self) -> None:
        del self._pipe


if __name__ == "__main__":
    serve(OpenVino)
