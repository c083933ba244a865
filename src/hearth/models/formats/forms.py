"""Which tensors of a checkpoint are codes, in whose format, and how the program keeps them.

`quantization_config` of config.json names the method; where the files are at hand, their tensors
say which matrices are codes. Imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from hearth.core.config import CodesConfig
from hearth.core.errors import ModelError
from hearth.core.spec import CodesForm, ModelSpec, QuantSpec, SlotKind, WeightSlot, WeightSource
from hearth.core.units import round_up
from hearth.models.config_json import ConfigJson
from hearth.models.formats.fp8 import FORMAT as FP8
from hearth.models.formats.fp8 import group_size_of
from hearth.models.quantize import with_rows
from hearth.models.safetensors_file import TensorEntry
from hearth.models.stored import KEY, LEAST_GROUP, METHOD, PACKED, PLAIN_INT, UNREAD
from hearth.models.stored import read_compressed as _read_compressed

if TYPE_CHECKING:
    from hearth.models.formats.matrix import StoredMatrix
    from hearth.models.safetensors_file import Checkpoint

_ROW_GROUP = 128  # a scale for a whole row is repeated for groups of so many columns
CONVERTED_GROUP = 32
# Of several forms in one slot.
MIXED = CodesForm("mixed", 8, CONVERTED_GROUP, symmetric=True)
_METHODS = {
    "gptq": "hearth.models.formats.gptq",
    "awq": "hearth.models.formats.awq",
    "fp8": "hearth.models.formats.fp8",
    "gguf": "hearth.models.formats.gguf",
    "bitsandbytes": "hearth.models.formats.bitsandbytes",
}
_ROWS = {
    PACKED: "hearth.models.stored_rows",
    PLAIN_INT: "hearth.models.stored_rows",
    "gptq": "hearth.models.formats.gptq_rows",
    "awq": "hearth.models.formats.awq_rows",
    "fp8": "hearth.models.formats.fp8_rows",
    "gguf": "hearth.models.formats.gguf_rows",
    "bitsandbytes-4bit": "hearth.models.formats.bitsandbytes_rows",
    "bitsandbytes-int8": "hearth.models.formats.bitsandbytes_rows",
}


class StoredForms(Protocol):
    """What a checkpoint stores as codes. `dtypes`: of its tensors, None where no file was read."""

    @property
    def dtypes(self) -> Mapping[str, str] | None: ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know of how the checkpoint is read."""
        ...

    def holds(self, tensor: str) -> bool:
        """Whether the files have the tensor as codes."""
        ...

    def form_of(self, slot: WeightSlot, tensor: str) -> CodesForm | None:
        """The form of a tensor `….weight`; None: it is stored plainly. Raises ModelError."""
        ...

    def has_wide_scales(self, tensors: Sequence[str]) -> bool:
        """Whether bfloat16 does not hold the scales of a slot's tensors."""
        ...


class Rows(Protocol):
    """What a format's `…_rows` module offers."""

    def is_there(self, tensor: str, names: Collection[str]) -> bool:
        """Whether a checkpoint with these tensors has `tensor`, ….weight, in this format."""
        ...

    def matrix(
        self, form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
    ) -> StoredMatrix:
        """The matrix, checked against the form. Raises WeightsError."""
        ...


def rows_of(form: CodesForm) -> Rows:
    """The reader of a form's format."""
    return cast(Rows, importlib.import_module(_ROWS[form.format]))


def read_stored(
    config: ConfigJson, tensors: Mapping[str, TensorEntry] | None = None
) -> StoredForms | None:
    """What `quantization_config` declares; None: nothing is quantized.

    `tensors`: the checkpoint's, where its files are at hand. Raises ModelError for methods, formats
    and forms that are not read.
    """
    section = config.section(KEY)
    if section is None:
        return None
    method = section.text("quant_method", default="")
    if method == METHOD:
        dtypes = None if tensors is None else {n: entry.dtype for n, entry in tensors.items()}
        return _read_compressed(section, dtypes)
    if method not in _METHODS:
        permitted = ", ".join(f'"{name}"' for name in (METHOD, *_METHODS))
        raise section.error("quant_method", permitted, hint=UNREAD)
    forms: StoredForms = importlib.import_module(_METHODS[method]).read_forms(section, tensors)
    return forms


