"""Matrices in FP8 (e4m3): DeepSeek's declaration, and the form that compressed-tensors' leads to.

`quant_method: "fp8"`: `weight_block_size` [rows, columns] that share a `weight_scale_inv`; without
it one `weight_scale` a tensor; `modules_to_not_convert` (`ignored_layers`) are plain. A weight is
its element times the scale, whatever the tensor is called.

Kernels read FP8 as it is, with a scale for each group of columns of a row: a scale that holds for
more of them, or for several rows, is repeated. Blocks whose columns no group divides are converted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hearth.core.spec import CodesForm, SlotKind, WeightSlot
from hearth.core.units import round_up
from hearth.models.config_json import ConfigJson
from hearth.models.safetensors_file import TensorEntry

FORMAT = "fp8"
SCALES = ("_scale_inv", "_scale")
_GROUPS = (128, 64, 32)  # that kernels have
_PLAIN = ("embed_tokens", "lm_head", ".gate.weight", "router", "visual.", "vision")


@dataclass(frozen=True, slots=True)
class Fp8Forms:
    """`plain`: parts of the names of tensors that are stored plainly, where no file tells."""

    form: CodesForm
    dtypes: Mapping[str, str] | None
    plain: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def holds(self, tensor: str) -> bool:
        """See `StoredForms`."""
        return self.dtypes is not None and has_scale(tensor, self.dtypes)

    def form_of(self, slot: WeightSlot, tensor: str) -> CodesForm | None:
        """See `StoredForms`."""
        if slot.kind is SlotKind.VECTOR:
            return None
        if self.dtypes is not None:
            return self.form if self.holds(tensor) else None
        if slot.kind is SlotKind.TABLE or any(part in tensor for part in self.plain):
            return None
        return self.form

    def has_wide_scales(self, tensors: Sequence[str]) -> bool:
        """See `StoredForms`; without files as DeepSeek and Qwen have them, in float32."""
        if self.dtypes is None:
            return True
        scales = (self.dtypes.get(tensor + suffix) for tensor in tensors for suffix in SCALES)
        return any(dtype not in (None, "BF16") for dtype in scales)


def fp8_form(rows: int, cols: int) -> CodesForm:
    """Of blocks of `rows` × `cols` that share a scale; 0: all of them."""
    blocks = f"blocks of {rows} × {cols}" if rows and cols else f"groups of {cols} columns"
    if not cols:
        blocks = "a scale a row" if rows else "one scale"
    group_size = next((size for size in _GROUPS if cols % size == 0), 0) if cols else 0
    what = f"FP8 (e4m3, {blocks})" if cols and not group_size else ""
    return CodesForm(FORMAT, 0, group_size, symmetric=True, block=(rows, cols), converted=what)


def group_size_of(form: CodesForm, num_columns: int) -> int:
    """Columns of a row that share a scale in a kernel; 0: the form is converted."""
    if form.converted:
        return 0
    whole = (size for size in _GROUPS if num_columns % size == 0)
    return form.group_size or next(whole, min(_GROUPS[0], round_up(num_columns, _GROUPS[-1])))


def has_scale(tensor: str, names: Collection[str] | Mapping[str, str]) -> bool:
    """Whether a checkpoint with these tensors has scales of `tensor`."""
    return any(tensor + suffix in names for suffix in SCALES)


def read_forms(section: ConfigJson, tensors: Mapping[str, TensorEntry] | None) -> Fp8Forms:
    """What the section declares. Raises ModelError for what is not read."""
    if section.text("fmt", default="e4m3") != "e4m3":
        raise section.error("fmt", '"e4m3"')
    rows = cols = 0
    if section.has("weight_block_size"):
        rows, cols = read_block(section, "weight_block_size")
    plain = [*_PLAIN]
    for key in ("modules_to_not_convert", "ignored_layers"):
        listed = section.values.get(key) or []
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise section.error(key, "a list of names")
        plain += listed
    dtypes = None if tensors is None else {name: entry.dtype for name, entry in tensors.items()}
    return Fp8Forms(fp8_form(rows, cols), dtypes, tuple(plain))


def read_block(section: ConfigJson, key: str) -> tuple[int, int]:
    """Two sizes, of rows and columns. Raises ModelError."""
    block = section.values.get(key)
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and 0 < size <= 1 << 20 for size in block)
    ):
        raise section.error(key, "[rows, columns], both at least 1")
    return block[0], block[1]
