"""The same context gives the same logits, bit for bit, however it came to be computed.

One ledger per model and precision takes the hash of every row of every run: other company, other
budgets, prefix hits, preemptions, resumed requests, drafts that are right or wrong, another number
of threads, operations fused or not, keys split or not. Sampled with a temperature as well as
greedily; an answer must equal the request's answer in every other run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.drafters import LyingDrafter
from tests.support.engines import AuditExecutor, EngineSizes, build_engine
from tests.support.executors import require_cpu_library
from tests.support.toy_engine import Driver
from tests.unit.kernels.programs import ISAS

from hearth.core.config import CodesConfig
from hearth.core.request import Request, SamplingParams
from hearth.core.step import Executor, KvConfig, StepLimits, StepPlan, StepResult
from hearth.kernels.cpu.executor import Split
from hearth.kernels.fuse import Pattern
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights

VOCABULARY = 199
MAX_MODEL_LEN = 192
NUM_RUNS = 20
NONE = frozenset[Pattern]()
SPLITS: tuple[Split, ...] = ("auto", "never", "always")

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 112,
    "intermediate_size": 100,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
}
GLM4: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "hidden_size": 96,
    "intermediate_size": 134,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 24,
    "attention_bias": True,
}
# Every third request has none; the others cover greedy and sampled rows.
PENALTIES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3, "bad_words": ((7,), (1, 2))},
    {"frequency_penalty": 0.4, "presence_penalty": -0.3, "logit_bias": ((5, 1.5),)},
)
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 80,
    "intermediate_size": 192,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 20,
    "use_sliding_window": True,
    "sliding_window": 40,
    "max_window_layers": 1,
}
GEMMA2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 72,
    "intermediate_size": 90,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "query_pre_attn_scalar": 1,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
    "sliding_window": 33,
    "tie_word_embeddings": False,
}
GLM4_MOE: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "hidden_size": 72,
    "intermediate_size": 90,
    "moe_intermediate_size": 40,
    "n_routed_experts": 12,
    "n_group": 3,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
COMMON = {
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@dataclass(frozen=True)
class Run:
    """One way to compute the requests."""

    sizes: EngineSizes
    threads: int
    order: tuple[int, ...]
    gaps: tuple[int, ...]  # steps made before each request is submitted
    cancelled: frozenset[int]
    num_resumed: tuple[int, ...]  # tokens that each brings along, as after a crash
    patterns: frozenset[Pattern]  # operations that run in the same tiles
    split: Split  # whether the keys of a sequence are shared out among threads
    draft_seed: int | None  # None: nothing is drafted


def random_run(random: np.random.Generator, num_requests: int) -> Run:
    """Any company, any budget; every other run has a cache that forces preemption."""
    is_tight = random.integers(2) == 0
    sizes = EngineSizes(
        budget=int(random.choice([1, 3, 7, 17, 64, 100])),
        max_num_seqs=int(random.choice([1, 3, 16])),
        num_blocks=-(-MAX_MODEL_LEN // 16) + (1 if is_tight else 120),
        prefix_caching=bool(random.integers(2)),
        max_model_len=MAX_MODEL_LEN,
    )
    count = int(random.integers(1, num_requests + 1))
    order = tuple(int(i) for i in random.permutation(num_requests)[:count])
    gaps = tuple(int(g) for g in random.choice([0, 0, 0, 1, 5], count))
    cancelled = frozenset(int(i) for i in order if random.integers(8) == 0)
    num_resumed = tuple(int(n) for n in random.choice([0, 0, 0, 1, 17], count))
    threads = int(random.integers(1, 3))
    patterns = frozenset(p for p in Pattern if random.integers(4)) if random.integers(4) else NONE
    split = SPLITS[random.integers(len(SPLITS))]
    draft_seed = int(random.integers(100)) if random.integers(2) else None
    return Run(sizes, threads, order, gaps, cancelled, num_resumed, patterns, split, draft_seed)


def requests_of(random: np.random.Generator) -> list[Request]:
    """Prompts of many lengths, half of them with shared beginnings; greedy and sampled."""
    shared = [tuple(int(t) for t in random.integers(0, VOCABULARY, 130)) for _ in range(2)]
    requests = []
    for number, length in enumerate((1, 2, 15, 16, 17, 31, 33, 48, 63, 65, 80, 129)):
        prompt = shared[number // 2 % 2][:length]
        if number % 3 == 0:  # leaves the shared text at its last token
            prompt = (*prompt[:-1], int(random.integers(VOCABULARY)))
        sampling = SamplingParams(
            temperature=0.8 * (number % 2),
            top_p=0.95,
            seed=number,
            num_prompt_logprobs=0 if number % 4 == 2 else -1,
            **PENALTIES[number % len(PENALTIES)],
        )
        requests.append(Request(f"r{number}", prompt, 60, sampling))
    return requests


def load(
    path: Path,
    config: dict[str, Any],
    dtype: str,
    quantize: str = "none",
    activations: str = "auto",
) -> LoadedSpec:
    (path / "config.json").write_text(json.dumps({**COMMON, **config}))
    return load_model_spec(path, dtype, quantize=quantize, codes=CodesConfig(activations))


class BatchDependent:
    """An executor whose bits depend on the company that a row has, as most libraries' do."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.program, self.info = inner.program, inner.info

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._inner.execute(plan)
        assert result.hashes is not None
        return replace(result, hashes=result.hashes ^ np.uint64(len(plan.tokens) > 16))

    def close(self) -> None:
        self._inner.close()


