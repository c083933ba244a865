"""The GPU's executor on the CPU gives what the reference gives, however the work is cut.

Through plain torch operations, which is quick; one step goes through Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tests.support.triton_cpu")

from numpy.typing import NDArray  # noqa: E402
from tests.contract.plan_builder import (  # noqa: E402
    Chunk,
    HowToSample,
    PlanBuilder,
    Track,
    generate,
    teacher_forced,
)
from tests.support.executors import Setup, build_executor  # noqa: E402
from tests.support.hf_models import CASES, expect  # noqa: E402

from hearth.cli.settings import BUILT_IN_DIR  # noqa: E402
from hearth.core.errors import KernelError  # noqa: E402
from hearth.core.step import KvConfig, StepLimits, StepPlan, StepResult  # noqa: E402
from hearth.kernels.reference.executor import ReferenceExecutor  # noqa: E402
from hearth.kernels.triton.executor import DeviceChoice, TritonExecutor  # noqa: E402
from hearth.kernels.triton.graphs import Graph, GraphBook, graph_sizes  # noqa: E402
from hearth.kernels.triton.kernels import Kernels, plain_kernels, triton_kernels  # noqa: E402
from hearth.kernels.triton.plan_buffer import StepTensors  # noqa: E402
from hearth.kernels.triton.weights import TritonWeights  # noqa: E402
from hearth.models.loader import LoadedSpec, load_model_spec  # noqa: E402
from hearth.models.weights import load_weights  # noqa: E402

TOLERANCE = 1e-5  # of the largest logit
NAMES = ("llama-12x3-tied-bias", "glm4-4x1-tied", "qwen3-5x1-bias", "qwen2-6x2-tied-some-windows")
PROMPTS = (list(range(3, 40)), [7], list(range(50, 85)), [9, 8, 7, 6, 5])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedSpec:
    return checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def checkpoint(name: str, path: Path) -> LoadedSpec:
    case = next(case for case in CASES if case.name == name)
    return load_model_spec(expect(case, path).path)


def both(loaded: LoadedSpec, **sizes: int) -> tuple[TritonExecutor, ReferenceExecutor]:
    setup = Setup(loaded, **sizes)  # type: ignore[arg-type]  # of whole numbers
    own, reference = build_executor("triton", setup), build_executor("reference", setup)
    assert isinstance(own, TritonExecutor)
    assert isinstance(reference, ReferenceExecutor)
    return own, reference


def builder(loaded: LoadedSpec) -> PlanBuilder:
    return PlanBuilder(16, 256, num_groups=len(loaded.program.kv_groups))


def assert_close(own: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> None:
    assert own is not None
    assert other is not None
    assert own.shape == other.shape
    assert np.abs(own - other).max() <= TOLERANCE * np.abs(other).max()


def assert_alike(own: StepResult, other: StepResult) -> None:
    assert_close(own.logits, other.logits)
    assert own.tokens.tolist() == other.tokens.tolist()
    np.testing.assert_allclose(own.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("budget", [7, 64])
def test_logits_equal_the_reference_in_chunks_of_any_size(loaded: LoadedSpec, budget: int) -> None:
    own, other = (
        teacher_forced(executor, builder(loaded), PROMPTS, budget)
        for executor in both(loaded, max_tokens=budget)
    )
    for a, b in zip(own, other):
        assert_close(a, b)


def test_greedy_answers_equal_the_reference(loaded: LoadedSpec) -> None:
    own, other = (
        generate(executor, builder(loaded), PROMPTS, 20, 64)
        for executor in both(loaded, max_tokens=64)
    )
    assert own == other


def test_rows_of_drafts_and_of_scored_prompts_equal_the_reference(loaded: LoadedSpec) -> None:
    """Several wanted rows of a sequence; given tokens, with ranks and the best tokens."""
    results = []
    for executor in both(loaded, max_tokens=64):
        tracks, b = [Track([5, 6, 7, 8, 9, 10, 11]), Track([3, 2, 1])], builder(loaded)
        executor.execute(b.plan([Chunk(tracks[0], 3), Chunk(tracks[1], 2)]))
        how = HowToSample(temperature=0.8, top_k=7, top_p=0.9, seed=3)
        plan = b.plan([Chunk(tracks[0], 4, (0, 1, 2, 3)), Chunk(tracks[1], 1, (0,))], how)
        sampling = replace(
            plan.sampling,
            given=np.array([-1, 4, -1, 9, -1], np.int32),
            num_logprobs=np.array([0, 2, -1, 3, 1], np.int32),
            num_top=3,
        )
        results.append(executor.execute(replace(plan, sampling=sampling, want_hashes=True)))
    own, other = results
    assert_alike(own, other)
    assert own.hashes is not None
    assert own.ranks is not None
    assert other.ranks is not None
    assert own.ranks.tolist() == other.ranks.tolist()
    assert own.top_tokens is not None
    assert other.top_tokens is not None
    assert own.top_tokens.tolist() == other.top_tokens.tolist()


def test_a_copied_prefix_serves_a_second_sequence(loaded: LoadedSpec) -> None:
    results = []
    for executor in both(loaded, max_tokens=64):
        b, first = builder(loaded), Track(list(range(40)))
        executor.execute(b.plan([Chunk(first, 32)]))
        second = Track([*range(32), 1, 2, 3], 32, [b.free.pop() for _ in first.blocks])
        copies = list(zip(first.blocks, second.blocks))
        plan = b.plan([Chunk(first, 8, (7,)), Chunk(second, 3, (0, 2))], copies=copies)
        results.append(executor.execute(plan))
    assert_alike(*results)


def test_tokens_that_are_only_known_on_the_device_are_looked_up_there(loaded: LoadedSpec) -> None:
    answers = []
    for executor in both(loaded, max_tokens=64):
        b, tracks, tokens = builder(loaded), [Track(list(p)) for p in PROMPTS[:2]], []
        for _ in range(6):
            chunks = [Chunk(t, n := len(t.tokens) - t.num_computed, (n - 1,)) for t in tracks]
            tokens.append(executor.execute(b.plan(chunks)).tokens.tolist())
            for row, track in enumerate(tracks):
                track.tokens.append(-(1 + row))
        answers.append(tokens)
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def sees() -> LoadedSpec:
    """The built-in model: M-RoPE, four norms a layer, rows of images; in float32."""
    return load_model_spec(Path(BUILT_IN_DIR), "float32")


def test_positions_of_three_rows_and_rows_of_images_equal_the_reference(sees: LoadedSpec) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (5, sees.spec.hidden_size)).astype(np.float32)
    results = []
    for executor in both(sees, max_tokens=64):
        plan = builder(sees).plan([Chunk(Track(list(range(12))), 12, (4, 11))])
        positions = np.array([range(12), [3] * 12, [*range(6), *range(6)]], np.int32)
        encoder = np.array([[2, 0, 4], [3, 0, 0], [9, 0, 2]], np.int32)
        plan = replace(plan, positions=positions, encoder=encoder, features=(features,))
        results.append(executor.execute(plan))
    assert_alike(*results)


class Replays:
    """Stands for CUDA's graphs: replaying is running the captured step again."""

    def __init__(self, executor: TritonExecutor) -> None:
        self._executor = executor
        self.captured: list[int] = []

    def capture(self, rows: int) -> Graph:
        self.captured.append(rows)
        step = self._executor._loaded
        assert step is not None
        return Captured(self._executor, step)


