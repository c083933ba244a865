"""Matching a prompt in a cache with windows: how far, and at what cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hearth.engine.kv.blocks import BlockManager


class CountedHashes(list[bytes]):
    """Counts how often any of them is looked at."""

    num_looks = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # list's own overloads
        self.num_looks += 1
        return super().__getitem__(index)


def manager_with(held: list[set[int]], windows: list[int], hashes: list[bytes]) -> BlockManager:
    """A manager whose group g finds the hashes of the blocks in `held[g]`."""
    blocks = BlockManager(4, [64] * len(windows), windows, enable_prefix_caching=True)
    for index in range(len(hashes)):
        for group, holds in zip(blocks._groups, held, strict=True):
            if index in holds:
                group.by_hash[hashes[index]] = index
    return blocks


@given(
    st.integers(0, 16),
    st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 8, 13, 40]), st.sets(st.integers(0, 15))),
        min_size=1,
        max_size=3,
    ),
)
def test_the_longest_prefix_is_found_that_every_group_can_go_on_from(
    num_hashes: int, groups: list[tuple[int, set[int]]]
) -> None:
    hashes = [bytes([index]) * 32 for index in range(num_hashes)]
    blocks = manager_with([held for _, held in groups], [window for window, _ in groups], hashes)

    def can_go_on(length: int) -> bool:
        return all(
            index in held
            for window, held in groups
            for index in range(max(0, 4 * length - window + 1) // 4 if window else 0, length)
        )

    longest = max(length for length in range(num_hashes + 1) if can_go_on(length))
    assert blocks.match(hashes) == longest


def test_a_prompt_with_holes_in_the_cache_costs_one_look_at_each_block() -> None:
    """Holes a window apart would otherwise cost a window's looks for every block."""
    hashes = CountedHashes(index.to_bytes(4, "little") * 8 for index in range(2000))
    held = {index for index in range(2000) if index % 99 != 98}
    blocks = manager_with([held], [400], hashes)
    assert blocks.match(hashes) == 98
    assert hashes.num_looks <= 3 * len(hashes)
