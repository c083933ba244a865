"""How keys and values lie in a block on the device, and how many bytes that is. No torch.

    block [ layer [ K [ kv head ] … , V [ kv head ] … ] … ]
    kv head, floats:  [block_size, head_dim]
    kv head, codes:   [block_size, head_dim] of 8 bits, then [block_size] scales in bfloat16

All layers of a group lie in one block, so that copying a block is one copy; a head's tokens follow
each other, so that a tile of keys in one block is one contiguous piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.errors import KernelError
from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType
from hearth.kernels.packing import BLOCK_SIZES, KV_SCALE_BYTES


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Of a KV group. Strides are in elements: floats of the cache's type, or codes of a byte."""

    spec: KvGroupSpec
    block_size: int
    dtype: KvDType

    @property
    def element_bytes(self) -> int:
        """Of a float, or of a code."""
        return self.dtype.bits // 8

    @property
    def head_stride(self) -> int:
        """From the keys of one head to those of the next."""
        scales = KV_SCALE_BYTES * self.block_size if self.dtype.is_coded else 0
        return self.block_size * self.spec.head_dim + scales

    @property
    def value_offset(self) -> int:
        """From the keys of a head to its values."""
        return self.spec.num_kv_heads * self.head_stride

    @property
    def layer_stride(self) -> int:
        """From one layer to the next."""
        return 2 * self.value_offset

    @property
    def block_stride(self) -> int:
        """From one block to the next."""
        return self.spec.num_layers * self.layer_stride


def device_block_bytes(group: KvGroupSpec, block_size: int, dtype: KvDType) -> int:
    """Bytes of one block of a KV group on the device, over all its layers; scales included."""
    layout = KvLayout(group, block_size, dtype)
    return layout.block_stride * layout.element_bytes


def check_layout(layout: KvLayout) -> None:
    """Raises KernelError where the kernels cannot keep such a cache."""
    if layout.dtype is KvDType.INT4:
        raise KernelError(
            "the KV cache is int4, which the GPU's kernels do not read; permitted: bfloat16, "
            "float16, float32, int8, fp8",
            hint="--kv-dtype int8 needs half the memory of bfloat16",
        )
    if layout.block_size not in BLOCK_SIZES:
        raise KernelError(
            f"blocks hold {layout.block_size} tokens; permitted: "
            + ", ".join(str(size) for size in BLOCK_SIZES)
        )
