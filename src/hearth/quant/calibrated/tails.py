"""What a layer's finished parts have read, kept on disk, so that no pass runs them again.

Attention and MLP each end in one matrix: once what this matrix reads is known for all sequences,
and everything before it has its codes, the part is this one product. Whether a part is like that is
seen, not known by name: its output is the matrix's, and with the product in its place the layer's
output for the first sequence is the same, bit for bit. A part that is not runs in every pass.

The inputs lie in a file without a name, which goes with the process; they are a shortcut alone, so
that a full disk makes a run slower and not fail.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hearth.quant.calibrated.trace import Stage

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Tail:
    """A part of a layer, by name, and the matrix `last` that it ends in."""

    def __init__(self, module: nn.Module, part: str, last: str, kind: torch.dtype) -> None:
        self.part, self.last = part, last
        self._part, self._last, self._kind = (
            module.get_submodule(part),
            module.get_submodule(last),
            kind,
        )
        self._file: Any = None
        self._shape: tuple[int, ...] = ()
        self._length = 0

    def see_result(self, result: object) -> None:
        """What the part returns: its values, or a tuple that begins with them."""
        self._length = len(result) if isinstance(result, tuple) else 0

    def record(self, directory: Path, index: int, rows: Tensor) -> bool:
        """Keeps what the matrix reads for a sequence; False: the disk is full."""
        rows = rows.to(self._kind).contiguous()
        self._shape = tuple(rows.shape)
        data = rows.view(torch.uint8).numpy().reshape(-1).data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
            offset = index * len(data)
            while data:
                done = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[done:], offset + done
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.close()
            return False
        return True

    def replayed(self, index: int) -> object:
        """What the part returns for a sequence."""
        rows = torch.empty(self._shape, dtype=self._kind)
        data = rows.view(torch.uint8).numpy().reshape(-1).data
        size, done = len(data), 0
        while done < size:
            done += os.preadv(self._file.fileno(), [data[done:]], index * size + done)
        values = self._last(rows)
        return (values, *[None] * (self._length - 1)) if self._length else values

    @contextmanager
    def replaying(self, index: int) -> Iterator[None]:
        """A context in which the part is its last product, of that sequence."""
        vars(self._part)["forward"] = lambda *_, **__: self.replayed(index)
        try:
            yield
        finally:
            del vars(self._part)["forward"]

    def close(self) -> None:
        """Gives the disk back."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


class Tails:
    """The tails of a layer: which are recorded, and passes that replay those that are."""

    def __init__(self, directory: Path, run: Callable[[int], Tensor]) -> None:
        """`run`: takes a sequence through the layer, by its number."""
        self._directory, self._run = directory, run
        self._candidates: dict[str, Tail] = {}
        self._ready: list[Tail] = []
        self._index = 0
        self.is_full = False

    def find(
        self,
        module: nn.Module,
        order: Sequence[str],
        stages: Sequence[Stage],
        kind_of: Callable[[nn.Module], torch.dtype],
    ) -> None:
        """Candidates: the parts directly in `module` that end in a matrix with a stage of its own.

        `order`: all matrices that become codes, as the first sequence used them, once or more.
        """
        place = {
            name: i for i, stage in enumerate(stages) for g in stage.groups for name in g.names
        }
        for index, stage in enumerate(stages):
            names = [name for group in stage.groups for name in group.names]
            part = names[0].partition(".")[0]
            if len(names) != 1 or part == names[0] or order.count(names[0]) != 1:
                continue
            before = order[: order.index(names[0])]
            inside = [name for name in place if name.startswith(f"{part}.") and name != names[0]]
            if all(place[name] < index for name in [*before, *inside]):
                kind = kind_of(module.get_submodule(names[0]))
                self._candidates[names[0]] = Tail(module, part, names[0], kind)
        self._keep_proven(module)

    def pass_over(self, index: int) -> Tensor:
        """Runs a sequence, finished parts replayed."""
        self._index = index
        with ExitStack() as stack:
            for tail in self._ready:
                stack.enter_context(tail.replaying(index))
            return self._run(index)

    @contextmanager
    def recording(self, module: nn.Module, stage: Stage) -> Iterator[None]:
        """A context around passes over all sequences that keep what a tail of `stage` reads."""
        names = [name for group in stage.groups for name in group.names]
        tail = self._candidates.get(names[0]) if len(names) == 1 else None
        if tail is None:
            yield
            return
        is_whole = True

        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal is_whole
            is_whole = is_whole and tail.record(self._directory, self._index, args[0])

        # In front of what counts and then ends the pass.
        handle = module.get_submodule(tail.last).register_forward_pre_hook(keep, prepend=True)
        try:
            yield
        finally:
            handle.remove()
        del self._candidates[tail.last]
        if is_whole:
            self._ready.append(tail)
        else:
            self.is_full = True

    def close(self) -> None:
        """Gives the disk back."""
        for tail in (*self._ready, *self._candidates.values()):
            tail.close()

    def _keep_proven(self, module: nn.Module) -> None:
        """Of the candidates those that leave the layer's output as it is, one at a time."""
        for name, tail in list(self._candidates.items()):
            if not self._is_proven(module, tail):
                tail.close()
                del self._candidates[name]

    def _is_proven(self, module: nn.Module, tail: Tail) -> bool:
        part, last = module.get_submodule(tail.part), module.get_submodule(tail.last)
        inputs: list[Tensor] = []
        results: list[object] = []
        handles = [
            last.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
            part.register_forward_hook(lambda _, __, result: results.append(result)),
        ]
        try:
            expected = self._run(0)
        finally:
            for handle in handles:
                handle.remove()
        if len(inputs) != 1 or len(results) != 1:
            return False
        tail.see_result(results[0])
        if not tail.record(self._directory, 0, inputs[0]):
            self.is_full = True
            return False
        try:
            with tail.replaying(0):
                return torch.equal(self._run(0), expected)
        except (TypeError, AttributeError, ValueError, RuntimeError):
            return False  # what reads the rest of the part's results is foreign code
