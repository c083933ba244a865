"""vLLM's CPU build in bfloat16: its engine stepped by hand, in one process."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)

from protocol import serve
from vllm import LLM, SamplingParams


class Vllm:
    """An LLM with eager execution: compiling takes longer than all rows together."""

    def __init__(self, message: dict[str, Any]) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{message['threads'] - 1}"
        self._llm = LLM(
            model=message["model"],
            dtype="bfloat16",
            max_model_len=message["max_len"],
            max_num_seqs=message["max_streams"],
            max_num_batched_tokens=2048,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            **message["options"],
        )
        self._next = 0

    def facts(self) -> dict[str, Any]:
        return {"kv": "bfloat16"}

    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        engine = self._llm.llm_engine
        how = SamplingParams(max_tokens=num_new, min_tokens=num_new, temperature=0, ignore_eos=True)
        arrivals: dict[str, list[float]] = {}
        for prompt in prompts:
            name = str(self._next)
            self._next += 1
            arrivals[name] = []
            engine.add_request(name, {"prompt_token_ids": prompt}, how)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.monotonic()
            for output in outputs:
                times = arrivals[output.request_id]
                times.extend([now] * (len(output.outputs[0].token_ids) - len(times)))
        return list(arrivals.values())

    def close(self) -> None:
        del self._llm


if __name__ == "__main__":
    serve(Vllm)
