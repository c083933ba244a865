"""On which NUMA node the memory of a thread, and of those that it starts, is taken.

`set_mempolicy(2)`: preferred, so that what does not fit on the node lies on others instead of
ending the process. It holds for pages that are touched from then on, those of files included that
are read then; what lies in the page cache already stays where it is.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

from hearth.core.errors import ConfigError

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "ppc64le": 261, "s390x": 270, "riscv64": 237}
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236, "ppc64le": 260, "s390x": 269, "riscv64": 236}
_DEFAULT, _PREFERRED = 0, 1
_MOST_NODES = 1024
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def prefer_node(node: int) -> None:
    """Of the calling thread from now on. Raises ConfigError where Linux refuses."""
    _set_policy(_PREFERRED, node)


def prefer_no_node() -> None:
    """As processes start: the node that a thread runs on. Raises ConfigError."""
    _set_policy(_DEFAULT, None)


def preferred_node() -> int | None:
    """What `prefer_node` was told; None: nothing, or nothing can be told."""
    number = _GET_MEMPOLICY.get(platform.machine())
    if number is None:
        return None
    mode, mask = ctypes.c_int(), _mask(None)
    arguments = (ctypes.byref(mode), mask, ctypes.c_ulong(_MOST_NODES + 1), None, 0)
    if _libc().syscall(number, *arguments) != 0 or mode.value != _PREFERRED:
        return None
    nodes = (i for i in range(_MOST_NODES) if mask[i // _WORD_BITS] >> i % _WORD_BITS & 1)
    return next(nodes, None)


def _set_policy(mode: int, node: int | None) -> None:
    number = _SET_MEMPOLICY.get(platform.machine())
    error = os.strerror(38)
    if number is not None:
        # The kernel takes one bit less than it is told.
        mask, size = (None, 0) if node is None else (_mask(node), _MOST_NODES + 1)
        if _libc().syscall(number, mode, mask, ctypes.c_ulong(size)) == 0:
            return
        error = os.strerror(ctypes.get_errno())
    raise ConfigError(
        f"the memory of NUMA node {node} cannot be preferred here: {error}",
        param="numa",
        hint="set --numa none, or bind the server with numactl",
    )


def _mask(node: int | None) -> ctypes.Array[ctypes.c_ulong]:
    mask = (ctypes.c_ulong * (_MOST_NODES // _WORD_BITS))()
    if node is not None:
        mask[node // _WORD_BITS] = 1 << node % _WORD_BITS
    return mask
