"""The arithmetic of KV blocks that the memory plan and the block manager must agree on."""

from __future__ import annotations

from hearth.core.units import ceil_div


def max_blocks_held(num_tokens: int, window: int, step_tokens: int, block_size: int) -> int:
    """The most blocks that one sequence of `num_tokens` tokens ever holds in a group.

    A group with a `window` (tokens; 0: full attention) gives blocks behind it back when a step has
    filled a block: until then up to `block_size` − 1 computed tokens, the tokens of the next step
    (at most `step_tokens`) and the window before them are all held.
    """
    whole = ceil_div(num_tokens, block_size)
    if window == 0:
        return whole
    ahead = ceil_div(step_tokens + block_size - 1, block_size)
    return min(whole, ahead + ceil_div(window - 1, block_size))
