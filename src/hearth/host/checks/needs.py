"""ModelNeeds: what a model asks of a host. Filled by the command line, which may plan models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchemeNeed:
    """One way to store the matrices. `message`, `hint`: the plan's, where it does not fit."""

    scheme: str  # none, int8, int4
    weight_bytes: int
    needed_bytes: int  # in all, with a context of `num_tokens`
    num_tokens: int
    fits: bool
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """What is known of a model before its weights.

    `schemes`: the most exact first; empty where no plan could be made, which `refusal` explains.
    `needs_transformers`: no family file knows it, so that torch and transformers would run it.
    """

    name: str
    architecture: str
    num_parameters: int
    schemes: tuple[SchemeNeed, ...]
    needs_transformers: bool = False
    refusal: str = ""
    refusal_hint: str = ""
