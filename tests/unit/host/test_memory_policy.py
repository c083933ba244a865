"""The memory policy of a thread is what it was told, as Linux reads it back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hearth.core.errors import ConfigError
from hearth.host.memory_policy import prefer_no_node, prefer_node, preferred_node

pytestmark = pytest.mark.skipif(
    not Path("/sys/devices/system/node/node0").exists(), reason="the kernel has no NUMA nodes"
)


def in_a_thread(work: object) -> None:
    """The policy is a thread's own: the tests' one keeps its."""
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_preferred_node_is_read_back_and_inherited_by_new_threads() -> None:
    seen: list[int | None] = []

    def work() -> None:
        prefer_node(0)
        seen.append(preferred_node())
        in_a_thread(lambda: seen.append(preferred_node()))
        prefer_no_node()
        seen.append(preferred_node())

    in_a_thread(work)
    assert seen == [0, 0, None]
    assert preferred_node() is None


def test_a_node_that_is_not_there_is_refused_with_what_linux_says() -> None:
    with pytest.raises(ConfigError, match="node 900 cannot be preferred here: Invalid argument"):
        prefer_node(900)
    assert preferred_node() is None
