"""llama.cpp through llama-cpp-python's low-level interface: batches as `llama-server` makes them.

Prompts of all sequences go in together, up to 2,048 tokens a call (512 a micro-batch, its
default); then every step takes one token of each sequence. The KV cache is that of its defaults
(f16), made anew for each run, before the clock starts.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as lib
import numpy as np
from protocol import serve, started

BATCH = 2048


@lib.llama_log_callback
def _silent(*_: Any) -> None:
    pass


class LlamaCpp:
    """A mapped GGUF file."""

    def __init__(self, message: dict[str, Any]) -> None:
        lib.llama_log_set(_silent, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._threads = message["threads"]
        params = lib.llama_model_default_params()
        self._model = lib.llama_model_load_from_file(message["model"].encode(), params)
        if not self._model:
            raise OSError(f"llama.cpp cannot load {message['model']}")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))

    def facts(self) -> dict[str, Any]:
        text = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, text, 256)
        return {
            "scheme": text.value.decode(),
            "weight_bytes": int(lib.llama_model_size(self._model)),
            "kv": "f16",
            "system": lib.llama_print_system_info().decode(),
        }

    def _context(self, num_streams: int, length: int) -> Any:
        params = lib.llama_context_default_params()
        padded = -(-length // 256) * 256
        params.n_ctx, params.n_seq_max = num_streams * padded, num_streams
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        params.kv_unified = False
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise MemoryError("llama.cpp makes no context")
        return context

    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        context = self._context(len(prompts), len(prompts[0]) + num_new)
        batch = lib.llama_batch_init(BATCH, 0, 1)
        try:
            started()
            return self._generate(context, batch, prompts, num_new)
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)

    def _generate(
        self, context: Any, batch: Any, prompts: list[list[int]], num_new: int
    ) -> list[list[float]]:
        arrivals: list[list[float]] = [[] for _ in prompts]
        last = [0] * len(prompts)
        items = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for first in range(0, len(items), BATCH):
            self._step(context, batch, items[first : first + BATCH], last, arrivals)
        for number in range(num_new - 1):
            position = len(prompts[0]) + number
            tokens = [(last[s], position, s, True) for s in range(len(prompts))]
            self._step(context, batch, tokens, last, arrivals)
        return arrivals

    def _step(
        self,
        context: Any,
        batch: Any,
        items: list[tuple[int, int, int, bool]],
        last: list[int],
        arrivals: list[list[float]],
    ) -> None:
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        code = lib.llama_decode(context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        for i, (_, _, sequence, wanted) in enumerate(items):
            if wanted:
                logits = lib.llama_get_logits_ith(context, i)
                row = np.ctypeslib.as_array(logits, shape=(self._vocab,))
                last[sequence] = int(row.argmax())
        now = time.monotonic()
        for _, _, sequence, wanted in items:
            if wanted:
                arrivals[sequence].append(now)

    def close(self) -> None:
        lib.llama_model_free(self._model)


if __name__ == "__main__":
    serve(LlamaCpp)
