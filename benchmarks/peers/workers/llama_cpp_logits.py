"""llama.cpp's weights and logits, for comparing what quantization loses; in its environment.

    llama_cpp_logits.py write SOURCE OUT.gguf        a model directory as GGUF, in bfloat16
    llama_cpp_logits.py quantize IN.gguf OUT.gguf Q4_0    → JSON: seconds, peak_bytes
    llama_cpp_logits.py logits MODEL.gguf THREADS    sequences of token ids in, a line of JSON each;
                                                     float32 [length, vocabulary] out, raw

Token ids go in as they are: no tokenizer of llama.cpp takes part.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from convert_gguf import write
from protocol import status_bytes


@lib.llama_log_callback
def _silent(*_: Any) -> None:
    pass


def quantize(source: str, out: str, kind: str) -> None:
    """By llama.cpp's own quantizer and its choice of tensors."""
    params = lib.llama_model_quantize_default_params()
    params.nthread = len(os.sched_getaffinity(0))
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    begin = time.monotonic()
    code = lib.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
    seconds = time.monotonic() - begin
    if code != 0:
        raise SystemExit(f"llama_model_quantize returned {code}")
    print(json.dumps({"seconds": seconds, "peak_bytes": status_bytes(os.getpid(), "VmHWM")}))


class Model:
    """A mapped GGUF file and a context for one sequence at a time."""

    def __init__(self, path: str, threads: int, length: int) -> None:
        self._model = lib.llama_model_load_from_file(
            path.encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise OSError(f"llama.cpp cannot load {path}")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        params = lib.llama_context_default_params()
        params.n_ctx = -(-length // 256) * 256
        params.n_batch = params.n_ubatch = length
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise MemoryError("llama.cpp makes no context")
        self._batch = lib.llama_batch_init(length, 0, 1)

    def logits(self, tokens: list[int]) -> Any:
        """float32 [length, vocabulary]; valid until the next call."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self._batch.token[i], self._batch.pos[i], self._batch.logits[i] = token, i, True
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0
        code = lib.llama_decode(self._context, self._batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        first = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(first, shape=(len(tokens), self._vocab))


def stream(path: str, threads: int) -> None:
    """Answers until its input ends."""
    model = None
    for line in sys.stdin:
        tokens = json.loads(line)
        model = model or Model(path, threads, len(tokens))
        sys.stdout.buffer.write(model.logits(tokens).tobytes())
        sys.stdout.buffer.flush()


def main() -> None:
    """See the module."""
    lib.llama_log_set(_silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    match sys.argv[1:]:
        case ["write", source, out]:
            write(Path(source), Path(out))
        case ["quantize", source, out, kind]:
            quantize(source, out, kind)
        case ["logits", path, threads]:
            stream(path, int(threads))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
