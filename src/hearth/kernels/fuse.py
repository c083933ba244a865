"""Which neighbouring operations of a program run in the same tiles, and why others do not.

The program stays the list of plain operations: a group says that the kernels of its operations
follow each other within a tile, while its numbers are in the cache, without a barrier between
them and without a buffer that nobody else reads. Every kernel does what it does alone, on the
same numbers in the same order, so that no bit depends on what is fused.

  rows       operations that go row by row: sums, norms, codes; begin and end of a step
  heads      Linear (bias), HeadNorm, Rope, KvWrite: a tile is whole heads of q, k, v
  attention  Attend, Quantize: a tile is the query heads of one key/value head
  residual   Linear (bias), Add: a tile is a panel
  gated      Linear (bias), Gate, Quantize: a tile is the panels of gate and up of one group
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import lcm

from hearth.core.program import (
    Activate,
    Add,
    Angles,
    Attend,
    BufferRows,
    Embed,
    Emit,
    Experts,
    Gate,
    GridEmbed,
    HeadNorm,
    KvWrite,
    Linear,
    Norm,
    Op,
    Patches,
    Quantize,
    Regroup,
    Rope,
    Sample,
    Select,
    SoftCap,
    StepProgram,
)
from hearth.core.units import ceil_div
from hearth.kernels.packing import PANEL_COLUMNS

# What a barrier and reading a buffer back cost, in panels of a linear layer with one row (4 to 8 µs
# each): so much longer may the fused tiles take because they are fewer.
BARRIER_PANELS = 1


class Pattern(StrEnum):
    """The kinds of groups."""

    ROWS = "rows"
    HEADS = "heads"
    ATTENTION = "attention"
    RESIDUAL = "residual"
    GATED = "gated"


ALL_PATTERNS = frozenset(Pattern)


@dataclass(frozen=True, slots=True)
class Group:
    """Operations first … first + count − 1; count ≥ 2."""

    first: int
    count: int
    pattern: Pattern


@dataclass(frozen=True, slots=True)
class Refusal:
    """A pattern that begins at operation `first` and is not fused."""

    first: int
    pattern: Pattern
    reason: str


@dataclass(frozen=True, slots=True)
class Fusion:
    """Groups, disjoint and ascending; `tile_buffers` hold nothing any more and need no memory."""

    groups: tuple[Group, ...] = ()
    refused: tuple[Refusal, ...] = ()
    tile_buffers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Access:
    """Buffers that an operation reads and those that it writes without having read them."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]


def fuse(
    program: StepProgram,
    num_threads: int,
    patterns: Iterable[Pattern] = ALL_PATTERNS,
    cuts: Iterable[int] = (),
) -> Fusion:
    """The groups of a program on the CPU with so many threads.

    No group holds an operation of `cuts` behind its first: a run may begin there.
    """
    matcher = _Matcher(program, num_threads, frozenset(patterns), frozenset(cuts))
    at = 0
    while at < len(program.ops):
        at += matcher.match(at)
    return Fusion(tuple(matcher.groups), tuple(matcher.refused), _tile_buffers(program, matcher))


def access_of(op: Op) -> Access:
    """What an operation does to the buffers."""
    match op:
        case Embed() | Angles() | Patches():
            return Access((), (op.out,))
        case Norm() | Linear() | Quantize() | Gate() | Select() | Regroup():
            return Access((op.x,), (op.out,))
        case HeadNorm() | SoftCap() | Activate() | GridEmbed() | Emit():
            return Access((op.x,), ())
        case Rope():
            return Access((op.x, op.angles), ())
        case KvWrite():
            return Access((op.qkv,), ())
        case Attend():
            return Access((op.qkv,), (op.out,))
        case Experts():
            codes = () if op.gated_codes is None else (op.gated_codes,)
            return Access((op.x, op.logits), (op.routes, op.gated, *codes, op.out))
        case Add():
            return Access((op.x, op.y), ())
        case Sample():
            return Access((op.logits,), ())


