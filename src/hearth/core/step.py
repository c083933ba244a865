"""StepPlan and StepResult: what goes into one forward pass and what comes out.

Both are flat arrays, since they are the C ABI of the executors. T tokens (rows) of S sequences,
R wanted logits rows, G KV groups. Sequence s owns rows row_start[s] … row_start[s+1]−1, which
continue the context[s] tokens that are already in its KV cache: row i of it stands at absolute
index context[s] + i. Arrays are C-contiguous; the engine owns and reuses them, an executor must
not keep a reference after `execute` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hearth.core.program import StepProgram

    Int32 = NDArray[np.int32]
    UInt64 = NDArray[np.uint64]
    Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """What changes logits before a token is chosen; ragged, row r owns start[r] … start[r+1]−1.

    First the biases are added (−∞ forbids a token), then the counted tokens are penalized; see
    kernels/reference/sampling.py. A row lists a token at most once in each of the two lists. The
    counts are those of the tokens before the sampled one: a pure function of the sequence, so
    that an executor keeps nothing between steps.
    """

    repetition: Float32  # [R]; 1: none
    frequency: Float32  # [R]; 0: none
    presence: Float32  # [R]; 0: none
    count_start: Int32  # [R+1]
    count_tokens: Int32
    counts: Int32  # how often the token was generated; 0: it stands in the prompt only
    bias_start: Int32  # [R+1]
    bias_tokens: Int32
    biases: Float32


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    """One entry a logits row, [R].

    temperature 0 takes the largest logit (the lowest id among equals); top_k 0, top_p 1 and
    min_p 0 switch the filter off. The draw is Philox4x32-10 with key = seed and counter =
    (position, choice, draw, 0); position is the absolute index of the token that is sampled.
    num_logprobs: −1 none, 0 that of the token alone, k ≤ num_top of the k best too; None: all 0.
    given: −1 where a token is sampled; otherwise nothing is, and the row is asked for the
    log-probability and the rank of this token (of a prompt): filters and edits have no part in it.
    """

    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    seed: UInt64
    position: Int32
    choice: Int32
    num_logprobs: Int32 | None = None
    num_top: int = 0  # the largest of num_logprobs: the columns of StepResult.top_tokens
    given: Int32 | None = None  # None: every row is sampled
    edits: LogitEdits | None = None  # None: no row has any


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. See the module's docstring for the shapes' letters."""

    tokens: Int32  # [T]; id ≥ 0, or −(1+r): token of result row r of the step before
    positions: Int32  # [3, T]; equal rows for text
    row_start: Int32  # [S+1]
    context: Int32  # [S]
    slots: Int32  # [G, T]; block · block_size + offset, where k and v of the row are stored
    blocks: Int32  # flat: block ids, group by group and in a group sequence by sequence
    block_start: Int32  # [G, S+1]; offsets into `blocks`
    first_block: Int32  # [G, S]; index within the sequence of its first listed block (windows)
    logit_rows: Int32  # [R]; indices into the T rows, any number per sequence, ascending
    sampling: SamplingArrays
    copies: Int32  # [C, 3]; (group, from block, to block), done before the step
    encoder: Int32  # [E, 3]; (row, i, index): the row is features[i][index], whatever its token
    want_hashes: bool = False  # fill StepResult.hashes
    want_logits: bool = False  # fill StepResult.logits
    features: tuple[Float32, ...] = ()  # outputs of an encoder, [n, hidden] each


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced; row r belongs to logit_rows[r]."""

    tokens: Int32  # [R]; the sampled one, or the given one
    logprobs: Float32  # [R]; natural log of the token's raw probability; NaN: not wanted
    hashes: UInt64 | None = None  # [R]; hash of the raw logits' bits
    logits: Float32 | None = None  # [R, vocabulary]; raw, before temperature
    top_tokens: Int32 | None = None  # [R, num_top]; the best by raw logit; −1 beyond a row's own
    top_logprobs: Float32 | None = None  # [R, num_top]; raw: before edits and temperature
    ranks: Int32 | None = None  # [R]; a given token's place by raw logit, 1 the best; 0: sampled


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Upper bounds of one step, from which scratch memory is sized once."""

    max_tokens: int
    max_sequences: int
    max_logit_rows: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class KvConfig:
    """Shape of the KV cache: `num_blocks[g]` blocks of `block_size` tokens in group g.

    `dtype` is a KvDType. `rotates_keys` False is there to measure what int4 loses without it.
    """

    block_size: int
    num_blocks: tuple[int, ...]
    dtype: str
    rotates_keys: bool = True


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """What runs the steps, and why it was chosen."""

    name: str  # "cpu", "reference", …
    detail: str  # instruction set and threads, as shown in the banner
    reason: str
    bit_identical: bool


class PatchSource(Protocol):
    """Gives the patches of an image, some at a time."""

    def __call__(self, first: int, count: int) -> Float32:
        """Patches `first` … `first + count` − 1, [count, patch values], C-contiguous."""
        ...


class ImageEncoder(Protocol):
    """Turns one image after the other into rows of the text model. For one thread at a time."""

    @property
    def max_patches(self) -> int:
        """Of one image."""
        ...

    @property
    def output_size(self) -> int:
        """Values of an output row."""
        ...

    def start(self, patches: PatchSource, grid_height: int, grid_width: int) -> None:
        """Begins an image, in patches; forgets the one before. Raises KernelError: too large."""
        ...

    def advance(self, num_rows: int) -> bool:
        """Takes up to so many patches through the phase at hand; whether the image is done."""
        ...

    def features(self) -> Float32:
        """The output of an image that is done, [tokens, hidden]; the caller's."""
        ...

    def close(self) -> None:
        """Ends threads and releases memory."""
        ...


class Executor(Protocol):
    """Runs a step program. One thread at a time may call it."""

    @property
    def program(self) -> StepProgram:
        """The program that it runs."""
        ...

    @property
    def info(self) -> ExecutorInfo:
        """What runs the steps, and why."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step; the result's arrays are the caller's. Raises KernelError."""
        ...

    def close(self) -> None:
        """Ends threads and releases memory; the executor cannot be used afterwards."""
        ...