class Audit:
    """All runs of one model in one precision."""

    def __init__(
        self,
        loaded: LoadedSpec,
        *,
        isa: str = "auto",
        falsify: bool = False,
        kv_dtype: str | None = None,  # None: that of the weights
    ) -> None:
        from hearth.kernels.cpu.weights import CpuWeights

        self._loaded = loaded
        self._falsify = falsify
        self._isa = isa
        self._kv_dtype = kv_dtype or str(loaded.dtype)
        self._weights = CpuWeights(loaded.program)
        load_weights(loaded, self._weights, "dummy", seed=5)
        if loaded.codes.activations == "int8-residual":  # an outlier: some groups keep them
            for layer in loaded.spec.layers:
                norm = loaded.program.slot(layer.mlp_norm.weight)
                self._weights.packed(norm).view(np.float32)[3] *= 100
        self._ledger: dict[bytes, int] = {}
        self._answers: dict[str, list[int]] = {}
        self._scores: dict[str, list[float]] = {}  # of the prompts that ask
        self.num_rows = 0
        self.num_preemptions = 0
        self.num_resumed = 0
        self.num_hit_tokens = 0
        self.num_draft_tokens = self.num_accepted_tokens = 0

    @property
    def num_contexts(self) -> int:
        """Different contexts that were ever computed."""
        return len(self._ledger)

    def run_all(self, runs: list[Run], requests: list[Request]) -> None:
        """See `run`."""
        for run in runs:
            self.run(run, requests)

    @property
    def num_distinct_tokens(self) -> int:
        """Different tokens in all answers."""
        return len({token for answer in self._answers.values() for token in answer})

    @property
    def num_scored_prompts(self) -> int:
        """Prompts whose log-probabilities were told."""
        return len(self._scores)

    def run(self, run: Run, requests: list[Request]) -> None:
        """Computes the requests in this way; every difference is an AssertionError."""
        from hearth.kernels.cpu.executor import CpuExecutor, Tiling

        sizes = run.sizes
        limits = StepLimits(sizes.budget, sizes.budget, sizes.budget, sizes.max_model_len)
        kv = KvConfig(
            sizes.block_size,
            (sizes.num_blocks,) * len(self._loaded.program.kv_groups),
            self._kv_dtype,
        )
        inner: Executor = CpuExecutor(
            self._loaded.program,
            self._weights,
            limits,
            kv,
            run.threads,
            self._isa,
            Tiling(run.patterns, run.split),
        )
        if self._falsify:
            inner = BatchDependent(inner)
        auditor = AuditExecutor(inner, kv, self._ledger)
        seed = run.draft_seed
        drafter = None if seed is None else LyingDrafter(self._answers, seed)
        engine = build_engine(auditor, sizes, drafter)
        driver = Driver(engine)
        for index, gap, num_resumed in zip(run.order, run.gaps, run.num_resumed):
            for _ in range(gap):
                driver.step()
            request = requests[index]
            known = tuple(self._answers.get(request.request_id, ())[:num_resumed])
            driver.submit(replace(request, generated=known))
            driver.outcomes[request.request_id].tokens += known
            self.num_resumed += bool(known)
        for index in run.cancelled:
            driver.step()
            engine.cancel(requests[index].request_id)
        driver.run()
        assert auditor.differing == [], run
        for index in set(run.order) - run.cancelled:
            name = requests[index].request_id
            outcome = driver.outcomes[name]
            tokens, scores = outcome.tokens, outcome.scores
            assert self._answers.setdefault(name, tokens) == tokens, (name, run)
            if scores:  # a resumed request has had them before
                assert self._scores.setdefault(name, scores) == scores, (name, run)
                assert len(scores) == len(requests[index].prompt) - 1
        stats = engine.stats()
        self.num_rows += auditor.num_repeated
        self.num_preemptions += stats.num_preemptions
        self.num_hit_tokens += stats.num_prefix_hit_tokens
        self.num_draft_tokens += stats.num_draft_tokens
        self.num_accepted_tokens += stats.num_accepted_tokens
        engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [LLAMA, GLM4, QWEN3, GEMMA2, GLM4_MOE],
    ids=["llama", "glm4", "qwen3", "gemma2", "glm4_moe"],
)
def test_a_context_has_the_same_logits_in_every_run(
    tmp_path: Path, config: dict[str, Any], dtype: str
) -> None:
    require_cpu_library()
    audit = Audit(load(tmp_path, config, dtype))
    random = np.random.default_rng(7)
    requests = requests_of(random)
    audit.run_all([random_run(random, len(requests)) for _ in range(NUM_RUNS)], requests)
    print(
        f"{audit.num_rows} rows of {audit.num_contexts} contexts, "
        f"{audit.num_preemptions} preemptions, {audit.num_hit_tokens} tokens from the cache, "
        f"{audit.num_accepted_tokens} of {audit.num_draft_tokens} drafted tokens accepted"
    )
    assert audit.num_rows > 2 * audit.num_contexts
    assert audit.num_preemptions > 2
    assert audit.num_hit_tokens > 0
    assert audit.num_resumed > 0
    assert 100 < audit.num_accepted_tokens < audit.num_draft_tokens - 100
    assert audit.num_scored_prompts == 3
    assert audit.num_distinct_tokens > 50, "answers too monotonous to mean something"


