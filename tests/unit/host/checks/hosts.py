"""HostFacts of captured trees, for checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.host.facts.fake_nvml import NVMLError

from hearth.host.checks.check import Check, Examined
from hearth.host.checks.needs import ModelNeeds, SchemeNeed
from hearth.host.facts.fact import Fact
from hearth.host.facts.report import HostFacts, read_host


class NoNvml:
    """A host without a driver."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def refuse(*_: Any) -> None:
            raise NVMLError("NVML Shared Library Not Found")

        return refuse


def facts_of(root: Path, models: str = "/", nvml: Any = None) -> HostFacts:
    facts = read_host(Path(models), root, nvml=nvml or NoNvml(), environment={})
    # The build of the kernels here must not decide what is judged.
    software = replace(facts.software, kernels=Fact(("avx512", "avx2", "generic"), "a test"))
    return replace(facts, software=software)


def found(checks: tuple[Check, ...], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def commands(check: Check) -> str:
    return "\n".join(fix.command for fix in check.fixes)


def needs(*fits: bool, parameters: int = 9_000_000_000) -> ModelNeeds:
    """A 9B model; `fits`: as stored, int8, int4."""
    schemes = tuple(
        SchemeNeed(
            scheme,
            size << 30,
            (size + 4) << 30,
            8192,
            fit,
            "" if fit else "too large by 3 GiB",
            "" if fit else "lower --max-model-len",
        )
        for scheme, size, fit in zip(("none", "int8", "int4"), (18, 9, 5), fits)
    )
    return ModelNeeds("org/name", "LlamaForCausalLM", parameters, schemes)


def examined(root: Path, models: str = "/", nvml: Any = None) -> Examined:
    return Examined(facts_of(root, models, nvml))
