"""Biases that packers add: AutoGPTQ saves one for every matrix, of zeros where there was none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from hearth.core.errors import WeightsError
from hearth.models.safetensors_file import TensorEntry

_BIAS = ".bias"
# Unsigned words of each type, and their bits without the sign: zero may have one.
_WORDS = {"F16": ("<u2", 0x7FFF), "BF16": ("<u2", 0x7FFF), "F32": ("<u4", 0x7FFFFFFF)}


def added_biases(names: Iterable[str], tensors: Mapping[str, TensorEntry]) -> list[str]:
    """Of tensors that nothing reads the biases of zeros beside columns of codes, sorted.

    Raises WeightsError for those that are not zeros: without them the model's answers are wrong.
    """
    added = sorted(
        name
        for name in names
        if name.endswith(_BIAS)
        and f"{name.removesuffix(_BIAS)}.qweight" in tensors
        and tensors[name].dtype in _WORDS
    )
    full = [name for name in added if not _is_zero(tensors[name])]
    if full:
        first = ", ".join(full[:4]) + (f" and {len(full) - 4} more" if len(full) > 4 else "")
        raise WeightsError(
            f"the checkpoint has biases that the architecture has no place for, and they are not "
            f"zero: {first}",
            hint="its config.json describes another model than its files hold",
        )
    return added


def _is_zero(entry: TensorEntry) -> bool:
    dtype, mask = _WORDS[entry.dtype]
    count = (entry.end - entry.begin) // np.dtype(dtype).itemsize
    try:
        words = np.fromfile(entry.path, dtype, count, offset=entry.begin)
    except FileNotFoundError:  # of a hub's model only the headers are here; loading looks again
        return True
    except OSError as error:
        raise WeightsError(f"{entry.path}: cannot be read: {error.strerror}") from error
    return not bool((words & mask).any())