@pytest.mark.parametrize(
    ("quantize", "activations"),
    [("int4", "auto"), ("int8", "auto"), ("fp8", "auto"), ("int4", "int8-residual")],
    ids=["int4", "int8", "fp8", "int4-residual"],
)
@pytest.mark.parametrize("config", [LLAMA, GLM4_MOE], ids=["llama", "glm4_moe"])
def test_quantized_weights_keep_it_too(
    tmp_path: Path, config: dict[str, Any], quantize: str, activations: str
) -> None:
    audit = Audit(load(tmp_path, config, "bfloat16", quantize, activations))
    random = np.random.default_rng(11)
    requests = requests_of(random)
    audit.run_all([random_run(random, len(requests)) for _ in range(NUM_RUNS // 2)], requests)
    assert audit.num_rows > audit.num_contexts
    assert audit.num_preemptions > 0
    assert 50 < audit.num_accepted_tokens < audit.num_draft_tokens - 20
    assert audit.num_distinct_tokens > 50


@pytest.mark.parametrize("config", [QWEN3, GEMMA2], ids=["qwen3", "gemma2"])
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_other_instruction_sets_keep_it_too(
    tmp_path: Path, isa: str, config: dict[str, Any]
) -> None:
    audit = Audit(load(tmp_path, config, "float32"), isa=isa)
    random = np.random.default_rng(11)
    requests = requests_of(random)
    audit.run_all([random_run(random, len(requests)) for _ in range(NUM_RUNS // 2)], requests)
    assert audit.num_rows > audit.num_contexts
    assert audit.num_preemptions > 0


@pytest.mark.parametrize(
    ("kv_dtype", "quantize", "config"),
    [
        ("int8", "none", LLAMA),
        ("int8", "int4", GLM4),
        ("fp8", "int8", QWEN3),
        ("fp8", "none", GEMMA2),
        ("int4", "none", GEMMA2),
        ("int4", "int8", LLAMA),
    ],
    ids=[
        "int8-llama",
        "int8-glm4-w4",
        "fp8-qwen3-w8",
        "fp8-gemma2",
        "int4-gemma2",
        "int4-llama-w8",
    ],
)
def test_keys_and_values_as_codes_keep_it_too(
    tmp_path: Path, config: dict[str, Any], quantize: str, kv_dtype: str
) -> None:
    audit = Audit(load(tmp_path, config, "bfloat16", quantize), kv_dtype=kv_dtype)
    random = np.random.default_rng(11)
    requests = requests_of(random)
    audit.run_all([random_run(random, len(requests)) for _ in range(NUM_RUNS // 2)], requests)
    assert audit.num_rows > audit.num_contexts
    assert audit.num_preemptions > 0
    assert audit.num_hit_tokens > 0
    assert 50 < audit.num_accepted_tokens < audit.num_draft_tokens - 20
    assert audit.num_distinct_tokens > 50


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_codes_keep_it_on_other_instruction_sets(tmp_path: Path, isa: str, kv_dtype: str) -> None:
    audit = Audit(load(tmp_path, QWEN3, "float32"), isa=isa, kv_dtype=kv_dtype)
    random = np.random.default_rng(11)
    requests = requests_of(random)
    audit.run_all([random_run(random, len(requests)) for _ in range(NUM_RUNS // 4)], requests)
    assert audit.num_rows > audit.num_contexts


def test_the_audit_notices_an_executor_whose_bits_depend_on_the_batch(tmp_path: Path) -> None:
    require_cpu_library()
    audit = Audit(load(tmp_path, LLAMA, "float32"), falsify=True)
    random = np.random.default_rng(7)
    requests = requests_of(random)
    runs = [random_run(random, len(requests)) for _ in range(NUM_RUNS)]
    with pytest.raises(AssertionError, match="position"):
        audit.run_all(runs, requests)
