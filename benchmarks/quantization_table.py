"""What each way to quantize a model costs, in one table: hearth's schemes and llama.cpp's.

    python -m benchmarks.quantization_table MODEL --text FILE [--only TEXT …] [--json FILE]

Loss is that of the kernels as they serve (bfloat16 keys and values, int8 activations where the
matrices are codes), against the same weights in float32 arithmetic, over pieces of the text. All
models get the same token ids. llama.cpp (in the environment that `python -m benchmarks.peers
install llama.cpp` makes) first has to give the reference's perplexity with its own F16 and BF16
weights: were that different, no other line of it could be compared.

Quantizing runs in a process of its own: seconds without imports, peak of resident memory with
everything. `file` is all files of weights; `memory` what the kernels hold.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.divergence_scores import Logits, Reference, Score, spread
from benchmarks.machine import machine
from benchmarks.peers.environments import python_of, versions
from benchmarks.quantization_rows import (
    PEER,
    Made,
    Row,
    Setting,
    make_checkpoint,
    make_gguf,
    peer_logits,
    rows_of,
    write_gguf,
)
from tokenizers import Tokenizer

from hearth.core.config import CodesConfig
from hearth.core.errors import HearthError
from hearth.core.spec import DType
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.plain_steps import forced_logits, layout_of
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.models.gguf.view import view_of
from hearth.models.loader import load_model_spec
from hearth.models.weights import load_weights

STEP_TOKENS = 512
LIMITS = StepLimits(STEP_TOKENS, 1, STEP_TOKENS, 4096)
LAYOUT = layout_of(32, STEP_TOKENS, 1, STEP_TOKENS)
HEADER = (
    "| weights | method | group | perplexity | KL, nats | same best | file, MB | memory, MB "
    "| quantized in, s | peak, MB |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the table, or why there is none."""

    row: Row
    made: Made
    memory_bytes: int
    score: Score

    def line(self) -> str:
        """In Markdown."""
        score, made = self.score, self.made
        cells = [
            f"{100 * score.change.mean:+.3f} ± {100 * score.change.error:.3f} %",
            f"{score.kl.mean:.2e} ± {score.kl.error:.0e}",
            f"{100 * score.top1.mean:.2f} %",
            _megabytes(made.file_bytes),
            _megabytes(self.memory_bytes),
            f"{made.seconds:.1f}" if made.peak_bytes else "",
            _megabytes(made.peak_bytes),
        ]
        return f"{_begin(self.row)} | {' | '.join(cells)} |"


def _begin(row: Row) -> str:
    group = str(row.group_size) if row.group_size else ""
    return f"| {row.name} | {row.method} | {group}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f}" if num_bytes else ""


@contextmanager
def executor_of(
    model: Path, row: Row, kv_dtype: DType, threads: int
) -> Iterator[tuple[CpuExecutor, int]]:
    """The model as it is served, and the bytes that its weights take. Raises HearthError."""
    codes = CodesConfig(row.activations, row.group_size or 128)
    loaded = load_model_spec(model, row.dtype, quantize=row.quantize, codes=codes)
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights)
    kv = KvConfig(LAYOUT.block_size, (LAYOUT.num_blocks,) * len(loaded.program.kv_groups), kv_dtype)
    with closing(CpuExecutor(loaded.program, weights, LIMITS, kv, threads)) as executor:
        yield executor, weights.num_bytes


def each_logits(executor: CpuExecutor, sequences: Sequence[Sequence[int]]) -> Iterator[Logits]:
    """Of one sequence at a time."""
    for one in sequences:
        yield next(forced_logits(executor, one, LAYOUT))


