"""GPTQ checkpoints (arXiv 2210.17323), as AutoGPTQ and GPTQModel write them: their declaration.

`quantization_config`: `bits`, `group_size`, `sym`, `desc_act`, `checkpoint_format`. Version 1 of
the format stores zero points less one, version 2 as they are, and files are labelled wrongly: of
files that are at hand the data decides, see `gptq_rows.find_version`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hearth.core.spec import CodesForm
from hearth.models.config_json import ConfigJson
from hearth.models.formats.columns import (
    ColumnForms,
    ordered_form,
    read_bits,
    read_size,
    with_conversion,
)
from hearth.models.safetensors_file import TensorEntry
from hearth.models.stored import UNREAD

_LABELS = {"gptq": 1, "gptq_v2": 2}
_PLAIN = ("lm_head", "visual.", "vision", ".gate.weight", "router")


def read_forms(section: ConfigJson, tensors: Mapping[str, TensorEntry] | None) -> ColumnForms:
    """What the section declares. Raises ModelError for what is not read."""
    label = section.text("checkpoint_format", default="gptq") or "gptq"
    if label not in _LABELS:
        permitted = ", ".join(f'"{name}"' for name in _LABELS)
        raise section.error("checkpoint_format", permitted, hint=UNREAD)
    if section.flag("is_marlin_format", default=False):
        raise section.error("is_marlin_format", "false", hint=UNREAD)
    _refuse_overrides(section)
    form = CodesForm(
        "gptq",
        read_bits(section, (4, 8)),
        read_size(section),
        symmetric=section.flag("sym", default=True),
        version=_LABELS[label],
    )
    is_ordered = section.flag("desc_act", default=False) and form.group_size > 0
    form = with_conversion(form, "GPTQ")
    plain = tuple(p for p in _PLAIN if p != "lm_head" or not section.flag(p, default=False))
    if tensors is None:
        if is_ordered:
            form = ordered_form(form)
        return ColumnForms(form, None, plain)
    from hearth.models.formats import gptq_rows  # numpy only where there are files

    form, warnings = _by_data(form, gptq_rows.find_version(tensors, form))
    ordered = gptq_rows.find_ordered(tensors, form.group_size) if is_ordered else frozenset()
    dtypes = {name: entry.dtype for name, entry in tensors.items()}
    return ColumnForms(form, dtypes, plain, ordered, warnings)


def _by_data(form: CodesForm, version: int) -> tuple[CodesForm, tuple[str, ...]]:
    """The form with the version that the data shows; 0: it does not tell."""
    if version in (0, form.version):
        return form, ()
    warning = (
        f"the checkpoint is labelled GPTQ version {form.version}, but its zero points are those of "
        f"version {version}: read as version {version}"
    )
    return replace(form, version=version), (warning,)


def _refuse_overrides(section: ConfigJson) -> None:
    """`dynamic`: other bits for some modules; those that are left out (`-:`) show in the files."""
    overrides = section.values.get("dynamic")
    if not overrides:
        return
    if not isinstance(overrides, dict) or any(not str(k).startswith("-:") for k in overrides):
        raise section.error("dynamic", "{}, null, modules that are left out (-:)", hint=UNREAD)
