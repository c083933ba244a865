"""What a sequence takes from the prefix cache, and what it gives to it."""

from __future__ import annotations

from hearth.engine.kv.blocks import BlockManager
from hearth.engine.sequence import Sequence


def matched_hashes(sequence: Sequence, blocks: BlockManager) -> list[bytes]:
    """Hashes of the leading blocks that the cache holds.

    Never all known tokens: the last one must be computed to have logits to sample from, and
    a token of the prompt whose log-probability is wanted, the one before it.
    """
    if not blocks.enable_prefix_caching:
        return []
    block_size = blocks.block_size
    digests = sequence.block_hashes(sequence.first_wanted_row // block_size, block_size)
    return digests[: blocks.match(digests)]


def settle_blocks(sequence: Sequence, blocks: BlockManager) -> None:
    """Publishes blocks that have become full; frees those behind windows."""
    block_size = blocks.block_size
    num_full = sequence.num_computed // block_size
    if blocks.enable_prefix_caching:
        blocks.publish(sequence.table, sequence.block_hashes(num_full, block_size))
    blocks.free_behind_windows(sequence.table, sequence.num_computed)
    sequence.settle_at = (num_full + 1) * block_size


def free_finished(sequence: Sequence, blocks: BlockManager) -> None:
    """Gives the blocks of a sequence back that has ended.

    Clients of a phone agent take the image out of the conversation before they go on with it: what
    depends on one is the first to be evicted.
    """
    images = sequence.images
    dead_from = images.inputs[0].first_token // blocks.block_size if images else None
    blocks.free(sequence.table, dead_from)