@dataclass
class Captured:
    """A step's arrays, which later plans are written to."""

    executor: TritonExecutor
    step: StepTensors

    def replay(self) -> None:
        self.executor._forward(self.step)


def test_padded_steps_on_the_arrays_of_a_captured_one_change_no_bit(sees: LoadedSpec) -> None:
    """The graph is captured with one plan's arrays and replayed with others in their place."""
    plain, padded = (both(sees, max_tokens=64)[0] for _ in range(2))
    replays = Replays(padded)
    padded._graphs = GraphBook(graph_sizes(64), replays.capture)
    answers = [generate(e, builder(sees), PROMPTS[:3], 12, 64) for e in (plain, padded)]
    assert answers[0] == answers[1]
    assert replays.captured == [4]
    assert padded.graphs.counts["graph"] >= 8


def test_a_plan_beyond_the_limits_is_refused_and_the_next_one_runs(sees: LoadedSpec) -> None:
    own, _ = both(sees, max_tokens=8)
    b = builder(sees)
    good = b.plan([Chunk(Track([1, 2, 3]), 3, (2,))])
    bad: Sequence[tuple[StepPlan, str]] = (
        (b.plan([Chunk(Track([1] * 9), 9)]), "9 tokens; permitted: up to 8"),
        (replace(good, tokens=np.array([1, -1, 2], np.int32)), "row 0 of the step before"),
        (replace(good, tokens=np.array([1, 1 << 20, 2], np.int32)), "outside the vocabulary"),
        (replace(good, slots=good.slots + 100_000), "a slot lies outside"),
    )
    for plan, message in bad:
        with pytest.raises(KernelError, match=message):
            own.execute(plan)
    assert own.execute(good).tokens.shape == (1,)
    own.close()
    own.close()
    with pytest.raises(KernelError, match="closed"):
        own.execute(good)


def test_a_result_is_the_callers(sees: LoadedSpec) -> None:
    own, _ = both(sees, max_tokens=8)
    b = builder(sees)
    first = own.execute(b.plan([Chunk(Track([1, 2, 3]), 3, (2,))]))
    assert first.logits is not None
    kept = (first.tokens.copy(), first.logits.copy())
    own.execute(b.plan([Chunk(Track([9, 9, 9]), 3, (1,))]))
    assert np.array_equal(first.tokens, kept[0])
    assert np.array_equal(first.logits, kept[1])


def on_cpu(loaded: LoadedSpec, kernels: Kernels) -> TritonExecutor:
    device = torch.device("cpu")
    weights = TritonWeights(loaded.program, loaded.dtype, device)
    load_weights(loaded, weights)
    kv = KvConfig(16, (16,) * len(loaded.program.kv_groups), str(loaded.dtype))
    choice = DeviceChoice(device, kernels, "a test")
    return TritonExecutor(loaded.program, weights, StepLimits(32, 4, 8, 128), kv, choice)


@pytest.mark.parametrize("name", ["glm4-4x1-tied", "qwen3-5x1-bias"])
def test_tritons_kernels_in_the_interpreter_equal_plain_torch(name: str, tmp_path: Path) -> None:
    """A prefill beside a decode step whose token the device alone knows; then both decode."""
    loaded = checkpoint(name, tmp_path)
    results: list[list[StepResult]] = []
    for kernels in (plain_kernels(), triton_kernels()):
        executor, b = on_cpu(loaded, kernels), PlanBuilder(16, 16)
        tracks = [Track([4, 5, 6]), Track(list(range(20, 34)))]
        steps = [executor.execute(b.plan([Chunk(tracks[0], 3, (2,))]))]
        tracks[0].tokens.append(-1)
        steps.append(
            executor.execute(b.plan([Chunk(tracks[0], 1, (0,)), Chunk(tracks[1], 14, (13,))]))
        )
        for row, track in enumerate(tracks):
            track.tokens.append(-1 - row)
        steps.append(executor.execute(b.plan([Chunk(t, 1, (0,)) for t in tracks])))
        results.append(steps)
    for own, other in zip(*results):
        assert_alike(own, other)
