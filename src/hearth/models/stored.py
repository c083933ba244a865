"""Checkpoints whose matrices are codes already: what `quantization_config` says of each.

The schema of compressed-tensors (github.com/vllm-project/compressed-tensors): groups of modules,
named by class, exact name or regular expression, each with the form of its weights; what `ignore`
matches is stored plainly. Where the weight files are at hand, their tensors say which modules are
codes, and the configuration only in which form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from hearth.core.config import CodesConfig
from hearth.core.errors import ModelError
from hearth.core.spec import CodesForm, ModelSpec, QuantSpec, SlotKind, WeightSlot, WeightSource
from hearth.core.units import round_up
from hearth.models.config_json import ConfigJson, shown

KEY = "quantization_config"
METHOD = "compressed-tensors"
PACKED, PLAIN_INT = "pack-quantized", "int-quantized"
_FORMATS = {PACKED: PACKED, PLAIN_INT: PLAIN_INT, "naive-quantized": PLAIN_INT}
_WEIGHT, _PACKED_WEIGHT, _SCALE = ".weight", ".weight_packed", ".weight_scale"
LEAST_GROUP = 32
MAX_GROUP = 1024
_ROW_GROUP = 128  # a scale for a whole row is repeated for groups of so many columns


@dataclass(frozen=True, slots=True)
class _Group:
    targets: tuple[str, ...]
    form: CodesForm


@dataclass(frozen=True, slots=True)
class StoredForms:
    """What a checkpoint stores as codes. `dtypes`: of its tensors, None where no file was read."""

    groups: tuple[_Group, ...]
    ignore: tuple[str, ...]
    dtypes: Mapping[str, str] | None = None

    def form_of(self, slot: WeightSlot, tensor: str) -> CodesForm | None:
        """The form of a tensor `….weight`; None: it is stored plainly.

        Raises ModelError where the files hold codes of which the configuration says nothing.
        """
        module = tensor.removesuffix(_WEIGHT)
        if self.dtypes is not None and not has_codes(tensor, self.dtypes):
            return None
        kind = _class_of(slot, module)
        found = _best(self.groups, module, kind)
        if self.dtypes is not None:
            if found is None and len(self.groups) == 1:
                found = self.groups[0]
            if found is None:
                raise ModelError(
                    f"config.json: {KEY} has no group for {module}, which is stored as codes",
                    hint="the checkpoint's files do not belong together",
                )
            return found.form
        if found is None or _matches(self.ignore, module, kind):
            return None
        return found.form

    def has_wide_scales(self, tensors: Sequence[str]) -> bool:
        """Whether bfloat16 does not hold the scales of a slot's tensors."""
        if self.dtypes is None:
            return False
        names = (tensor.removesuffix(_WEIGHT) + _SCALE for tensor in tensors)
        return any(self.dtypes.get(name) != "BF16" for name in names)


def has_codes(tensor: str, names: Collection[str] | Mapping[str, str]) -> bool:
    """Whether a checkpoint with these tensors holds `tensor`, ….weight, as codes."""
    module = tensor.removesuffix(_WEIGHT)
    return module + _PACKED_WEIGHT in names or module + _SCALE in names


def read_stored(config: ConfigJson, dtypes: Mapping[str, str] | None = None) -> StoredForms | None:
    """What `quantization_config` declares; None: nothing is quantized.

    `dtypes`: those of the checkpoint's tensors by name, where its files are at hand. Raises
    ModelError for methods, formats and forms that are not read.
    """
    section = config.section(KEY)
    if section is None:
        return None
    if section.text("quant_method", default="") != METHOD:
        raise section.error("quant_method", f'"{METHOD}"', hint=_UNREAD)
    for key in ("sparsity_config", "transform_config"):
        if section.values.get(key):
            raise section.error(key, "{}, null", hint="it would change the arithmetic")
    groups = section.required("config_groups")
    ignore = section.values.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise section.error("ignore", "a list of names")
    default = section.text("format", default=PACKED)
    listed = tuple(_read_group(groups.required(name), default) for name in groups.values)
    return StoredForms(listed, tuple(ignore), dtypes)


def with_stored(spec: ModelSpec, stored: StoredForms | None, codes: CodesConfig) -> ModelSpec:
    """The same model with the slots whose tensors are codes stored as these say.

    Raises ModelError for parts of one matrix that are stored differently.
    """
    if stored is None:
        return spec

    def convert(slot: WeightSlot) -> WeightSlot:
        if slot.kind is SlotKind.VECTOR:
            return slot
        tensors = tuple(_present(source, stored) for source in slot.sources)
        forms = {stored.form_of(slot, tensor) for tensor in tensors}
        if forms == {None}:
            return slot
        if len(forms) > 1 or (slot.stack > 1 and len(slot.sources) == 1):
            raise ModelError(
                f"config.json: {KEY}: {', '.join(tensors[:4])} are stored in different forms; "
                "permitted: one form for what is multiplied together",
                hint=_UNREAD,
            )
        form = forms.pop()
        assert form is not None
        quant = _quant_of(slot, form, codes, wide=stored.has_wide_scales(tensors))
        return replace(slot, quant=quant, stored=form)

    return replace(spec, slots=tuple(convert(slot) for slot in spec.slots))


