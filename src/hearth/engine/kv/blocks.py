"""BlockManager: which block of the KV cache belongs to whom. Integers only, no arrays.

A *group* is a set of layers that share block tables; each group has blocks of its own, numbered
from 0. In each group every block is in exactly one of three states:

  blank       in `free`       nobody refers to it, its content is worthless
  cached      in `cached`     nobody refers to it, but `by_hash` still finds its content (LRU)
  referenced  refs[b] > 0     in so many block tables; published blocks are found by `by_hash` too

  blank ─allocate→ referenced ─free→ blank, or cached if published; cached ─match→ referenced;
  cached ─allocate (evicts the least recently used)→ referenced

Only full, computed blocks are published, so whatever a match finds can be read at once. Blocks of
a group with a window are freed as the window moves on: a table lists the blocks from index
`first_block` of the sequence. Copies between blocks are planned by `Scheduler`, never done here.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from hearth.core.blocks import max_blocks_held
from hearth.core.units import ceil_div


class BlockTable:
    """The blocks of one sequence, per group, in order; owned by the sequence.

    All groups end at the same block: `end_block` is one past the last, counted from the start of
    the sequence; group g lists blocks `first_block[g]` … `end_block − 1`.
    """

    __slots__ = ("blocks", "end_block", "first_block", "num_published")

    def __init__(self, num_groups: int) -> None:
        self.blocks: list[array[int]] = [array("i") for _ in range(num_groups)]
        self.first_block: list[int] = [0] * num_groups
        self.end_block = 0
        self.num_published = 0  # leading blocks that have been offered to the prefix cache


class _Group:
    """The blocks of one group and their states."""

    __slots__ = ("by_hash", "cached", "free", "hash_of", "num_blocks", "refs", "window")

    def __init__(self, num_blocks: int, window: int) -> None:
        self.num_blocks = num_blocks
        self.window = window
        self.refs = [0] * num_blocks
        self.free = list(range(num_blocks - 1, -1, -1))
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.hash_of: list[bytes | None] = [None] * num_blocks
        self.by_hash: dict[bytes, int] = {}

    def first_needed(self, position: int, block_size: int) -> int:
        """The first block that the token at `position` attends to."""
        if self.window == 0:
            return 0
        return max(0, position - self.window + 1) // block_size

    def take(self) -> int:
        """A block with unspecified content, referenced once; evicts if it must."""
        if self.free:
            block = self.free.pop()
        else:
            block, _ = self.cached.popitem(last=False)
            digest = self.hash_of[block]
            assert digest is not None
            del self.by_hash[digest]
            self.hash_of[block] = None
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a published block."""
        if self.refs[block] == 0:
            del self.cached[block]
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """One reference less."""
        self.refs[block] -= 1
        if self.refs[block] == 0:
            if self.hash_of[block] is None:
                self.free.append(block)
            else:
                self.cached[block] = None

    def expire(self, blocks: Sequence[int]) -> None:
        """Of these, the ones that nobody uses are evicted next, the last one first."""
        for block in blocks:
            if block in self.cached:
                self.cached.move_to_end(block, last=False)