class _Matcher:
    """Walks over the operations; collects groups and refusals."""

    def __init__(
        self,
        program: StepProgram,
        num_threads: int,
        patterns: frozenset[Pattern],
        cuts: frozenset[int],
    ) -> None:
        self.groups: list[Group] = []
        self.refused: list[Refusal] = []
        self._program = program
        self._ops = program.ops
        self._num_threads = num_threads
        self._patterns = patterns
        self._cuts = cuts

    def match(self, at: int) -> int:
        """Operations from `at` on that run together; 1 where nothing matches."""
        op = self._ops[at]
        if isinstance(op, Linear):
            count = self._heads(at) or self._gated(at) or self._residual(at)
        elif isinstance(op, Attend):
            count = self._attention(at)
        else:
            count = self._rows(at)
        return count or 1

    def _accept(self, at: int, count: int, pattern: Pattern, reason: str) -> int:
        """Takes a group in, or notes the reason against it."""
        if pattern not in self._patterns:
            return 0
        if not self._cuts.isdisjoint(range(at + 1, at + count)):
            reason = "a run may begin in between"
        if reason:
            self.refused.append(Refusal(at, pattern, reason))
            return 0
        self.groups.append(Group(at, count, pattern))
        return count

    def _rows(self, at: int) -> int:
        """The longest run over the rows of one kind."""
        kind, count = self._row_kind(at), 1
        if kind is None:
            return 0
        while (
            at + count < len(self._ops)
            and at + count not in self._cuts
            and self._row_kind(at + count) is kind
        ):
            count += 1
        return self._accept(at, count, Pattern.ROWS, "") if count > 1 else 0

    def _row_kind(self, at: int) -> BufferRows | None:
        """Whose rows an operation goes through one by one; None where it does not."""
        op = self._ops[at]
        if isinstance(op, Linear | Attend | Experts):
            return None
        access = access_of(op)
        return self._program.buffers[(access.writes or access.reads)[0]].rows

    def _heads(self, at: int) -> int:
        match self._ops[at : at + 4]:
            case (Linear() as linear, HeadNorm(), Rope(), KvWrite() as write):
                count = 4
            case (Linear() as linear, Rope(), KvWrite() as write, *_):
                count = 3
            case _:
                return 0
        if any(access_of(op).reads[0] != linear.out for op in self._ops[at + 1 : at + count]):
            return 0
        panels = lcm(PANEL_COLUMNS, write.head_dim) // PANEL_COLUMNS
        reason = self._too_few(self._width(linear.out), panels)
        return self._accept(at, count, Pattern.HEADS, reason)

    def _attention(self, at: int) -> int:
        match self._ops[at : at + 2]:
            case (Attend() as attend, Quantize() as codes) if codes.x == attend.out:
                pass
            case _:
                return 0
        group = self._program.buffers[codes.out].group_size
        columns = attend.num_heads // attend.num_kv_heads * attend.head_dim
        reason = self._still_read(at + 2, attend.out)
        if columns % group:
            reason = f"the {columns} columns of a kv head are no whole groups of {group}"
        return self._accept(at, 2, Pattern.ATTENTION, reason)

    def _residual(self, at: int) -> int:
        match self._ops[at : at + 2]:
            case (Linear() as linear, Add() as add) if add.y == linear.out != add.x:
                pass
            case _:
                return 0
        reason = self._still_read(at + 2, linear.out)
        if add.x == linear.x:
            reason = "the sum goes to what other tiles still read"
        return self._accept(at, 2, Pattern.RESIDUAL, reason)

    def _gated(self, at: int) -> int:
        match self._ops[at : at + 2]:
            case (Linear() as linear, Gate() as gate) if gate.x == linear.out:
                pass
            case _:
                return 0
        count, out = 2, gate.out
        match self._ops[at + 2 : at + 3]:
            case (Quantize() as codes,) if codes.x == gate.out:
                count, out = 3, codes.out
        width = self._width(gate.out)
        group = self._program.buffers[out].group_size or PANEL_COLUMNS
        panels = 2 * lcm(PANEL_COLUMNS, group) // PANEL_COLUMNS
        reason = self._too_few(2 * width, panels)
        for buffer in {linear.out, gate.out} - {out}:
            reason = reason or self._still_read(at + count, buffer)
        if width % PANEL_COLUMNS:
            reason = f"up begins within a panel: {width} is no multiple of {PANEL_COLUMNS}"
        if linear.x in (gate.out, out):
            reason = "the result goes to what other tiles still read"
        return self._accept(at, count, Pattern.GATED, reason)

    def _width(self, buffer: int) -> int:
        return self._program.buffers[buffer].width

    def _too_few(self, columns: int, panels_a_tile: int) -> str:
        """Why tiles of so many panels keep the threads busy worse than single panels; or empty.

        Counted for one row tile, as when one token is decoded: more rows only help.
        """
        tiles = ceil_div(columns, panels_a_tile * PANEL_COLUMNS)
        rounds = ceil_div(tiles, self._num_threads) * panels_a_tile
        alone = ceil_div(ceil_div(columns, PANEL_COLUMNS), self._num_threads)
        if rounds <= alone + BARRIER_PANELS:
            return ""
        return f"{tiles} tiles of {panels_a_tile} panels are few for {self._num_threads} threads"

    def _still_read(self, after: int, buffer: int) -> str:
        """Why a buffer must be written: an operation from `after` on reads it; or empty."""
        for op in self._ops[after:]:
            access = access_of(op)
            if buffer in access.reads:
                return f"{type(op).__name__} reads {self._program.buffers[buffer].name} later"
            if buffer in access.writes:
                return ""
        return ""


def _tile_buffers(program: StepProgram, matcher: _Matcher) -> frozenset[int]:
    """Buffers that every operation that knows them keeps within a tile."""
    if not matcher.groups:
        return frozenset()
    kept: set[tuple[int, int]] = set()  # (operation, buffer)
    for group in matcher.groups:
        for buffer in _kept_in_tiles(program.ops[group.first : group.first + group.count], group):
            kept |= {(i, buffer) for i in range(group.first, group.first + group.count)}
    used = {
        (i, buffer)
        for i, op in enumerate(program.ops)
        for buffer in (*access_of(op).reads, *access_of(op).writes)
    }
    elsewhere = {buffer for _, buffer in used - kept}
    return frozenset({buffer for _, buffer in used} - elsewhere)


def _kept_in_tiles(ops: Sequence[Op], group: Group) -> tuple[int, ...]:
    """Buffers that a group does not write."""
    if group.pattern in (Pattern.ROWS, Pattern.HEADS):
        return ()
    last = access_of(ops[-1]).writes
    between = (buffer for op in ops[:-1] for buffer in access_of(op).writes)
    return tuple(buffer for buffer in between if buffer not in last)
