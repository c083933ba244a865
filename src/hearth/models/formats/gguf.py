"""Matrices of GGUF files: which kernels take as they are, and which are converted.

Declared by hearth's own view of such a file (`models/gguf`), which has `quant_method: "gguf"`.
Q4_0 and Q8_0 are exact: codes of 4 and 8 bits in groups of 32 with a float16 scale. The others have
scales of scales, or offsets that no integer zero point gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hearth.core.spec import CodesForm, SlotKind, WeightSlot
from hearth.models.config_json import ConfigJson
from hearth.models.safetensors_file import TensorEntry

FORMAT = "gguf"
# How the rows of queries and keys lie: as in checkpoints, or what turns together as neighbours, or
# in halves of what is rotated.
PLAIN, PAIRS, HALVES = "plain", "pairs", "halves"
_FLOATS = ("F32", "F16", "BF16")
_HEADS = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}


@dataclass(frozen=True, slots=True)
class GgufForms:
    """`heads`: of queries and keys whose rows are in an order of llama.cpp's, `rotary` says which.

    Empty: they lie as in checkpoints.
    """

    dtypes: Mapping[str, str] | None
    heads: Mapping[str, int]
    rotary: int = 0
    warnings: tuple[str, ...] = ()

    def holds(self, tensor: str) -> bool:
        """See `StoredForms`."""
        return self.dtypes is not None and tensor in self.dtypes

    def form_of(self, slot: WeightSlot, tensor: str) -> CodesForm | None:
        """See `StoredForms`."""
        name = (self.dtypes or {}).get(tensor)
        if name is None:
            return None
        heads = 0
        if ".self_attn." in tensor:
            heads = next((n for part, n in self.heads.items() if part in tensor), 0)
        if slot.kind is SlotKind.VECTOR and not heads:
            return None
        return replace(_form(name), heads=heads, rotary=self.rotary if heads else 0)

    def has_wide_scales(self, tensors: Sequence[str]) -> bool:
        """See `StoredForms`."""
        return True


def _form(dtype: str) -> CodesForm:
    if dtype in _FLOATS:
        return CodesForm(FORMAT, 0, 0, symmetric=True)
    if dtype in ("Q4_0", "Q8_0"):
        return CodesForm(FORMAT, 4 if dtype == "Q4_0" else 8, 32, symmetric=True)
    return CodesForm(FORMAT, 8, 32, symmetric=True, converted=f"GGUF {dtype}")


def read_forms(section: ConfigJson, tensors: Mapping[str, TensorEntry] | None) -> GgufForms:
    """What the section declares."""
    dtypes = None if tensors is None else {name: entry.dtype for name, entry in tensors.items()}
    order = section.text("rows", default=PLAIN)
    if order not in (PLAIN, PAIRS, HALVES):
        raise section.error("rows", f'"{PLAIN}", "{PAIRS}", "{HALVES}"')
    if order == PLAIN:
        return GgufForms(dtypes, {})
    heads = {part: section.integer(key, minimum=1, maximum=1 << 20) for part, key in _HEADS.items()}
    rotary = 0
    if order == HALVES:
        rotary = section.integer("rotary_dim", minimum=2, maximum=1 << 20)
    return GgufForms(dtypes, heads, rotary)
