"""The KV cache on the device: one tensor a KV group, allocated once; see `kv_layout`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType
from hearth.kernels.triton.kv_codes import FLOATS, FP8_BITS, FP8_NATIVE, INT8
from hearth.kernels.triton.kv_layout import KvLayout, check_layout

_FLOAT_TYPES = {
    KvDType.FLOAT32: torch.float32,
    KvDType.BFLOAT16: torch.bfloat16,
    KvDType.FLOAT16: torch.float16,
}
_NATIVE_FP8 = (8, 9)  # the first compute capability that converts e4m3 in hardware


@dataclass(frozen=True, slots=True)
class KvGroup:
    """One group's memory, [num_blocks, block_stride] elements; `codes` is a kind of `kv_codes`.

    `scales` sees the same memory as bfloat16; without codes nothing reads it.
    """

    layout: KvLayout
    data: torch.Tensor
    scales: torch.Tensor
    codes: int


class KvCache:
    """Keys and values of every group. Memory is zero at first and never moves."""

    def __init__(
        self,
        groups: Sequence[KvGroupSpec],
        num_blocks: Sequence[int],
        block_size: int,
        dtype: KvDType,
        device: torch.device | str,
    ) -> None:
        """Allocates num_blocks[g] blocks of `block_size` tokens. Raises KernelError: int4."""
        self._dtype = dtype
        device = torch.device(device)
        codes = _kind(dtype, device)
        built = []
        for spec, count in zip(groups, num_blocks, strict=True):
            layout = KvLayout(spec, block_size, dtype)
            check_layout(layout)
            shape = (count, layout.block_stride * layout.element_bytes)
            memory = torch.zeros(shape, dtype=torch.uint8, device=device)
            element = torch.uint8 if codes in (FP8_BITS, FP8_NATIVE) else torch.int8
            data = memory.view(element if codes != FLOATS else _FLOAT_TYPES[dtype])
            scales = memory.view(torch.bfloat16) if codes != FLOATS else data
            built.append(KvGroup(layout, data, scales, codes))
        self._groups = tuple(built)

    @property
    def dtype(self) -> KvDType:
        """How keys and values are stored."""
        return self._dtype

    @property
    def num_bytes(self) -> int:
        """Of all groups."""
        return sum(group.data.nbytes for group in self._groups)

    def group(self, index: int) -> KvGroup:
        """The memory of a group."""
        return self._groups[index]

    def copy_block(self, group: int, source: int, target: int) -> None:
        """Copies one block, all layers, in the order of the current stream."""
        data = self._groups[group].data
        data[target].copy_(data[source], non_blocking=True)

    def copy_blocks(self, copies: Sequence[Sequence[int]]) -> None:
        """Copies (group, from, to), one after the other: a block may be the source of the next."""
        for group, source, target in copies:
            self.copy_block(group, source, target)


def _kind(dtype: KvDType, device: torch.device) -> int:
    if dtype is KvDType.INT8:
        return INT8
    if dtype is not KvDType.FP8:
        return FLOATS
    is_native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _NATIVE_FP8
    return FP8_NATIVE if is_native else FP8_BITS
