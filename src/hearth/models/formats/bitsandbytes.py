"""bitsandbytes checkpoints, as transformers saves them: their declaration.

`quantization_config`: `load_in_4bit` with `bnb_4bit_quant_type` (nf4, fp4), or `load_in_8bit`;
`llm_int8_skip_modules` are plain. Of 4 bits the sixteen values lie in the file, so that both kinds
are read alike. INT8 (arXiv 2208.07339) has one scale a row; the columns that it leaves in float16
are chosen anew for every input and are not stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hearth.core.spec import CodesForm, SlotKind, WeightSlot
from hearth.models.config_json import ConfigJson
from hearth.models.safetensors_file import TensorEntry

FOUR_BITS, INT8 = "bitsandbytes-4bit", "bitsandbytes-int8"
KINDS = ("nf4", "fp4")
STATE = ".quant_state.bitsandbytes__"
_PLAIN = ("embed_tokens", "lm_head", "visual.", "vision")


@dataclass(frozen=True, slots=True)
class BitsForms:
    """`plain`: parts of the names of modules that are no codes, where no file tells."""

    form: CodesForm
    dtypes: Mapping[str, str] | None
    plain: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def holds(self, tensor: str) -> bool:
        """See `StoredForms`."""
        return self.dtypes is not None and has_state(self.form, tensor, self.dtypes)

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
        """See `StoredForms`."""
        return True


def has_state(form: CodesForm, tensor: str, names: Collection[str] | Mapping[str, str]) -> bool:
    """Whether a checkpoint with these tensors holds `tensor`, ….weight, as codes."""
    if form.format == INT8:
        return f"{tensor.removesuffix('.weight')}.SCB" in names
    return any(f"{tensor}{STATE}{kind}" in names for kind in KINDS)


def read_forms(section: ConfigJson, tensors: Mapping[str, TensorEntry] | None) -> BitsForms:
    """What the section declares. Raises ModelError for what contradicts itself."""
    is_four = section.flag("load_in_4bit", default=False)
    if is_four == section.flag("load_in_8bit", default=False):
        raise section.error("load_in_4bit", "true where load_in_8bit is false, and the reverse")
    kind = section.text("bnb_4bit_quant_type", default="fp4")
    if is_four and kind not in KINDS:
        raise section.error("bnb_4bit_quant_type", ", ".join(f'"{name}"' for name in KINDS))
    skipped = section.values.get("llm_int8_skip_modules") or []
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise section.error("llm_int8_skip_modules", "a list of names, null")
    form = CodesForm(INT8, 8, 0, symmetric=True)
    if is_four:
        form = CodesForm(FOUR_BITS, 4, 0, symmetric=True, converted=f"bitsandbytes {kind.upper()}")
    dtypes = None if tensors is None else {name: entry.dtype for name, entry in tensors.items()}
    return BitsForms(form, dtypes, (*_PLAIN, *skipped))