def with_stored(spec: ModelSpec, stored: StoredForms | None, codes: CodesConfig) -> ModelSpec:
    """The same model with the slots whose tensors are codes stored as these say.

    Raises ModelError for parts of one matrix that are stored differently.
    """
    if stored is None:
        return spec
    return replace(spec, slots=tuple(_as_stored(slot, stored, codes) for slot in spec.slots))


def _as_stored(slot: WeightSlot, stored: StoredForms, codes: CodesConfig) -> WeightSlot:
    tensors = tuple(_present(source, stored) for source in slot.sources)
    forms = tuple(stored.form_of(slot, tensor) for tensor in tensors)
    if set(forms) == {None}:
        return slot
    if slot.kind is SlotKind.VECTOR:  # floating point, some of it in another order
        return replace(slot, stored=next(form for form in forms if form), parts=forms)
    known = tuple(form for form in forms if form is not None)
    if slot.stack > 1 and len(slot.sources) == 1:
        raise _different(tensors)
    if len(known) == len(forms) and {form.format for form in known} == {"gptq"}:
        forms = known = (next((f for f in known if f.is_ordered), known[0]),) * len(forms)
    alike = {None if form is None else replace(form, heads=0, rotary=0) for form in forms}
    if len(alike) == 1:
        form = replace(known[0], heads=0, rotary=0)
        parts = known if any(f.heads for f in known) else ()
        quant = _quant_of(slot, form, codes, wide=stored.has_wide_scales(tensors))
        return replace(slot, quant=quant, stored=form, parts=parts)
    if len(known) < len(forms) or not all(_can_mix(form) for form in known):
        raise _different(tensors)
    wide = any(form.bits and not form.converted for form in known)  # those are float16
    parts = tuple(_in_a_mix(form) for form in known)
    return replace(slot, quant=_quant_of(slot, MIXED, codes, wide=wide), stored=MIXED, parts=parts)


def _can_mix(form: CodesForm) -> bool:
    """Whether int8 in groups of 32 takes it: exactly, or rounded as it would be alone."""
    return form.format == "gguf"


def _in_a_mix(form: CodesForm) -> CodesForm:
    """Floating point beside codes becomes codes, too."""
    if form.bits or form.converted:
        return form
    return replace(form, converted="floating point beside codes of the same matrix (GGUF)")


def _different(tensors: Sequence[str]) -> ModelError:
    return ModelError(
        f"config.json: {KEY}: {', '.join(tensors[:4])} are stored in different forms; "
        "permitted: one form for what is multiplied together",
        hint=UNREAD,
    )


def _quant_of(slot: WeightSlot, form: CodesForm, codes: CodesConfig, *, wide: bool) -> QuantSpec:
    """How the program stores the codes: as they are; a table's as bytes, which hold any others."""
    if form.format == FP8 and not form.converted:
        group_size = group_size_of(form, slot.cols)
        return QuantSpec(slot.quant.dtype, 8, group_size, wide_scales=wide, is_float=True)
    if not form.bits:
        return slot.quant
    is_table = slot.kind is SlotKind.TABLE
    if form.converted:
        quant = QuantSpec(slot.quant.dtype, 8, CONVERTED_GROUP)
        return quant if is_table else with_rows(quant, codes)
    if is_table and not form.symmetric and form.bits == 8:
        raise ModelError(
            f"config.json: {KEY}: {slot.name} has 8 bits and zero points; permitted for it: "
            "symmetric codes",
            hint=UNREAD,
        )
    quant = QuantSpec(
        dtype=slot.quant.dtype,
        bits=8 if is_table else form.bits,
        group_size=form.group_size or min(_ROW_GROUP, round_up(slot.cols, LEAST_GROUP)),
        symmetric=is_table or form.symmetric,
        wide_scales=wide,
    )
    return quant if is_table else with_rows(quant, codes)


def _present(source: WeightSource, stored: StoredForms) -> str:
    """The name under which the checkpoint has a source; without files, the first."""
    candidate: WeightSource | None = source
    while stored.dtypes is not None and candidate is not None:
        if candidate.tensor in stored.dtypes or stored.holds(candidate.tensor):
            return candidate.tensor
        candidate = candidate.otherwise
    return source.tensor
