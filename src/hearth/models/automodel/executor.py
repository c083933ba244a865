"""AutoModelExecutor: steps through transformers' model, attention over the paged cache.

The rows of all sequences are one flattened sequence with positions of its own; which of them see
each other is decided by our attention alone, so that chunks and decoding rows mix freely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hearth.core.errors import CapacityError
from hearth.core.step import ExecutorInfo, KvConfig, StepLimits
from hearth.kernels.reference.executor import TorchExecutor
from hearth.kernels.reference.kv import KvPlace, PagedKv, StepTensors
from hearth.models.automodel.attention import PagedSite, PassState
from hearth.models.automodel.interface import attach
from hearth.models.automodel.spec import AutoModelSpec


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How far paged logits are from the model's own: the largest relative error of a row."""

    error: float
    permitted: float


class PagedModel:
    """A loaded model whose attention modules read and write a paged cache."""

    def __init__(self, model: Any, spec: AutoModelSpec) -> None:
        self.model = model
        self.spec = spec
        self._state = PassState()
        modules = dict(model.named_modules())
        for layer, place in zip(spec.served_layers, spec.kv_places(), strict=True):
            attach(modules[layer.module], PagedSite(self._state, layer, KvPlace(*place)))

    def logits(self, step: StepTensors, kv: PagedKv) -> torch.Tensor:
        """Raw logits of the wanted rows, [R, vocabulary]; keys and values go to `kv`."""
        rows = step.logit_rows
        wanted = {"logits_to_keep": rows} if self.spec.selects_logits else {}
        self._state.begin(step, kv)
        try:
            output = self.model(
                input_ids=step.tokens[None],
                position_ids=step.positions[0][None],
                use_cache=False,
                **wanted,
            )
        except torch.OutOfMemoryError as error:
            raise CapacityError(f"{self.spec.device} ran out of memory in a step") from error
        finally:
            self._state.end()
        logits: torch.Tensor = output.logits[0]
        return logits if self.spec.selects_logits else logits[rows]


class AutoModelExecutor(TorchExecutor):
    """An `Executor` for models without a family file. Owns the model."""

    def __init__(
        self, paged: PagedModel, limits: StepLimits, kv: KvConfig, report: CheckReport
    ) -> None:
        """`report`: that of `check.check_paged` for this model."""
        super().__init__(paged.spec.program, limits, kv, paged.spec.device)
        self._paged: PagedModel | None = paged
        self._report = report

    @property
    def info(self) -> ExecutorInfo:
        """What runs the steps, and why."""
        import transformers

        where = f"{torch.get_num_threads()} threads"
        if self._device != "cpu":
            where = torch.cuda.get_device_name()
        return ExecutorInfo(
            name="automodel",
            detail=f"transformers {transformers.__version__}, torch {torch.__version__}, {where}",
            reason="transformers' own model with paged attention, checked at the start: logits "
            f"within {self._report.error:.1g} of their deviation from those without paging; "
            "slower, not bit-identical",
            bit_identical=False,
        )

    def _logits(self, step: StepTensors) -> torch.Tensor:
        assert self._paged is not None, "the executor is open"
        return self._paged.logits(step, self._kv)

    def close(self) -> None:
        """Releases the KV cache and the model."""
        super().close()
        self._paged = None
