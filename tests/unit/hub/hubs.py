"""What the tests of the hub share: a small model, a quick pull, a record of what was said."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

from tests.support.hub_server import REPO, FakeHub

from hearth.hub.huggingface import HuggingFaceSource
from hearth.hub.modelscope import ModelScopeSource
from hearth.hub.names import parse_name
from hearth.hub.pull import Order, Pulled, pull
from hearth.hub.sources import Source
from hearth.hub.store import Store
from hearth.hub.transport import Retry

QUICK = Retry(attempts=4, backoff_s=0.001, timeout_s=2.0, connect_timeout_s=2.0)
WEIGHTS = "model-00001-of-00002.safetensors"


def model_files(seed: int = 0) -> dict[str, bytes]:
    """Names as repositories have them; contents are noise."""
    noise = random.Random(seed)
    return {
        "config.json": b'{"model_type": "toy"}',
        "tokenizer.json": noise.randbytes(40_000),
        WEIGHTS: noise.randbytes(300_000),
        "model-00002-of-00002.safetensors": noise.randbytes(70_001),
        "model.safetensors.index.json": b"{}",
        "LICENSE": b"do what you like",
        "pytorch_model.bin": noise.randbytes(1000),
        "onnx/model.onnx": noise.randbytes(1000),
        "README.md": b"read me",
    }


NEEDED = {
    "config.json",
    "tokenizer.json",
    WEIGHTS,
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "LICENSE",
}


class Recorder:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = self.done = 0
        self._lock = threading.Lock()

    def begin(self, title: str, total_bytes: int, done_bytes: int) -> None:
        self.total, self.done = total_bytes, done_bytes

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self.done += num_bytes

    def note(self, text: str) -> None:
        with self._lock:
            self.notes.append(text)


def hugging(hub: FakeHub, token: str | None = None) -> HuggingFaceSource:
    return HuggingFaceSource(hub.url, lambda: token)


def scope(hub: FakeHub) -> ModelScopeSource:
    return ModelScopeSource(hub.url, None)


def do_pull(
    root: Path,
    *sources: Source,
    name: str = REPO,
    recorder: Recorder | None = None,
    retry: Retry = QUICK,
    **order: Any,
) -> Pulled:
    observer = Recorder() if recorder is None else recorder
    return pull(Store(root), Order(parse_name(name), retry=retry, **order), sources, observer)


def contents(directory: Path) -> dict[str, bytes]:
    """The model's files; our own notes left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def all_files(root: Path) -> set[str]:
    """Everything below a store, locks left out."""
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }
