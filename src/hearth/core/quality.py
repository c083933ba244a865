"""What a model's quantization costs: the short report that is kept with it, what rounding left.

Owns the vocabulary only; `quant` measures, `engine/quality_store` keeps, servers show.
"""

from __future__ import annotations

from dataclasses import dataclass

REPORT_FILE = "hearth.quality.json"  # of a quantized checkpoint, beside its weights


@dataclass(frozen=True, slots=True)
class RoundingLoss:
    """What codes lose of the squares of the weights that they were made of: Σ(w − w')² / Σ w².

    `errors`: by storage, such as {"int4": 0.0091}, of a sample of the rows. `worst`: the weight
    slot that lost most.
    """

    errors: dict[str, float]
    worst: str
    worst_error: float

    def line(self) -> str:
        """Such as `4-bit codes lose about 0.91 % of the weights' squares, 8-bit codes 0.0035 %`."""
        first, *others = (
            (_codes_named(name), f"{100 * error:.2g} %")
            for name, error in sorted(self.errors.items())
        )
        begin = f"{first[0]} lose about {first[1]} of the weights' squares"
        return ", ".join([begin, *(f"{name} {share}" for name, share in others)])


def _codes_named(storage: str) -> str:
    return "FP8 codes" if storage == "fp8" else f"{storage.removeprefix('int')}-bit codes"


@dataclass(frozen=True, slots=True)
class QualitySummary:
    """A model as it is served, against a reference, on a text.

    `weights_key` and the settings that change its arithmetic say of which model it is.
    `perplexity_change` is a share (0.004: + 0.4 %), with its standard error; `kl` in nats, the mean
    and the 99.9 % quantile; `top1` the share of positions with the same best token. Without a
    `reference` ("") only `perplexity` is known. `canary`: the best tokens behind the start-up
    prompts of `canary_version`.
    """

    weights_key: str
    scheme: str  # how the matrices are stored
    method: str  # how the codes were made
    reference: str
    perplexity: float
    text: str
    text_sha256: str
    text_bytes: int
    num_tokens: int
    context: int
    measured_at: str  # ISO 8601, UTC
    hearth_version: str
    executor: str
    perplexity_error: float = 0.0
    reference_perplexity: float | None = None
    perplexity_change: float | None = None
    perplexity_change_error: float | None = None
    kl: float | None = None
    kl_999: float | None = None
    top1: float | None = None
    canary_version: int = 0
    canary: tuple[int, ...] = ()

    def line(self) -> str:
        """Such as `perplexity +0.4 %, KL 0.012, same best token 97.1 %`."""
        if self.perplexity_change is None or self.kl is None or self.top1 is None:
            return f"perplexity {self.perplexity:.4g}, compared with nothing"
        return (
            f"perplexity {100 * self.perplexity_change:+.2f} %, KL {self.kl:.2g}, "
            f"same best token {100 * self.top1:.1f} %"
        )
