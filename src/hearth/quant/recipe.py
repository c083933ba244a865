"""Which tensors of a checkpoint become codes, in which form, and the section that says so.

The choice is that of `--quantize` when a model is loaded (`models/quantize`), so that the codes are
the same as well. Left as they are, besides: embeddings (transformers does not load them as codes),
matrices of more than two dimensions (convolutions, experts in one tensor), rows that whole groups
do not fill; loading a model makes codes of them as of any other.
The section is that of compressed-tensors (`quantization_config`), which transformers and vLLM read.

A recipe `per_row` is that of int8 or FP8 layers whose inputs are rounded alike (`int-quantized`,
`float-quantized`): one scale a row, so that any row becomes codes, whatever its length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hearth.core.errors import ConfigError
from hearth.core.spec import ModelSpec, QuantSpec, WeightSlot, WeightSource
from hearth.models.stored import METHOD, PACKED, PLAIN_FLOAT, PLAIN_INT

_WEIGHT = ".weight"
_PREFIXES = ("model", "language_model", "text_model")
Section = dict[str, object]
_FORMATS = {"int": PLAIN_INT, "float": PLAIN_FLOAT}  # of a scale a row
_Form = tuple[int, int, bool]  # bits, group size, symmetric


@dataclass(frozen=True, slots=True)
class Recipe:
    """The slots whose tensors become codes, by every name that a checkpoint may give a tensor."""

    slots: Mapping[str, WeightSlot]
    tied: bool = False
    per_row: bool = False  # int- or float-quantized: codes of 8 bits and a scale for each row

    def slot_of(self, tensor: str, shape: tuple[int, ...]) -> WeightSlot | None:
        """The slot, of one matrix, that says how a tensor is coded; None: it stays as it is."""
        slot = self.slots.get(tensor)
        if slot is None or len(shape) != 2 or shape[1] != slot.cols:
            return None
        return slot


def recipe_of(spec: ModelSpec, *, per_row: bool = False) -> Recipe:
    """For a spec as `models.quantize.quantized` makes it."""
    slots: dict[str, WeightSlot] = {}
    for slot in spec.slots:
        if not slot.quant.bits or slot.name == spec.embedding:
            continue
        if slot.cols % slot.quant.group_size and not per_row:
            continue
        for source in slot.sources:
            for name in _names(source):
                if name.endswith(_WEIGHT):
                    slots[name] = slot
    return Recipe(slots, spec.tied, per_row)


def without(recipe: Recipe, patterns: Sequence[str]) -> Recipe:
    """The recipe less the modules that `patterns` name: exactly, or, behind re:, by expression.

    Raises ConfigError for one that names nothing, is no expression, or takes a part of what is
    multiplied together.
    """
    modules = {name: name.removesuffix(_WEIGHT) for name in recipe.slots}
    ignored: set[str] = set()
    for pattern in patterns:
        found = {name for name, module in modules.items() if _is_match(pattern, module)}
        if not found:
            first = ", ".join(sorted(modules.values())[:3])
            raise ConfigError(
                f"--ignore {pattern} names no matrix that would become codes",
                hint=f"a whole name, or an expression behind re:; names are such as {first}",
            )
        ignored |= found
    _check_whole(recipe, ignored)
    return replace(recipe, slots={n: slot for n, slot in recipe.slots.items() if n not in ignored})


def _is_match(pattern: str, module: str) -> bool:
    if not pattern.startswith("re:"):
        return pattern == module
    try:
        return re.match(pattern.removeprefix("re:"), module) is not None
    except re.error as error:
        raise ConfigError(f"--ignore {pattern} is no regular expression: {error}") from error


def _check_whole(recipe: Recipe, ignored: Collection[str]) -> None:
    """Parts of one matrix of the program stay in one form (see `models.stored.with_stored`)."""
    for slot in {slot.name: slot for slot in recipe.slots.values()}.values():
        taken = [any(name in ignored for name in _names(source)) for source in slot.sources]
        if any(taken) and not all(taken):
            parts = [source.tensor.removesuffix(_WEIGHT) for source in slot.sources]
            raise ConfigError(
                f"--ignore takes {sum(taken)} of {len(parts)} matrices that are multiplied "
                f"together: {', '.join(parts[:4])}",
                hint="ignore all of them or none",
            )


def config_section(
    coded: Mapping[str, WeightSlot], plain: Iterable[str], *, per_row: bool = False
) -> Section:
    """`quantization_config` of a checkpoint: its coded tensors, and the other matrices' names."""
    general = {_pattern(tensor) for tensor in coded}
    if per_row:
        kind = "float" if any(slot.quant.is_float for slot in coded.values()) else "int"
        groups = [_group((8, 0, True), {"Linear"}, kind)]
        return _section(_FORMATS[kind], groups, _ignored(plain, general))
    forms = Counter(map(_form_of, coded.values()))
    most = forms.most_common(1)[0][0]
    by_form: dict[_Form, set[str]] = {}
    for tensor, slot in coded.items():
        form = _form_of(slot)
        by_form.setdefault(form, set()).add("Linear" if form == most else _pattern(tensor))
    ordered = sorted(by_form.items(), key=lambda item: item[0] != most)
    return _section(PACKED, [_group(*item) for item in ordered], _ignored(plain, general))


def _section(format_name: str, groups: list[Section], ignore: list[str]) -> Section:
    return {
        "quant_method": METHOD,
        "format": format_name,
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def _ignored(plain: Iterable[str], coded: Collection[str]) -> list[str]:
    """Expressions for all layers; for the one layer where the others' modules are coded."""
    found = set()
    for name in plain:
        pattern = _pattern(name)
        found.add(_pattern(name, all_layers=False) if pattern in coded else pattern)
    return sorted(found)


def _form_of(slot: WeightSlot) -> _Form:
    return slot.quant.bits, slot.quant.group_size, slot.quant.symmetric


def _group(form: _Form, targets: set[str], kind: str = "int") -> Section:
    """`group_size` 0: a scale a row, and inputs that are rounded with one for each token."""
    bits, group_size, symmetric = form
    inputs = {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    return {
        "targets": sorted(targets),
        "weights": {
            "num_bits": bits,
            "type": kind,
            "symmetric": symmetric,
            "strategy": "group" if group_size else "channel",
            "group_size": group_size or None,
            "dynamic": False,
        },
        "input_activations": None if group_size else inputs,
        "output_activations": None,
        "format": PACKED if group_size else _FORMATS[kind],
    }


def _pattern(tensor: str, *, all_layers: bool = True) -> str:
    """An expression for a tensor's module in all layers, whatever stands before their list.

    transformers and checkpoints give the parts of a model different prefixes.
    """
    parts = tensor.removesuffix(_WEIGHT).split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if first is not None:
        kept = parts[max(0, first - 1) :]
    else:
        kept = parts[-2:] if len(parts) > 1 and parts[-2] not in _PREFIXES else parts[-1:]
    number = r"\d+" if all_layers else ""
    escaped = r"\.".join((number or p) if p.isdigit() else re.escape(p) for p in kept)
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
