"""Which steps are replayed from CUDA graphs, when those are captured, and why others are not.

Bookkeeping alone: capturing and replaying are functions that are given to it, so that it is tested
without a card. A graph serves steps of one padded number of rows, in which every sequence has one
row and wants its logits. It is captured when such a step comes for the second time: the first runs
eagerly, which compiles the kernels and loads them, and neither may happen during a capture. So a
server is ready before any capture, and pays for those only that it uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from hearth.core.step import StepPlan

_STRIDE = 8
_COARSE_FROM, _COARSE_STRIDE = 64, 16
_COARSER_FROM, _COARSER_STRIDE = 256, 32


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Runs it on the current stream."""
        ...


Capture: TypeAlias = Callable[[int], Graph]


@dataclass(frozen=True, slots=True)
class Route:
    """How a step runs: eagerly, or as a graph of `rows` rows; and why."""

    rows: int | None  # None: as many as the plan has, eagerly
    captures: bool
    reason: str


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Numbers of rows that have a graph, ascending: a step takes the next one up.

    Fine where a padded row costs most of a step, coarser above; the last is `max_num_seqs`.
    """
    sizes = []
    size = 1
    while size < max_num_seqs:
        sizes.append(size)
        size = 2 * size if size < _STRIDE else size + _stride(size)
    return (*sizes, max_num_seqs)


def _stride(size: int) -> int:
    if size < _COARSE_FROM:
        return _STRIDE
    return _COARSE_STRIDE if size < _COARSER_FROM else _COARSER_STRIDE


class GraphBook:
    """Knows the graphs that there are. For one thread."""

    def __init__(self, sizes: Sequence[int], capture: Capture | None, why_not: str = "") -> None:
        """`capture` None: every step runs eagerly, because of `why_not`."""
        self._sizes = tuple(sizes)
        self._capture = capture
        self._why_not = why_not
        self._graphs: dict[int, Graph] = {}
        self._warmed: set[int] = set()
        self._failed: dict[int, str] = {}
        self.counts: Counter[str] = Counter()  # steps by reason

    @property
    def captured(self) -> tuple[int, ...]:
        """Numbers of rows that have a graph by now."""
        return tuple(sorted(self._graphs))

    def route(self, plan: StepPlan, *, is_decode: bool, wants_all: bool) -> Route:
        """How a plan is to run; counts its reason.

        Eager steps that warm a graph up are padded to its rows, so that it runs what was compiled.
        """
        route = self._route(plan, is_decode=is_decode, wants_all=wants_all)
        self.counts[route.reason] += 1
        return route

    def _route(self, plan: StepPlan, *, is_decode: bool, wants_all: bool) -> Route:
        num_rows = plan.tokens.shape[0]
        if self._capture is None:
            return Route(None, captures=False, reason=self._why_not)
        if not is_decode:
            return Route(None, captures=False, reason="a sequence has several rows")
        if not wants_all:
            return Route(None, captures=False, reason="some rows' logits are not wanted")
        if len(plan.encoder):
            return Route(None, captures=False, reason="a row shows an image")
        rows = next((n for n in self._sizes if n >= num_rows), None)
        if rows is None:
            reason = f"more rows than the largest graph's {self._sizes[-1]}"
            return Route(None, captures=False, reason=reason)
        if rows in self._failed:
            return Route(None, captures=False, reason=self._failed[rows])
        if rows in self._graphs:
            return Route(rows, captures=False, reason="graph")
        if rows not in self._warmed:
            return Route(rows, captures=False, reason="first of its size: kernels are compiled")
        return Route(rows, captures=True, reason="captured")

    def run(self, route: Route, eager: Callable[[], None]) -> None:
        """Runs a step by its graph, or by `eager`, which does the same.

        A capture that fails leaves its size to eager steps, with the reason in `counts`.
        """
        if route.rows is None or (route.rows not in self._graphs and not route.captures):
            eager()
            if route.rows is not None:
                self._warmed.add(route.rows)
            return
        if route.captures and not self._try_capture(route.rows):
            eager()
            return
        self._graphs[route.rows].replay()

    def _try_capture(self, rows: int) -> bool:
        assert self._capture is not None, "a route captures where there is a capture"
        try:
            self._graphs[rows] = self._capture(rows)
        except RuntimeError as error:
            first_line = str(error).partition("\n")[0]
            self._failed[rows] = f"the capture failed: {first_line}"
            return False
        return True

    def clear(self) -> None:
        """Forgets the graphs, and frees their memory."""
        self._graphs.clear()
