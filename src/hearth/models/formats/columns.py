"""What the declarations of GPTQ and AWQ have in common: one form for all matrices of a model.

A module's matrix is `qweight` with `qzeros` and `scales`, all of them with a row for each input, so
that neighbouring columns of the file are neighbouring outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hearth.core.spec import CodesForm, SlotKind, WeightSlot
from hearth.models.config_json import ConfigJson
from hearth.models.safetensors_file import TensorEntry
from hearth.models.stored import LEAST_GROUP, MAX_GROUP, UNREAD

_WEIGHT, _CODES, _SCALES = ".weight", ".qweight", ".scales"


@dataclass(frozen=True, slots=True)
class ColumnForms:
    """`form` of every quantized matrix; of those in `ordered`, by module, with its columns ordered.

    `plain`: parts of the names of modules that are no codes, for models whose files are elsewhere.
    """

    form: CodesForm
    dtypes: Mapping[str, str] | None
    plain: tuple[str, ...] = ()
    ordered: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = field(default=())

    def holds(self, tensor: str) -> bool:
        """See `StoredForms`."""
        return self.dtypes is not None and has_columns(tensor, self.dtypes)

    def form_of(self, slot: WeightSlot, tensor: str) -> CodesForm | None:
        """See `StoredForms`."""
        if slot.kind is SlotKind.VECTOR:
            return None
        if self.dtypes is not None:
            if not self.holds(tensor):
                return None
        elif slot.kind is SlotKind.TABLE or any(part in tensor for part in self.plain):
            return None
        if tensor.removesuffix(_WEIGHT) in self.ordered:
            return ordered_form(self.form)
        return self.form

    def has_wide_scales(self, tensors: Sequence[str]) -> bool:
        """See `StoredForms`; without files as the methods write them, in float16."""
        if self.dtypes is None:
            return True
        names = (tensor.removesuffix(_WEIGHT) + _SCALES for tensor in tensors)
        return any(self.dtypes.get(name) != "BF16" for name in names)


def has_columns(tensor: str, names: Collection[str] | Mapping[str, str]) -> bool:
    """Whether a checkpoint with these tensors holds `tensor`, ….weight, in columns of codes."""
    return tensor.removesuffix(_WEIGHT) + _CODES in names


def modules_of(tensors: Mapping[str, TensorEntry]) -> list[str]:
    """Modules whose matrices are codes, sorted."""
    return sorted(n.removesuffix(_CODES) for n in tensors if n.endswith(_CODES))


def read_size(section: ConfigJson) -> int:
    """`group_size`: inputs that share a scale; 0 for all of them, which files call −1."""
    if section.values.get("group_size") == -1:
        return 0
    return section.integer("group_size", minimum=1, maximum=1 << 20, default=128)


def read_bits(section: ConfigJson, permitted: tuple[int, ...]) -> int:
    """`bits`, which some writers call `w_bit`."""
    key = "bits" if section.has("bits") else "w_bit"
    bits = section.integer(key, minimum=1, maximum=32)
    if bits not in permitted:
        raise section.error(key, ", ".join(map(str, permitted)), hint=UNREAD)
    return bits


def with_conversion(form: CodesForm, method: str) -> CodesForm:
    """The form; one whose groups no kernel has is converted."""
    size = form.group_size
    if size % LEAST_GROUP == 0 and size <= MAX_GROUP:
        return form
    return replace(form, converted=f"{method} ({form.bits} bits, groups of {size})")


def ordered_form(form: CodesForm) -> CodesForm:
    """The same with columns in an order by activation."""
    what = f"GPTQ in the order of activations ({form.bits} bits, groups of {form.group_size})"
    return replace(form, is_ordered=True, converted=what)
