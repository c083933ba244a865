"""Sliding windows: how far back each layer sees, by the families' own rules or by --window.

A window of n lets a token see itself and the n − 1 tokens before it. What a config lacks gets
transformers' default, since a checkpoint was written against that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hearth.core.errors import ConfigError
from hearth.core.spec import ModelSpec
from hearth.core.units import format_count
from hearth.models.config_json import ConfigJson

DEFAULT_WINDOW = 4096
_LARGEST_WINDOW = 1 << 28
_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_window(config: ConfigJson, *, default: int) -> int:
    """`sliding_window` in tokens; null: 0, no window; absent: `default`."""
    if "sliding_window" in config.values and not config.has("sliding_window"):
        return 0
    return config.integer(
        "sliding_window", minimum=0 if default == 0 else 1, maximum=_LARGEST_WINDOW, default=default
    )


def all_layers(config: ConfigJson, num_layers: int, *, default: int) -> tuple[int, ...]:
    """One window for all layers (Mistral, Phi-3). `layer_types` may only say the same."""
    window = read_window(config, default=default)
    kind = _SLIDING if window else _FULL
    if any(listed != kind for listed in _layer_types(config, num_layers) or ()):
        raise config.error("layer_types", f'"{kind}" for every layer')
    return (window,) * num_layers


def from_some_layer(config: ConfigJson, num_layers: int) -> tuple[int, ...]:
    """Qwen: none unless `use_sliding_window`, then from layer `max_window_layers` on."""
    if not config.flag("use_sliding_window", default=False):
        return all_full(config, num_layers)
    window = read_window(config, default=DEFAULT_WINDOW)
    first = config.integer("max_window_layers", minimum=0, maximum=_LARGEST_WINDOW, default=28)
    types = _layer_types(config, num_layers)
    return _by_type(window, types or [_SLIDING if i >= first else _FULL for i in range(num_layers)])


def alternating(config: ConfigJson, num_layers: int, *, pattern: int) -> tuple[int, ...]:
    """Gemma: every `pattern`-th layer is full, the others have a window."""
    window = read_window(config, default=DEFAULT_WINDOW)
    types = _layer_types(config, num_layers)
    listed = types or [_SLIDING if (i + 1) % pattern else _FULL for i in range(num_layers)]
    return _by_type(window, listed)


def all_full(config: ConfigJson, num_layers: int) -> tuple[int, ...]:
    """No layer has a window; `layer_types` may only say the same."""
    if any(listed != _FULL for listed in _layer_types(config, num_layers) or ()):
        raise config.error("layer_types", f'"{_FULL}" for every layer')
    return (0,) * num_layers


def _by_type(window: int, types: Sequence[str]) -> tuple[int, ...]:
    return tuple(window if kind == _SLIDING else 0 for kind in types)


def _layer_types(config: ConfigJson, num_layers: int) -> list[str] | None:
    """`layer_types`, one known name a layer; None where the config has none."""
    listed = config.values.get("layer_types")
    if listed is None:
        return None
    if (
        not isinstance(listed, list)
        or len(listed) != num_layers
        or any(kind not in (_SLIDING, _FULL) for kind in listed)
    ):
        raise config.error(
            "layer_types", f'"{_FULL}" or "{_SLIDING}" for each of {num_layers} layers'
        )
    return listed


def with_window(spec: ModelSpec, window: int | None) -> ModelSpec:
    """The model with every layer limited to the last `window` tokens (--window); None: as it is.

    Nothing else changes: positions, frequencies and weights stay the model's own. Raises
    ConfigError where a layer has a window already.
    """
    if window is None:
        return spec
    check_own_windows(window, [layer.attention.window for layer in spec.layers])
    layers = tuple(
        replace(layer, attention=replace(layer.attention, window=window)) for layer in spec.layers
    )
    return replace(spec, layers=layers)


def check_own_windows(window: int, own: Sequence[int]) -> None:
    """Refuses --window for a model that has windows.

    It was trained with its own pattern, in which the layers without one carry the rest of the text.
    """
    windowed = [size for size in own if size]
    if windowed:
        sizes = ", ".join(format_count(size) for size in sorted(set(windowed)))
        raise ConfigError(
            f"--window is {format_count(window)}, but {len(windowed)} of the model's {len(own)} "
            f"layers have a sliding window of their own ({sizes} tokens)",
            hint="leave --window out",
            param="window",
        )
