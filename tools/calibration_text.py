"""Writes the text of `hearth quantize --calibration builtin`: `python -m tools.calibration_text`.

This project's own documents, English and Chinese, questions and answers of the demo model's
training text, and source code in Python and C++: real text of several kinds under one licence. It
is kept as a file so that a release's quantization does not depend on what else has changed. The
text that models are measured on comes from such documents, too: what it has is left out here.
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path("src/hearth/quant/texts/calibrating.txt")
MEASURED = Path("src/hearth/quant/texts/measuring.txt")
RUN_CHARS = 32  # letters and digits: so many in a row make it the same text
MAX_BYTES_A_FILE = 24_000
DOCUMENTS = (
    "README.md",
    "README.zh-CN.md",
    "docs/architecture.md",
    "docs/performance.md",
    "docs/tuning.md",
    "docs/pull.md",
    "docs/demo-model.md",
    "docs/open-autoglm.md",
)
CONVERSATIONS = (
    "general.txt",
    "engine.txt",
    "network.txt",
    "chat.txt",
    "tasks.txt",
    "capitals.txt",
)
SOURCES = (
    "engine/scheduler.py",
    "engine/kv/blocks.py",
    "models/lower.py",
    "models/safetensors_file.py",
    "serve/http/chat.py",
    "cli/chat.py",
    "kernels/cpu/csrc/kernels_fit.h",
    "kernels/cpu/csrc/pack.cpp",
)


def calibration_text() -> str:
    """All parts, each cut at a line."""
    paths = [Path(name) for name in DOCUMENTS]
    paths += [Path("tools/demo_model/data") / name for name in CONVERSATIONS]
    paths += [Path("src/hearth") / name for name in SOURCES]
    parts = []
    for path in paths:
        text = path.read_bytes()[:MAX_BYTES_A_FILE].decode("utf-8", errors="ignore")
        parts.append(text.rpartition("\n")[0])
    return "\n\n".join(parts) + "\n"


def runs_of(text: str) -> set[str]:
    """All runs of RUN_CHARS letters and digits, whatever stands between them."""
    plain = "".join(character for character in text.lower() if character.isalnum())
    return {plain[i : i + RUN_CHARS] for i in range(len(plain) - RUN_CHARS + 1)}


def without(text: str, other: str) -> str:
    """The lines of a text that have no run in common with another one."""
    taken = runs_of(other)
    kept = [line for line in text.split("\n") if not runs_of(line) & taken]
    return "\n".join(kept)


if __name__ == "__main__":
    text = without(calibration_text(), MEASURED.read_text(encoding="utf-8"))
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET}: {len(text):,} characters")