class Table:
    """One model and text; rows are made, measured and removed one after the other."""

    def __init__(self, setting: Setting, sequences: list[list[int]]) -> None:
        self._setting = setting
        self._sequences = sequences
        self._vocab_size = load_model_spec(setting.model).spec.vocab_size
        self._reference = Reference(setting.work / "reference.f32", sequences, self._vocab_size)

    def begin(self) -> Score:
        """Computes the reference, and returns what it says of the text. Raises HearthError."""
        exact = Row("FP32", dtype="float32")
        setting = self._setting
        with executor_of(setting.model, exact, DType.FLOAT32, setting.threads) as (executor, _):
            self._reference.fill(each_logits(executor, self._sequences))
        return self._reference.own_score()

    def measure(self, row: Row) -> Result:
        """One line. Raises HearthError."""
        return self._peer(row) if row.kind == PEER else self._own(row)

    def _own(self, row: Row) -> Result:
        setting = self._setting
        out = setting.work / "checkpoint"
        shutil.rmtree(out, ignore_errors=True)
        try:
            made = make_checkpoint(setting, row, out)
            model = out if row.scheme else setting.model
            with executor_of(model, row, DType.BFLOAT16, setting.threads) as (executor, size):
                score = self._reference.score(each_logits(executor, self._sequences))
        finally:
            shutil.rmtree(out, ignore_errors=True)
        return Result(row, made, size, score)

    def _peer(self, row: Row) -> Result:
        setting = self._setting
        plain = write_gguf(setting)
        made = make_gguf(setting, row, plain)
        try:
            if row.is_read_here:
                return self._peers_file(row, made)
            with peer_logits(setting, made.path, self._sequences, self._vocab_size) as logits:
                score = self._reference.score(logits)
        finally:
            if made.path != plain:
                made.path.unlink()
        return Result(row, made, made.file_bytes, score)

    def _peers_file(self, row: Row, made: Made) -> Result:
        """What llama.cpp wrote, read and multiplied here."""
        setting = self._setting
        view = view_of(made.path, {"XDG_CACHE_HOME": str(setting.work)})
        with executor_of(view, row, DType.BFLOAT16, setting.threads) as (executor, size):
            score = self._reference.score(each_logits(executor, self._sequences))
        return Result(row, replace(made, seconds=0.0, peak_bytes=0), size, score)

    def close(self) -> None:
        """Removes the reference."""
        self._reference.close()


def record_of(
    setting: Setting, text: Path, base: Score, results: Sequence[Result], refused: dict[str, str]
) -> dict[str, Any]:
    """Everything, for a file."""
    peers = python_of(PEER, setting.cache_dir).exists()
    return {
        "machine": machine(),
        "text": text.name,
        "tokens": base.num_tokens,
        "perplexity": asdict(base.perplexity),
        "versions": versions(PEER, setting.cache_dir) if peers else {},
        "rows": [
            {
                **{key: value for key, value in asdict(one.row).items() if value},
                **asdict(replace(one.made, path=Path(one.made.path.name)), dict_factory=_plain),
                "memory_bytes": one.memory_bytes,
                **asdict(one.score),
            }
            for one in results
        ],
        "refused": refused,
    }


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in items if key != "path"}


def run(setting: Setting, rows: Sequence[Row], text: Path, sequences: list[list[int]]) -> Any:
    """Prints the table as it grows; returns its record. Raises HearthError of the reference."""
    results, refused = [], {}
    with closing(Table(setting, sequences)) as table:
        base = table.begin()
        print(
            f"{base.num_tokens:,} tokens in {len(sequences)} sequences; perplexity of the weights "
            f"in float32: {base.perplexity.mean:.3f} ± {base.perplexity.error:.3f}\n\n{HEADER}",
            flush=True,
        )
        for row in rows:
            try:
                result = table.measure(row)
            except HearthError as error:
                refused[row.label] = str(error)
                print(f"{_begin(row)} | left out: {error} |", flush=True)
            else:
                results.append(result)
                print(result.line(), flush=True)
    return record_of(setting, text, base, results, refused)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="what loss is measured on")
    parser.add_argument("--calibration", type=Path, help="for gptq and awq; another text")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=STEP_TOKENS, help="of each, in tokens")
    parser.add_argument("--only", nargs="+", default=[""], help="rows with one of these in them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="for what is made and removed again")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/hearth-bench"))
    parser.add_argument("--json", type=Path, help="where the record goes")
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.model / "tokenizer.json"))
    ids = tokenizer.encode(given.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    sequences = spread(ids, given.sequences, min(given.length, STEP_TOKENS))
    rows = [row for row in rows_of() if any(part in row.label for part in given.only)]
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        setting = Setting(
            given.model, Path(work), given.cache_dir.expanduser(), given.threads, given.calibration
        )
        record = run(setting, rows, given.text, sequences)
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
