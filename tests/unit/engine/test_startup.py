"""What a start does where Linux refuses what nobody asked for."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hearth.core.config import DeviceConfig, EngineConfig, ModelConfig
from hearth.core.errors import ConfigError
from hearth.engine import startup
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
