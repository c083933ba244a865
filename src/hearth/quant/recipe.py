"""Which tensors of a checkpoint become codes, in which form, and the section that says so.

The choice is that of `--quantize` when a model is loaded (`models/quantize`), so that the codes are
the same as well. Left as they are, besides: embeddings (transformers does not load them as codes),
matrices of more than two dimensions (convolutions, experts in one tensor), rows that whole groups
do not fill; loading a model makes codes of them as of any other.
The section is that of compressed-tensors (`quantization_config`), which transformers and vLLM read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hearth.core.spec import ModelSpec, QuantSpec, WeightSlot, WeightSource
from hearth.models.stored import METHOD, PACKED

_WEIGHT = ".weight"
_PREFIXES = ("model", "language_model", "text_model")
Section = dict[str, object]
_Form = tuple[int, int, bool]  # bits, group size, symmetric


@dataclass(frozen=True, slots=True)
class Recipe:
    """The slots whose tensors become codes, by every name that a checkpoint may give a tensor."""

    slots: Mapping[str, WeightSlot]
    tied: bool = False

    def slot_of(self, tensor: str, shape: tuple[int, ...]) -> WeightSlot | None:
        """The slot, of one matrix, that says how a tensor is coded; None: it stays as it is."""
        slot = self.slots.get(tensor)
        if slot is None or len(shape) != 2 or shape[1] != slot.cols:
            return None
        return slot


def recipe_of(spec: ModelSpec) -> Recipe:
    """For a spec as `models.quantize.quantized` makes it."""
    slots: dict[str, WeightSlot] = {}
    for slot in spec.slots:
        if not slot.quant.bits or slot.name == spec.embedding or slot.cols % slot.quant.group_size:
            continue
        for source in slot.sources:
            for name in _names(source):
                if name.endswith(_WEIGHT):
                    slots[name] = slot
    return Recipe(slots, spec.tied)


def config_section(coded: Mapping[str, WeightSlot], plain: Iterable[str]) -> Section:
    """`quantization_config` of a checkpoint: its coded tensors, and the other matrices' names."""
    forms = Counter(map(_form_of, coded.values()))
    most = forms.most_common(1)[0][0]
    groups: dict[_Form, set[str]] = {}
    for tensor, slot in coded.items():
        form = _form_of(slot)
        groups.setdefault(form, set()).add("Linear" if form == most else _pattern(tensor))
    ordered = sorted(groups.items(), key=lambda item: item[0] != most)
    return {
        "quant_method": METHOD,
        "format": PACKED,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": _group(form, targets) for i, (form, targets) in enumerate(ordered)
        },
        "ignore": sorted({_pattern(name) for name in plain}),
        "kv_cache_scheme": None,
    }


def _form_of(slot: WeightSlot) -> _Form:
    return slot.quant.bits, slot.quant.group_size, slot.quant.symmetric


def _group(form: _Form, targets: set[str]) -> Section:
    bits, group_size, symmetric = form
    return {
        "targets": sorted(targets),
        "weights": {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "group",
            "group_size": group_size,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
        "format": PACKED,
    }


def _pattern(tensor: str) -> str:
    """An expression for a tensor's module in all layers, whatever stands before their list.

    transformers and checkpoints give the parts of a model different prefixes.
    """
    parts = tensor.removesuffix(_WEIGHT).split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if first is not None:
        kept = parts[max(0, first - 1) :]
    else:
        kept = parts[-2:] if len(parts) > 1 and parts[-2] not in _PREFIXES else parts[-1:]
    escaped = r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in kept)
    return rf"re:(.*\.)?{escaped}$"


def _names(source: WeightSource) -> Iterator[str]:
    current: WeightSource | None = source
    while current is not None:
        yield current.tensor
        current = current.otherwise


def storage_bytes(quant: QuantSpec, rows: int, cols: int) -> int:
    """Bytes of a coded matrix in a checkpoint: codes, scales, zero points, shape."""
    groups = cols // quant.group_size
    zeros = 0 if quant.symmetric else -(-rows * quant.bits // 32) * 4 * groups
    return rows * (-(-cols * quant.bits // 32) * 4 + 2 * groups) + zeros + 16
