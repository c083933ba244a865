"""`hearth quality` against plain numpy on transformers' logits, and what it does with bad input."""

from __future__ import annotations

import errno
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support import texts
from tests.support.executors import require_cpu_library
from tests.support.texts import PROSE, noisy, noisy_everywhere, save_text_model
from tests.unit.text import builders

from hearth.cli.quality_view import write_table
from hearth.core.config import (
    CodesConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    WeightCacheConfig,
)
from hearth.core.errors import CapacityError, ConfigError, KernelError, ModelError
from hearth.engine.text.tokenizer import Tokenizer
from hearth.host.disk import read_disk
from hearth.host.fit import RUNTIME_BYTES
from hearth.host.memory import HostMemory, MemoryFact
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.quant import sides, spool
from hearth.quant.divergence import work_bytes
from hearth.quant.quality import (
    PROMPT_TOKENS,
    Quality,
    QualityRequest,
    equal_length,
    measure_quality,
)

CONTEXT, TOKENS = 64, 300


class Silent:
    def note(self, text: str) -> None:
        pass

    def advance(self, what: str, done: int, total: int) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    require_cpu_library()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("base")
    return path, save_text_model(path)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


def engine(path: Path, quantize: str = "none", **model: Any) -> EngineConfig:
    return EngineConfig(
        ModelConfig(str(path), quantize=quantize, **model), device=DeviceConfig(threads=2)
    )


def measured(
    model: EngineConfig, reference: EngineConfig | None, text: Path, **changes: Any
) -> Quality:
    settings = {"context": CONTEXT, "num_tokens": TOKENS, "num_answers": 3, "answer_tokens": 16}
    request = QualityRequest(model, reference, str(text), **{**settings, **changes})
    return measure_quality(request, Silent())


def sequences(path: Path) -> list[list[int]]:
    ids = Tokenizer.load(path).encode(PROSE)[:TOKENS]
    return [ids[i : i + CONTEXT] for i in range(0, len(ids), CONTEXT)]


