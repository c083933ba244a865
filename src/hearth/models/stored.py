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

from hearth.core.errors import ModelError
from hearth.core.spec import CodesForm, SlotKind, WeightSlot
from hearth.models.config_json import ConfigJson, shown
from hearth.models.formats.fp8 import fp8_form, read_block

KEY = "quantization_config"
METHOD = "compressed-tensors"
PACKED, PLAIN_INT, PLAIN_FLOAT = "pack-quantized", "int-quantized", "float-quantized"
_NAIVE = "naive-quantized"  # of integers or floating point, by their type
_FORMATS = {PACKED: PACKED, PLAIN_INT: PLAIN_INT, _NAIVE: PLAIN_INT, PLAIN_FLOAT: PLAIN_FLOAT}
_WEIGHT, _PACKED_WEIGHT, _SCALE = ".weight", ".weight_packed", ".weight_scale"
LEAST_GROUP = 32
MAX_GROUP = 512  # what the kernels unpack at a time


@dataclass(frozen=True, slots=True)
class _Group:
    targets: tuple[str, ...]
    form: CodesForm


@dataclass(frozen=True, slots=True)
class CompressedForms:
    """What a checkpoint stores as codes. `dtypes`: of its tensors, None where no file was read."""

    groups: tuple[_Group, ...]
    ignore: tuple[str, ...]
    dtypes: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()

    def holds(self, tensor: str) -> bool:
        """Whether the files have the tensor as codes."""
        return self.dtypes is not None and has_codes(tensor, self.dtypes)

    def form_of(self, slot: WeightSlot, tensor: str) -> CodesForm | None:
        """The form of a tensor `….weight`; None: it is stored plainly.

        Raises ModelError where the files hold codes of which the configuration says nothing.
        """
        module = tensor.removesuffix(_WEIGHT)
        if slot.kind is SlotKind.VECTOR:
            return None
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
        names = [tensor.removesuffix(_WEIGHT) + _SCALE for tensor in tensors]
        return any(self.dtypes.get(name) != "BF16" for name in names)


def has_codes(tensor: str, names: Collection[str] | Mapping[str, str]) -> bool:
    """Whether a checkpoint with these tensors holds `tensor`, ….weight, as codes."""
    module = tensor.removesuffix(_WEIGHT)
    return module + _PACKED_WEIGHT in names or module + _SCALE in names


def read_compressed(section: ConfigJson, dtypes: Mapping[str, str] | None) -> CompressedForms:
    """What compressed-tensors' section declares.

    `dtypes`: those of the checkpoint's tensors by name, where its files are at hand. Raises
    ModelError for formats and forms that are not read.
    """
    for key in ("sparsity_config", "transform_config"):
        if section.values.get(key):
            raise section.error(key, "{}, null", hint="it would change the arithmetic")
    groups = section.required("config_groups")
    ignore = section.values.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise section.error("ignore", "a list of names")
    default = section.text("format", default=PACKED)
    listed = tuple(_read_group(groups.required(name), default) for name in groups.values)
    return CompressedForms(listed, tuple(ignore), dtypes)


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
            hint=UNREAD,
        )
    weights = group.required("weights")
    is_float = name == _NAIVE and weights.text("type", default="int") == "float"
    return _Group(tuple(targets), _read_form(weights, PLAIN_FLOAT if is_float else _FORMATS[name]))


def _read_form(weights: ConfigJson, format_name: str) -> CodesForm:
    if format_name == PLAIN_FLOAT:
        return _read_float_form(weights)
    if weights.text("type", default="int") != "int":
        raise weights.error("type", '"int"', hint=UNREAD)
    bits = weights.integer("num_bits", minimum=1, maximum=32, default=8)
    if bits not in ((4, 8) if format_name == PACKED else (8,)):
        raise weights.error("num_bits", "4, 8" if format_name == PACKED else "8", hint=UNREAD)
    strategy = weights.text("strategy", default="group" if weights.has("group_size") else "tensor")
    if weights.flag("dynamic", default=False):
        raise weights.error("dynamic", "false", hint=UNREAD)
    symmetric = weights.flag("symmetric", default=True)
    if strategy == "channel":
        return CodesForm(format_name, bits, 0, symmetric)
    if strategy != "group":
        raise weights.error("strategy", '"group", "channel"', hint=UNREAD)
    size = weights.integer("group_size", minimum=1, maximum=1 << 20)
    if size % LEAST_GROUP or size > MAX_GROUP:
        permitted = f"multiples of {LEAST_GROUP} up to {MAX_GROUP}"
        raise weights.error("group_size", permitted, hint=UNREAD)
    return _ordered(weights, CodesForm(format_name, bits, size, symmetric))


def _ordered(weights: ConfigJson, form: CodesForm) -> CodesForm:
    """The form; `actorder` "group" has groups of columns that are no neighbours."""
    order = weights.values.get("actorder")
    if order in (None, False, "weight", "static", "dynamic"):  # the columns lie as they are
        return form
    if order not in (True, "group"):
        raise weights.error("actorder", 'null, "weight", "static", "group"', hint=UNREAD)
    what = f"codes in the order of activations ({form.bits} bits, groups of {form.group_size})"
    return replace(form, is_ordered=True, converted=what)


def _read_float_form(weights: ConfigJson) -> CodesForm:
    """FP8: a scale for the tensor, a row, a group of columns of a row, or a block."""
    if weights.text("type", default="int") != "float":
        raise weights.error("type", '"float"', hint=UNREAD)
    if weights.integer("num_bits", minimum=1, maximum=32, default=8) != 8:
        raise weights.error("num_bits", "8", hint=UNREAD)
    strategy = weights.text("strategy", default="tensor")
    if strategy == "block":
        return fp8_form(*read_block(weights, "block_structure"))
    if strategy == "group":
        return fp8_form(1, weights.integer("group_size", minimum=1, maximum=1 << 20))
    if strategy not in ("channel", "tensor"):
        raise weights.error("strategy", '"tensor", "channel", "group", "block"', hint=UNREAD)
    return fp8_form(1 if strategy == "channel" else 0, 0)


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


UNREAD = "hearth does not read this form: use another quantization of the model, or the plain one"