def _quant_of(slot: WeightSlot, form: CodesForm, codes: CodesConfig, *, wide: bool) -> QuantSpec:
    """How the program stores the codes: as they are; a table's as bytes, which hold any others."""
    size = form.group_size or min(_ROW_GROUP, round_up(slot.cols, LEAST_GROUP))
    is_table = slot.kind is SlotKind.TABLE
    if is_table and not form.symmetric and form.bits == 8:
        raise ModelError(
            f"config.json: {KEY}: {slot.name} has 8 bits and zero points; permitted for it: "
            "symmetric codes",
            hint=_UNREAD,
        )
    return QuantSpec(
        dtype=slot.quant.dtype,
        bits=8 if is_table else form.bits,
        group_size=size,
        symmetric=is_table or form.symmetric,
        int8_rows=not is_table and codes.activations != "float32",
        wide_scales=wide,
    )


def _present(source: WeightSource, stored: StoredForms) -> str:
    """The name under which the checkpoint has a source; without files, the first."""
    candidate: WeightSource | None = source
    while stored.dtypes is not None and candidate is not None:
        if candidate.tensor in stored.dtypes or has_codes(candidate.tensor, stored.dtypes):
            return candidate.tensor
        candidate = candidate.otherwise
    return source.tensor


def _read_group(group: ConfigJson, default_format: str) -> _Group:
    targets = group.values.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise group.error("targets", "a list of names")
    for target in targets:
        _check_pattern(group, target)
    name = group.text("format", default=default_format)
    if name not in _FORMATS:
        raise ModelError(
            f"{group.source}: format is {shown(name)}; permitted: {', '.join(_FORMATS)}",
            hint=_UNREAD,
        )
    return _Group(tuple(targets), _read_form(group.required("weights"), _FORMATS[name]))


def _read_form(weights: ConfigJson, format_name: str) -> CodesForm:
    if weights.text("type", default="int") != "int":
        raise weights.error("type", '"int"', hint=_UNREAD)
    bits = weights.integer("num_bits", minimum=1, maximum=32, default=8)
    if bits not in ((4, 8) if format_name == PACKED else (8,)):
        raise weights.error("num_bits", "4, 8" if format_name == PACKED else "8", hint=_UNREAD)
    strategy = weights.text("strategy", default="group" if weights.has("group_size") else "tensor")
    if weights.flag("dynamic", default=False):
        raise weights.error("dynamic", "false", hint=_UNREAD)
    symmetric = weights.flag("symmetric", default=True)
    if strategy == "channel":
        return CodesForm(format_name, bits, 0, symmetric)
    if strategy != "group":
        raise weights.error("strategy", '"group", "channel"', hint=_UNREAD)
    size = weights.integer("group_size", minimum=1, maximum=1 << 20)
    if size % LEAST_GROUP or size > MAX_GROUP:
        permitted = f"multiples of {LEAST_GROUP} up to {MAX_GROUP}"
        raise weights.error("group_size", permitted, hint=_UNREAD)
    return CodesForm(format_name, bits, size, symmetric)


def _check_pattern(group: ConfigJson, target: str) -> None:
    try:
        re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
    except re.error as error:
        raise ModelError(
            f"{group.source}: target {shown(target)} is no regular expression: {error}"
        ) from error


def _class_of(slot: WeightSlot, module: str) -> str:
    """The class of the module that holds a slot's tensor, as target names spell it."""
    if slot.kind is SlotKind.TABLE or module.endswith("embed_tokens"):
        return "Embedding"
    return "Conv" if "patch_embed" in module else "Linear"


def _best(groups: Sequence[_Group], module: str, kind: str) -> _Group | None:
    """The group that names a module most narrowly: by name, by expression, by class."""
    tests: tuple[Callable[[str], bool], ...] = (
        lambda target: target == module,
        lambda target: _is_match(target, module, ""),
        lambda target: target == kind,
    )
    for test in tests:
        for group in groups:
            if any(map(test, group.targets)):
                return group
    return None


def _matches(patterns: Sequence[str], module: str, kind: str) -> bool:
    return any(_is_match(pattern, module, kind) for pattern in patterns)


def _is_match(pattern: str, module: str, kind: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern in (module, kind) and pattern != ""


_UNREAD = "hearth does not read this form: use another quantization of the model, or the plain one"