def logprobs_of(model: Any, ids: list[int]) -> NDArray[np.float64]:
    """By transformers, of the tokens behind the first: [length − 1, vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double().numpy()
    found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found


def test_figures_are_those_of_transformers_and_numpy(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    path, reference = base
    other = save_text_model(tmp_path, noisy_everywhere(0.02))
    found = measured(engine(tmp_path), engine(path), text)
    divergence = found.divergence
    assert divergence is not None
    p, q, tokens = [], [], []
    for ids in sequences(path):
        p.append(logprobs_of(reference, ids))
        q.append(logprobs_of(other, ids))
        tokens += ids[1:]
    ours, theirs, rows = np.concatenate(p), np.concatenate(q), np.arange(len(tokens))
    kl = (np.exp(ours) * (ours - theirs)).sum(axis=-1)
    assert divergence.num_tokens == len(tokens) == TOKENS - math.ceil(TOKENS / CONTEXT)
    assert divergence.kl.mean == pytest.approx(kl.mean(), rel=1e-4)
    assert divergence.kl_quantiles["99.9 %"] == pytest.approx(np.quantile(kl, 0.999), rel=1e-3)
    own, its = ours[rows, tokens], theirs[rows, tokens]
    assert divergence.reference_perplexity.mean == pytest.approx(math.exp(-own.mean()), rel=1e-4)
    assert divergence.perplexity.mean == pytest.approx(math.exp(-its.mean()), rel=1e-4)
    assert divergence.ln_ratio.mean == pytest.approx((own - its).mean(), rel=1e-3)
    delta = np.exp(its) - np.exp(own)
    assert divergence.rms_delta_p == pytest.approx(math.sqrt((delta**2).mean()), rel=1e-3)
    same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
    assert divergence.top1.mean == pytest.approx(same.mean())
    assert kl.mean() > 1e-3
    assert 0 < same.mean() < 1


def test_greedy_answers_part_where_those_of_transformers_do(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    path, reference = base
    other = save_text_model(tmp_path, noisy_everywhere(0.05))
    found = measured(engine(tmp_path), engine(path), text).greedy
    assert found is not None
    expected = []
    for ids in sequences(path)[:3]:
        prompt = torch.tensor([ids[:32]])
        settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        answers = [
            tuple(m.generate(prompt, attention_mask=mask, **settings)[0, 32:].tolist())
            for m in (reference, other)
        ]
        expected.append(equal_length(*answers))
    assert list(found.equal_tokens) == expected
    assert min(expected) < 16


def test_a_model_differs_from_itself_by_exactly_nothing(base: tuple[Path, Any], text: Path) -> None:
    path, _ = base
    for config in (engine(path), engine(path, "int4")):
        found = measured(config, config, text)
        divergence, greedy, layers = found.divergence, found.greedy, found.layers
        assert divergence is not None
        assert divergence.kl.mean == 0
        assert divergence.kl_quantiles["max"] == 0
        assert divergence.ln_ratio.mean == 0
        assert divergence.top1.mean == 1
        assert greedy is not None
        assert greedy.num_whole == 3
        assert layers is not None
        assert {(layer.own, layer.added_up) for layer in layers.layers} == {(0.0, 0.0)}
        assert {matrix.error for matrix in layers.matrices} == {0.0}


def test_a_head_that_is_multiplied_has_the_divergence_that_follows(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    path, reference = base

    def warmer(model: Any) -> None:
        model.lm_head.weight *= 0.9

    save_text_model(tmp_path, warmer)
    found = measured(engine(tmp_path), engine(path), text)
    logprobs = np.concatenate([logprobs_of(reference, ids) for ids in sequences(path)])
    warm = 0.9 * logprobs
    warm -= np.log(np.exp(warm).sum(axis=-1, keepdims=True))
    kl = (np.exp(logprobs) * (logprobs - warm)).sum(axis=-1)
    assert found.divergence is not None
    assert found.divergence.kl.mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.divergence.top1.mean == 1
    assert found.layers is not None
    assert max(layer.added_up for layer in found.layers.layers) < 1e-12
    assert (found.layers.worst_matrix.layer, found.layers.worst_matrix.name) == (-1, "head")
    assert found.layers.worst_matrix.error == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "module", "name"),
    [
        (0, "self_attn.k_proj", "layers.0.qkv"),
        (1, "mlp.down_proj", "layers.1.down"),
        (2, "self_attn.o_proj", "layers.2.attention_out"),
    ],
)
def test_the_culprit_is_named(
    layer: int, module: str, name: str, base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    save_text_model(tmp_path, noisy(layer, module, 0.3))
    layers = measured(engine(tmp_path), engine(base[0]), text, num_answers=0).layers
    assert layers is not None
    assert layers.worst_layer.layer == layer
    assert (layers.worst_matrix.layer, layers.worst_matrix.name) == (layer, name)
    # The others are the same matrices: what they have is only what went in.
    assert {matrix.error for matrix in layers.matrices[1:]} == {0.0}
    assert [one.own == 0 for one in layers.layers] == [i != layer for i in range(3)]
    assert all((one.added_up > 0) == (one.layer >= layer) for one in layers.layers)


def test_a_matrix_alone_has_the_error_that_numpy_gives_it(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    """Down of layer 1, on the inputs that transformers feeds it with."""
    path, reference = base
    other = save_text_model(tmp_path, noisy(1, "mlp.down_proj", 0.3))
    layers = measured(engine(tmp_path), engine(path), text, num_answers=0).layers
    seen: list[torch.Tensor] = []
    module = reference.model.layers[1].mlp.down_proj
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        reference(torch.tensor([sequences(path)[0]]))
        handle.remove()
        good = module(seen[0])
        bad = other.model.layers[1].mlp.down_proj(seen[0])
    expected = float(((bad - good) ** 2).sum() / (good**2).sum())
    assert layers is not None
    assert layers.worst_matrix.error == pytest.approx(expected, rel=1e-4)


def test_quantization_loses_more_with_fewer_bits(base: tuple[Path, Any], text: Path) -> None:
    path, _ = base
    kl = []
    for scheme in ("int8", "int4"):
        found = measured(engine(path, scheme), engine(path), text)
        assert found.divergence is not None
        kl.append(found.divergence.kl.mean)
    exact = engine(path, "int4", codes=CodesConfig("float32", 32))
    found = measured(exact, engine(path), text)
    assert found.divergence is not None
    assert 0 < kl[0] < found.divergence.kl.mean < kl[1]


def test_chunks_change_no_figure(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = base
    whole = measured(engine(path, "int4"), engine(path), text)
    monkeypatch.setattr(sides, "MOST_STEP_TOKENS", 9)
    parts = measured(engine(path, "int4"), engine(path), text)
    assert parts.divergence is not None
    assert whole.divergence is not None
    assert parts.divergence.kl.mean == pytest.approx(whole.divergence.kl.mean, rel=1e-12)
    assert parts.greedy == whole.greedy


def test_without_a_reference_the_perplexity_is_known(base: tuple[Path, Any], text: Path) -> None:
    path, model = base
    found = measured(engine(path), None, text)
    tokens = [logprobs_of(model, ids)[np.arange(len(ids) - 1), ids[1:]] for ids in sequences(path)]
    expected = math.exp(-np.concatenate(tokens).mean())
    assert found.perplexity.mean == pytest.approx(expected, rel=1e-4)
    assert (found.divergence, found.greedy, found.layers) == (None, None, None)


def test_other_vocabularies_are_refused(base: tuple[Path, Any], text: Path, tmp_path: Path) -> None:
    save_text_model(tmp_path, vocab_size=416)
    with pytest.raises(ConfigError, match="vocabulary of 416 tokens and the reference one of 408"):
        measured(engine(tmp_path), engine(base[0]), text)
    same_size = tmp_path / "same"
    save_text_model(same_size)
    tokenizer = builders.byte_level()
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(same_size / "tokenizer.json"))
    with pytest.raises(ConfigError, match="tokenizers of MODEL and the reference have different"):
        measured(engine(same_size), engine(base[0]), text)


def test_tokenizers_that_cut_otherwise_are_refused(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    from tokenizers import pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    save_text_model(tmp_path)
    tokenizer = builders.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="cut this text differently"):
        measured(engine(tmp_path), engine(base[0]), text)
    tokenizer = builders.byte_level()
    tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="put different tokens before a text"):
        measured(engine(tmp_path), engine(base[0]), text)
    # Alone it is measured behind that token, which is not scored.
    found = measured(engine(tmp_path), None, text, num_tokens=63)
    assert (found.num_sequences, found.num_tokens) == (1, 63)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 257}, "--context is 257; MODEL supports 256 tokens"),
        ({"context": 1}, "--context is 1; permitted: 2 or more"),
        ({"num_tokens": 1}, "--tokens is 1; permitted"),
        ({"answer_tokens": 250}, "282 tokens are needed for greedy answers"),
        ({"answer_tokens": 0}, "--answer-tokens is 0"),
    ],
)
def test_lengths_that_do_not_go_are_refused(
    changes: dict[str, int], message: str, base: tuple[Path, Any], text: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        measured(engine(base[0]), engine(base[0]), text, **changes)


def test_bad_texts_are_refused_before_a_weight_is_read(
    base: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hearth.quant.quality.build_side", None)
    bad = tmp_path / "bad.txt"
    for content, message in ((b"", "has 0 tokens"), (b"\xff", "not UTF-8"), (b"a\0b", "is binary")):
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            measured(engine(base[0]), engine(base[0]), bad)


def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hearth.quant.quality.build_side", None)
    little = HostMemory((MemoryFact(8 << 20, "a test"),))
    monkeypatch.setattr(sides, "read_memory", lambda: little)
    with pytest.raises(CapacityError, match="side by side") as error:
        measured(engine(base[0]), engine(base[0]), text)
    assert "--against none" in str(error.value.hint)


def between(first: EngineConfig, second: EngineConfig) -> HostMemory:
    """As much as the larger of two models needs, and a little more: too little for both."""
    lengths = sides.Lengths(CONTEXT, PROMPT_TOKENS, 16, 3)
    both = sides.plan_sides([("MODEL", first), ("the reference", second)], lengths).sides
    most = max(side.num_bytes for side in both)
    least = min(side.num_bytes for side in both)
    shared = work_bytes(both[0].layout.step_tokens, texts.VOCAB_SIZE) + RUNTIME_BYTES
    return HostMemory((MemoryFact(most + shared + least * 3 // 4, "a test"),))


@pytest.mark.parametrize("quantize", ["int4", "none"])
def test_one_after_the_other_gives_the_very_same_figures(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quantize: str,
) -> None:
    """With a head of its own and with a tied one."""
    sizes: dict[str, Any] = {"num_hidden_layers": 4, "tie_word_embeddings": quantize == "none"}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_text_model(tmp_path / "one", noisy_everywhere(0.02), **sizes)
    save_text_model(tmp_path / "two", **sizes)
    cache = WeightCacheConfig(directory=str(tmp_path / "cache"))
    model, reference = (
        replace(config, weight_cache=cache)
        for config in (engine(tmp_path / "one", quantize), engine(tmp_path / "two"))
    )
    together = measured(model, reference, text)
    assert not together.one_by_one
    little = between(model, reference)
    monkeypatch.setattr(sides, "read_memory", lambda: little)
    loads, real = [], sides.build_side

    weights: list[weakref.ref[CpuWeights]] = []

    def build(plan: sides.PlannedSide, progress: sides.Progress) -> sides.Side:
        loads.append(plan.label)
        assert all(one() is None for one in weights), "the first model is still in memory"
        side = real(plan, progress)
        assert isinstance(side.executor, CpuExecutor)
        weights.append(weakref.ref(side.executor.weights))
        return side

    monkeypatch.setattr("hearth.quant.quality.build_side", build)
    monkeypatch.setattr("hearth.quant.one_by_one.build_side", build)
    apart = measured(model, reference, text)
    assert loads == ["the reference", "MODEL"]
    assert "together they need" in apart.one_by_one
    assert apart.divergence == together.divergence  # to the last bit
    assert apart.divergence is not None
    assert apart.divergence.kl.mean > 0
    assert apart.greedy == together.greedy
    assert apart.layers == together.layers
    assert apart.layers is not None
    assert apart.num_sequences == together.num_sequences
    write_table(apart)
    assert f"one after the other: {apart.one_by_one}" in capsys.readouterr().out
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("fits", [True, False])
def test_time_that_is_over_ends_behind_a_sequence(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    config = engine(base[0], "int4")
    if not fits:
        little = between(config, engine(base[0]))
        monkeypatch.setattr(sides, "read_memory", lambda: little)
    found = measured(config, engine(base[0]), text, most_seconds=0.0)
    assert bool(found.one_by_one) is not fits
    assert found.num_sequences == 1
    assert found.num_tokens == CONTEXT - 1
    assert found.is_whole


def test_layers_are_left_out_where_the_disk_has_no_room_for_them(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = engine(base[0], "int4")
    little = between(config, engine(base[0]))
    monkeypatch.setattr(sides, "read_memory", lambda: little)
    monkeypatch.setattr(spool.Spool, "free_bytes", property(lambda _: 1000))
    found = measured(config, engine(base[0]), text)
    assert found.layers is None
    assert "more than half of what is free" in found.layers_missing
    assert found.divergence is not None


def test_a_disk_without_room_for_the_first_model_is_an_error(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = WeightCacheConfig(directory=str(tmp_path))
    config, reference = (
        replace(engine(base[0], scheme), weight_cache=cache) for scheme in ("int4", "none")
    )
    little = between(config, reference)
    monkeypatch.setattr(sides, "read_memory", lambda: little)
    real = read_disk
    monkeypatch.setattr(spool, "read_disk", lambda path: replace(real(path), free_bytes=9))
    with pytest.raises(CapacityError, match=rf"needs .* of disk: {tmp_path} has .* free"):
        measured(config, reference, text)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(spool, "read_disk", real)
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(CapacityError, match=f"{tmp_path} has become full"):
        measured(config, reference, text)
    assert not list(tmp_path.iterdir())


def test_a_text_that_changes_between_two_models_is_an_error(
    base: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = engine(base[0], "int4")
    little = between(config, engine(base[0]))
    monkeypatch.setattr(sides, "read_memory", lambda: little)
    changing = tmp_path / "text.txt"
    changing.write_text(PROSE, encoding="utf-8")

    class Meddler(Silent):
        def note(self, text: str) -> None:
            if text.startswith("measuring"):
                changing.write_text(PROSE.replace("fox", "cat"), encoding="utf-8")

    request = QualityRequest(config, engine(base[0]), str(changing), CONTEXT, TOKENS, 0)
    with pytest.raises(ConfigError, match="has changed"):
        measure_quality(request, Meddler())


def test_an_interrupt_of_the_first_model_leaves_nothing(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = WeightCacheConfig(directory=str(tmp_path))
    config, reference = (
        replace(engine(base[0], scheme), weight_cache=cache) for scheme in ("int4", "none")
    )
    little = between(config, reference)
    monkeypatch.setattr(sides, "read_memory", lambda: little)

    class Impatient(Silent):
        def advance(self, what: str, done: int, total: int) -> None:
            if what == "tokens":
                raise KeyboardInterrupt

    request = QualityRequest(config, reference, str(text), CONTEXT, TOKENS, 0)
    with pytest.raises(KeyboardInterrupt):
        measure_quality(request, Impatient())
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_an_error(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    def broken(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")

    save_text_model(tmp_path, broken)
    with pytest.raises(KernelError, match="the model gives logits that are not finite"):
        measured(engine(tmp_path), engine(base[0]), text)


def test_a_missing_model_is_an_error(base: tuple[Path, Any], text: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        measured(engine(tmp_path / "none"), engine(base[0]), text)


def test_an_interrupt_gives_what_is_known_by_then(
    base: tuple[Path, Any], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    execute = CpuExecutor.execute

    def interrupted(self: CpuExecutor, plan: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6:  # the third sequence, before the reference
            raise KeyboardInterrupt
        return execute(self, plan)

    monkeypatch.setattr(CpuExecutor, "execute", interrupted)
    found = measured(engine(base[0], "int4"), engine(base[0]), text)
    assert not found.is_whole
    assert found.num_tokens == 2 * (CONTEXT - 1)
    assert found.divergence is not None
    assert found.canary == ()
    steps = 5
    with pytest.raises(KeyboardInterrupt):  # nothing is known yet
        measured(engine(base[0], "int4"), engine(base[0]), text)


def test_models_with_other_layers_are_compared_without_layers(
    base: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    save_text_model(tmp_path, num_hidden_layers=2)
    found = measured(engine(tmp_path), engine(base[0]), text)
    assert found.divergence is not None
    assert found.layers is None
    assert found.layers_missing == "the models have different layers"


def test_windows_and_mixtures_are_measured(tmp_path: Path, text: Path) -> None:
    """Layers with windows have the whole sequence in their cache here."""
    from tests.support.hf_models import CASES, build_model

    for family in ("mistral", "gemma3", "glm4_moe"):
        case = next(one for one in CASES if one.family == family)
        sizes = {**case.sizes, "vocab_size": texts.VOCAB_SIZE}
        path = tmp_path / family
        model = build_model(replace(case, sizes=sizes))
        model.save_pretrained(path)
        builders.byte_level().save(str(path / "tokenizer.json"))
        found = measured(engine(path, "int8"), engine(path), text)
        expected = [
            logprobs_of(model, ids)[np.arange(len(ids) - 1), ids[1:]] for ids in sequences(path)
        ]
        assert found.divergence is not None
        perplexity = found.divergence.reference_perplexity.mean
        assert perplexity == pytest.approx(math.exp(-np.concatenate(expected).mean()), rel=1e-3)
        assert 0 < found.divergence.kl.mean < 0.3
        assert found.layers is not None
        assert len(found.layers.layers) == sizes["num_hidden_layers"]
        names = {matrix.name for matrix in found.layers.matrices}
        assert any("expert" in name for name in names) == (family == "glm4_moe")
        assert 0 < found.layers.worst_matrix.error < 0.01


def test_the_reference_executor_is_measured_too(base: tuple[Path, Any], text: Path) -> None:
    plain = replace(engine(base[0]), device=DeviceConfig(1, "reference"))
    found = measured(plain, engine(base[0]), text)
    assert found.divergence is not None
    assert found.divergence.kl.mean < 1e-9
    assert found.layers_missing == "only the C++ kernels run single operations"
