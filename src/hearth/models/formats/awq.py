"""AWQ checkpoints (arXiv 2306.00978), as AutoAWQ's GEMM version writes them: their declaration.

`quantization_config`: `bits` 4, `group_size`, `zero_point`, `version`, `modules_to_not_convert`.
"""

from __future__ import annotations

from collections.abc import Mapping

from hearth.core.spec import CodesForm
from hearth.models.config_json import ConfigJson
from hearth.models.formats.columns import ColumnForms, read_bits, read_size, with_conversion
from hearth.models.safetensors_file import TensorEntry
from hearth.models.stored import UNREAD

_PLAIN = ("lm_head", "visual.", "vision", ".gate.weight", "router")


def read_forms(section: ConfigJson, tensors: Mapping[str, TensorEntry] | None) -> ColumnForms:
    """What the section declares. Raises ModelError for what is not read."""
    version = section.text("version", default="gemm").lower()
    if version != "gemm":
        raise section.error("version", '"gemm"', hint=UNREAD)
    left_out = section.values.get("modules_to_not_convert") or []
    if not isinstance(left_out, list) or not all(isinstance(name, str) for name in left_out):
        raise section.error("modules_to_not_convert", "a list of names")
    # Files always have zero points; without them they are the middle, which costs a byte a group.
    form = CodesForm("awq", read_bits(section, (4,)), read_size(section), symmetric=False)
    dtypes = None if tensors is None else {name: entry.dtype for name, entry in tensors.items()}
    return ColumnForms(with_conversion(form, "AWQ"), dtypes, (*_PLAIN, *left_out))
