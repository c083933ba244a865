"""Hashes that name the content of a KV block: what stands in it and everything before it.

hash(block) = SHA-256(hash(block before) ‖ its token ids as int32 ‖ extra keys), where the chain of
a sequence begins at SHA-256(domain ‖ cache key). The parts before the extra keys have fixed
lengths, so no two contents share an encoding. 256 bits: a collision, which would hand one user the
context of another, is out of reach even for somebody who picks the tokens. (Measured: 0.9 µs for a
block of 32 tokens with SHA instructions; BLAKE2b took the same.)
"""

from __future__ import annotations

import hashlib
from array import array

_DOMAIN = b"hearth-prefix-1\0"


def root_hash(cache_key: bytes) -> bytes:
    """The parent of a sequence's first block; equal cache keys may share blocks."""
    return hashlib.sha256(_DOMAIN + cache_key).digest()


def extend_hashes(
    hashes: list[bytes],
    root: bytes,
    tokens: array[int],
    block_size: int,
    num_blocks: int,
    extra_keys: dict[int, bytes] | None = None,
) -> None:
    """Appends to `hashes` until it names the first `num_blocks` blocks of `tokens`.

    `extra_keys[i]`: what block i depends on besides its tokens, such as an image's hash.
    `tokens` holds int32, at least `num_blocks · block_size` of them.
    """
    parent = hashes[-1] if hashes else root
    for index in range(len(hashes), num_blocks):
        content = tokens[index * block_size : (index + 1) * block_size].tobytes()
        extra = extra_keys.get(index, b"") if extra_keys else b""
        parent = hashlib.sha256(parent + content + extra).digest()
        hashes.append(parent)
