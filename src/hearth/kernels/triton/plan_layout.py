"""Where the arrays of a StepPlan lie in one flat buffer of int32. No torch.

  [ tokens | positions | slots | sequence_of_row ]   row arrays, by `PlanSizes.rows`
  [ row_start | context | block_start | first_block ]  by `sequences`
  [ logit_rows | sampling arrays ]                     by `logit_rows`
  [ blocks … ]                                         as many as the plan lists

Offsets depend on the sizes alone, so that a captured graph finds its arrays again; all is int32,
floats are their bits.

Floats are their bits. Offsets depend on the sizes alone, so that a captured graph finds its arrays
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from hearth.core.program import StepProgram
from hearth.core.step import StepLimits
from hearth.core.units import ceil_div, round_up

_ALIGNED = 64  # elements: fields begin at 256 bytes
# Lists of blocks may be longer than a sequence needs, by so many each.
_SPARE_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """What a buffer has room for."""

    rows: int
    sequences: int
    logit_rows: int
    groups: int
    blocks: int

    @staticmethod
    def of(limits: StepLimits, program: StepProgram, block_size: int) -> PlanSizes:
        """For every plan within the limits."""
        listed = ceil_div(limits.max_model_len, block_size) + _SPARE_BLOCKS
        groups = len(program.kv_groups)
        blocks = groups * limits.max_sequences * listed
        return PlanSizes(
            limits.max_tokens, limits.max_sequences, limits.max_logit_rows, groups, blocks
        )

    def fields(self) -> dict[str, int]:
        """Elements of each field but the blocks, in order."""
        rows, sequences, wanted = self.rows, self.sequences, self.logit_rows
        return {
            "tokens": rows,
            "positions": 3 * rows,
            "slots": self.groups * rows,
            "sequence_of_row": rows,
            "row_start": sequences + 1,
            "context": sequences,
            "block_start": self.groups * (sequences + 1),
            "first_block": self.groups * sequences,
            **dict.fromkeys(
                (
                    "logit_rows",
                    "temperature",
                    "top_k",
                    "top_p",
                    "min_p",
                    "seed_low",
                    "seed_high",
                    "position",
                    "choice",
                    "num_logprobs",
                    "given",
                ),
                wanted,
            ),
        }


def plan_bytes(limits: StepLimits, program: StepProgram, block_size: int) -> int:
    """Of the buffer on the device."""
    return PlanLayout(PlanSizes.of(limits, program, block_size)).num_elements * 4


class PlanLayout:
    """Offsets of the fields."""

    def __init__(self, sizes: PlanSizes) -> None:
        fields = sizes.fields()
        lengths = [round_up(n, _ALIGNED) for n in fields.values()]
        starts = [0, *accumulate(lengths)]
        self.offsets = dict(zip(fields, starts))
        self.first_block = starts[-1]  # where the blocks' ids begin
        self.num_elements = self.first_block + sizes.blocks
