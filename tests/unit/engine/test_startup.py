"""What a start does where Linux refuses what nobody asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hearth.core.config import DeviceConfig, EngineConfig, ModelConfig
from hearth.core.errors import ConfigError, KernelError
from hearth.engine import startup
from hearth.engine.executor import _bind
from hearth.host.numa import NodeChoice
from hearth.host.placement import Placement

CPUS = frozenset(os.sched_getaffinity(0))
ON_A_NODE = Placement(2, "", (), "", memory=NodeChoice(0, CPUS, "of 2 nodes the one"))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(node: int) -> None:
        raise ConfigError(f"node {node}: Operation not permitted")

    monkeypatch.setattr(startup, "prefer_node", refuse)


def config(numa: str) -> EngineConfig:
    return EngineConfig(ModelConfig("m"), device=DeviceConfig(numa=numa))


@pytest.mark.usefixtures("refused")
def test_a_container_that_may_not_choose_memory_starts_with_a_warning() -> None:
    placement, warnings = startup._stay_on_node(ON_A_NODE, config("auto"))
    assert placement.memory is not None
    assert placement.memory.node is None
    assert warnings == ("memory is not bound to a node: node 0: Operation not permitted",)


@pytest.mark.usefixtures("refused")
def test_a_node_that_was_asked_for_and_is_refused_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--numa 0: node 0: Operation not permitted"):
        startup._stay_on_node(ON_A_NODE, config("0"))


def test_without_a_node_nothing_is_touched() -> None:
    plain = replace(ON_A_NODE, memory=NodeChoice(None, CPUS, "one node"))
    assert startup._stay_on_node(plain, config("auto")) == (plain, ())


class Team:
    """Threads to bind; Linux refuses those of a team that is `broken`."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def bind(self, _: Sequence[int]) -> None:
        if self.broken:
            raise KernelError("Invalid argument")


BOUND = Placement(2, "", (0, 1), "each thread has a core of its own")


def test_a_refused_binding_says_what_is_bound_all_the_same() -> None:
    choice, warnings = _bind(BOUND, (Team(False), Team(False)))
    assert (choice.value, choice.reason, warnings) == ("0, 1", BOUND.bind_reason, ())
    choice, (warning,) = _bind(BOUND, (Team(True), Team(False)))
    assert choice.value == "none"
    assert warning == "threads are not bound to cores: Invalid argument"
    choice, (warning,) = _bind(BOUND, (Team(False), Team(True)))
    assert choice.value == "0, 1"
    assert choice.reason.startswith("threads of the language model alone")
    assert warning.startswith("threads of the image encoder are not bound to cores")


def test_a_binding_that_was_asked_for_and_is_refused_is_an_error() -> None:
    with pytest.raises(KernelError):
        _bind(replace(BOUND, is_asked=True), (Team(False), Team(True)))


def test_a_process_that_may_not_be_confined_starts_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.sched_setaffinity", refuse)
    confined = replace(ON_A_NODE, memory=None, process_cpus=frozenset((0,)))
    _, (warning,) = startup._stay_on_node(confined, config("auto"))
    assert warning.startswith("the process is not confined to its cores: ")