class BlockManager:
    """Hands out blocks to block tables and finds reusable ones by their hash."""

    def __init__(
        self,
        block_size: int,
        num_blocks: Sequence[int],
        windows: Sequence[int],
        *,
        enable_prefix_caching: bool,
    ) -> None:
        """`num_blocks[g]`, `windows[g]` (tokens; 0: full attention) of each group."""
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._groups = [_Group(n, w) for n, w in zip(num_blocks, windows, strict=True)]

    @property
    def num_groups(self) -> int:
        """KV groups."""
        return len(self._groups)

    @property
    def num_total(self) -> int:
        """Blocks over all groups."""
        return sum(group.num_blocks for group in self._groups)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, cached ones included, over all groups."""
        return sum(len(group.free) + len(group.cached) for group in self._groups)

    @property
    def num_cached(self) -> int:
        """Allocatable blocks that still hold a reusable prefix, over all groups."""
        return sum(len(group.cached) for group in self._groups)

    def new_table(self) -> BlockTable:
        """An empty table."""
        return BlockTable(len(self._groups))

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many leading blocks of a sequence can be reused; changes nothing.

        A full group needs all of them, a windowed group those that the next token attends to.
        """
        if not self.enable_prefix_caching:
            return 0
        num_matched = len(hashes)
        for group in self._groups:
            if group.window == 0:
                by_hash = group.by_hash
                for index in range(num_matched):
                    if hashes[index] not in by_hash:
                        num_matched = index
                        break
        windowed = [group for group in self._groups if group.window]
        while windowed and num_matched:
            hole = self._last_hole(windowed, hashes, num_matched)
            if hole < 0:
                break
            num_matched = hole  # whatever ends behind the hole, and before here, needs it too
        return num_matched

    def _last_hole(
        self, windowed: Sequence[_Group], hashes: Sequence[bytes], num_matched: int
    ) -> int:
        """The last block that the token after `num_matched` blocks needs and a group lacks; or −1.

        From behind, so that a walk through all holes looks at each block once: a long prompt that
        nobody knows must not cost more than a look at each of its hashes.
        """
        position = num_matched * self.block_size
        for group in windowed:
            if group.window > 1 and hashes[num_matched - 1] not in group.by_hash:
                return num_matched - 1  # the usual case, a cold prompt
        firsts = [group.first_needed(position, self.block_size) for group in windowed]
        for index in range(num_matched - 1, min(firsts) - 1, -1):
            for group, first in zip(windowed, firsts, strict=True):
                if index >= first and hashes[index] not in group.by_hash:
                    return index
        return -1

    def reserve(
        self, reserved: list[int], hashes: Sequence[bytes], num_tokens: int, step_tokens: int
    ) -> bool:
        """Sets aside what a sequence would take, beside the others, to hold `num_tokens` tokens.

        `hashes` are matched; a windowed group never holds more than its window and the
        `step_tokens` of one step. `reserved[g]` blocks are spoken for already, and grow by what
        this one takes; False, and nothing changed, when that is more than there is.
        """
        num_new_tokens = num_tokens - len(hashes) * self.block_size
        wanted = [
            max_blocks_held(num_new_tokens, group.window, step_tokens, self.block_size)
            for group in self._groups
        ]
        for index, group in enumerate(self._groups):
            if wanted[index] > self._num_available(group, hashes) - reserved[index]:
                return False
        for index, group in enumerate(self._groups):
            reserved[index] += wanted[index] + self._num_idle(group, hashes)
        return True

    def add_outstanding(
        self, totals: list[int], table: BlockTable, num_tokens: int, step_tokens: int
    ) -> None:
        """Adds to `totals[g]` what a table still needs to hold `num_tokens` tokens."""
        missing = num_tokens - table.end_block * self.block_size
        if missing > 0:
            for index, group in enumerate(self._groups):
                totals[index] += max_blocks_held(
                    missing, group.window, step_tokens, self.block_size
                )

    def _num_available(self, group: _Group, hashes: Sequence[bytes]) -> int:
        """Blocks that can be taken from a group after the matched ones are shared."""
        return len(group.free) + len(group.cached) - self._num_idle(group, hashes)

    def _num_idle(self, group: _Group, hashes: Sequence[bytes]) -> int:
        """Matched blocks that nobody uses: sharing them takes them from the free ones."""
        first = group.first_needed(len(hashes) * self.block_size, self.block_size)
        return sum(group.refs[group.by_hash[digest]] == 0 for digest in hashes[first:])

    def admit(self, table: BlockTable, hashes: Sequence[bytes], num_tokens: int) -> bool:
        """Fills an empty table: the matched blocks first, then new ones up to `num_tokens`.

        `hashes` is what `match` accepted. False, and nothing changed, when blocks run short.
        """
        num_matched = len(hashes)
        num_new = ceil_div(num_tokens, self.block_size) - num_matched
        if any(self._num_available(group, hashes) < num_new for group in self._groups):
            return False
        for index, group in enumerate(self._groups):
            first = group.first_needed(num_matched * self.block_size, self.block_size)
            shared = [group.by_hash[digest] for digest in hashes[first:]]
            for block in shared:
                group.share(block)
            table.first_block[index] = first
            table.blocks[index].extend(shared)
        table.end_block = table.num_published = num_matched
        return self.allocate(table, num_tokens)

    def allocate(self, table: BlockTable, num_tokens: int, *, spare: int = 0) -> bool:
        """Extends a table to hold `num_tokens` tokens from the sequence's start.

        False, and nothing changed, when some group runs short, or would have less than `spare`
        blocks left.
        """
        end_block = ceil_div(num_tokens, self.block_size)
        num_new = end_block - table.end_block
        if num_new <= 0:
            return True
        for group in self._groups:
            if len(group.free) + len(group.cached) < num_new + spare:
                return False
        for blocks, group in zip(table.blocks, self._groups, strict=True):
            for _ in range(num_new):
                blocks.append(group.take())
        table.end_block = end_block
        return True

    def publish(self, table: BlockTable, hashes: Sequence[bytes]) -> None:
        """Lets others find the first `len(hashes)` blocks, which are full and computed.

        A block whose content is already found elsewhere stays private to its table.
        """
        if not self.enable_prefix_caching:
            return
        for blocks, first, group in zip(table.blocks, table.first_block, self._groups, strict=True):
            for index in range(max(first, table.num_published), len(hashes)):
                block, digest = blocks[index - first], hashes[index]
                if group.hash_of[block] is None and digest not in group.by_hash:
                    group.hash_of[block] = digest
                    group.by_hash[digest] = block
        table.num_published = max(table.num_published, len(hashes))

    def free_behind_windows(self, table: BlockTable, position: int) -> None:
        """Frees blocks that neither the token at `position` nor any later one attends to."""
        for index, group in enumerate(self._groups):
            first = min(group.first_needed(position, self.block_size), table.end_block)
            num_behind = first - table.first_block[index]
            if num_behind > 0:
                blocks = table.blocks[index]
                for block in reversed(blocks[:num_behind]):
                    group.release(block)
                del blocks[:num_behind]
                table.first_block[index] = first

    def free(self, table: BlockTable, dead_from: int | None = None) -> None:
        """Empties a table. The tail goes first, so that it is also evicted first.

        Blocks from index `dead_from` on are not likely to be asked for again: they are evicted
        before all others.
        """
        for index, group in enumerate(self._groups):
            for block in reversed(table.blocks[index]):
                group.release(block)
            if dead_from is not None:
                group.expire(table.blocks[index][max(0, dead_from - table.first_block[index]) :])
            del table.blocks[index][:]
            table.first_block[index] = 0
        table.end_block = table.num_published = 0

    def hash_of(self, group: int, block: int) -> bytes | None:
        """The published hash of a block; None when it is private or blank."""
        return self._groups[group].hash_of[block]

    def check(self, tables: Iterable[BlockTable]) -> None:
        """Asserts the invariants; `tables` are all tables in existence. For tests and idle time."""
        expected = [[0] * group.num_blocks for group in self._groups]
        for table in tables:
            for index, blocks in enumerate(table.blocks):
                assert table.first_block[index] + len(blocks) == table.end_block, "table's end"
                assert len(set(blocks)) == len(blocks), "a block twice in a table"
                for block in blocks:
                    expected[index][block] += 1
        for index, group in enumerate(self._groups):
            assert group.refs == expected[index], f"group {index}: reference counts"
            _check_states(group)


def _check_states(group: _Group) -> None:
    """Asserts that every block is in exactly one state and that both hash maps agree."""
    free, cached = set(group.free), set(group.cached)
    assert len(free) == len(group.free), "a block twice in the free list"
    for block in range(group.num_blocks):
        states = (block in free) + (block in cached) + (group.refs[block] > 0)
        assert states == 1, f"block {block} is in {states} states"
        digest = group.hash_of[block]
        assert digest is None or group.by_hash.get(digest) == block, f"block {block}: hash"
        assert block not in free or digest is None, f"blank block {block} has a hash"
        assert block not in cached or digest is not None, f"cached block {block} has no hash"
    assert len(group.by_hash) == sum(digest is not None for digest in group.hash_of)
