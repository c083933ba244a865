"""The parts that vision encoders share: sizes, and the slots of their layers."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.errors import ModelError
from hearth.core.spec import (
    Activation,
    LinearSpec,
    MlpSpec,
    NormSpec,
    PlainMlpSpec,
    RopePairing,
    RopeSpec,
    VisionAttentionSpec,
    WeightSource,
)
from hearth.models.config_json import ConfigJson
from hearth.models.families.slots import SlotTable
from hearth.models.rope_scaling import inverse_frequencies

MAX_WIDTH = 1 << 20
DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """Checked sizes of an encoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    eps: float

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Pixels of a patch, over channels and frames."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def joined(self) -> int:
        """Elements of the patches that become one token."""
        return self.merge_size**2 * self.hidden_size


@dataclass(frozen=True, slots=True)
class VisionDefaults:
    """What transformers' config class takes where the file is silent, and its name of the width."""

    hidden_size: int
    num_heads: int
    num_layers: int
    eps: float
    width_key: str = "hidden_size"


def read_vision_sizes(config: ConfigJson, defaults: VisionDefaults) -> VisionSizes:
    """Sizes of a vision_config. Raises ModelError with key, value and permitted range."""
    hidden = config.integer(
        defaults.width_key, minimum=1, maximum=MAX_WIDTH, default=defaults.hidden_size
    )
    heads = config.integer("num_heads", minimum=1, maximum=hidden, default=defaults.num_heads)
    if hidden % heads or hidden // heads % 4:
        raise config.error("num_heads", f"heads of {hidden} in all whose size is a multiple of 4")
    sizes = VisionSizes(
        hidden_size=hidden,
        num_layers=config.integer("depth", minimum=1, maximum=1024, default=defaults.num_layers),
        num_heads=heads,
        channels=config.integer("in_channels", minimum=1, maximum=64, default=3),
        patch_size=config.integer("patch_size", minimum=1, maximum=256, default=14),
        temporal_patch_size=config.integer("temporal_patch_size", minimum=1, maximum=16, default=2),
        merge_size=config.integer("spatial_merge_size", minimum=1, maximum=8, default=2),
        eps=config.number("rms_norm_eps", above=0.0, maximum=1.0, default=defaults.eps),
    )
    if config.has("head_dim") and config.values["head_dim"] != sizes.head_dim:
        raise config.error("head_dim", f"{sizes.head_dim}, {hidden} / num_heads")
    if sizes.channels != 3:
        raise config.error("in_channels", "3: images have red, green and blue")
    return sizes


def axial_rope(config: ConfigJson, head_dim: int) -> RopeSpec:
    """Half of the angles follow a patch's row, half its column; both halves of a head turn alike.

    Raises ModelError for another kind of rotation.
    """
    section = config.section("rope_parameters") or ConfigJson(config.source, {})
    kind = section.text("rope_type", default="axial")
    if kind != "axial":
        raise ModelError(f'{section.source}: rope_type is {kind!r}; permitted: "axial"')
    theta = section.number("rope_theta", above=0.0, maximum=1e15, default=DEFAULT_THETA)
    quarter = head_dim // 4
    half, quarter = head_dim // 2, head_dim // 4
    inv_freq = inverse_frequencies(theta, half) * 2
    return RopeSpec(head_dim, RopePairing.HALF, inv_freq, sections=(0, quarter, quarter))


@dataclass(frozen=True, slots=True)
class VisionParts:
    """Writes the parts of an encoder into a slot table; names of slots begin with `vision.`."""

    table: SlotTable
    sizes: VisionSizes
    prefix: str

    def linear(
        self, name: str, tensor: str, width: int, *, cols: int = 0, bias: bool = False
    ) -> LinearSpec:
        """A matrix of `width` rows; `cols` 0: those of a patch. A convolution counts as one."""
        base = f"{self.prefix}{tensor}"
        columns = cols or self.sizes.patch_values
        slot = self.table.linear(f"vision.{name}", columns, (f"{base}.weight", width))
        own = self.table.bias(slot, (f"{base}.bias", width)) if bias else None
        return LinearSpec(width, slot, own)

    def norm(self, name: str, tensor: str) -> NormSpec:
        """An RMS norm over a patch's row."""
        source = (f"{self.prefix}{tensor}.weight", self.sizes.hidden_size)
        return NormSpec(self.table.vector(f"vision.{name}", source), self.sizes.eps)

    def layer_norm(self, name: str, tensor: str, width: int, eps: float) -> NormSpec:
        """A layer norm."""
        base = f"{self.prefix}{tensor}"
        weight = self.table.vector(f"vision.{name}", (f"{base}.weight", width))
        bias = self.table.vector(f"vision.{name}.bias", (f"{base}.bias", width))
        return NormSpec(weight, eps, bias=bias, centered=True)

    def grid(self, name: str, tensor: str, side: int) -> str:
        """A learned grid of positions of `side` · `side` rows."""
        source = (f"{self.prefix}{tensor}.weight", side * side)
        return self.table.grid(f"vision.{name}", self.sizes.hidden_size, source)

    def attention(
        self, layer: int, *, qkv_bias: bool, out_bias: bool, is_windowed: bool = False
    ) -> VisionAttentionSpec:
        """The attention of a layer whose checkpoint keeps q, k and v in one tensor."""
        sizes, base = self.sizes, f"{self.prefix}blocks.{layer}.attn"
        width = sizes.hidden_size

        def part(name: str, first: int, rows: int) -> LinearSpec:
            weight = WeightSource(f"{base}.qkv.weight", rows, first)
            slot = self.table.linear(f"vision.layers.{layer}.{name}", width, weight)
            bias = None
            if qkv_bias:
                bias = self.table.bias(slot, WeightSource(f"{base}.qkv.bias", rows, first))
            return LinearSpec(rows, slot, bias)

        out = f"blocks.{layer}.attn.proj"
        return VisionAttentionSpec(
            num_heads=sizes.num_heads,
            head_dim=sizes.head_dim,
            scale=sizes.head_dim**-0.5,
            q=part("q", 0, width),
            kv=part("kv", width, 2 * width),
            out=self.linear(f"layers.{layer}.attention_out", out, width, cols=width, bias=out_bias),
            is_windowed=is_windowed,
        )

    def plain_mlp(self, name: str, tensor: str, inner: int, activation: Activation) -> PlainMlpSpec:
        """An MLP of two layers with biases, whose tensors are fc1 and fc2."""
        width = self.sizes.hidden_size
        up = self.linear(f"{name}.up", f"{tensor}.fc1", inner, cols=width, bias=True)
        down = self.linear(f"{name}.down", f"{tensor}.fc2", width, cols=inner, bias=True)
        return PlainMlpSpec(up, activation, down)

    def mlp(self, name: str, tensor: str, width: int, inner: int, *, bias: bool = False) -> MlpSpec:
        """A gated MLP."""
        base = f"{self.prefix}{tensor}"
        gate, up, out = (f"{base}.{part}_proj" for part in ("gate", "up", "down"))
        both = ((f"{gate}.weight", inner), (f"{up}.weight", inner))
        gate_up = self.table.linear(f"vision.{name}.gate_up", width, *both)
        down = self.table.linear(f"vision.{name}.down", inner, (f"{out}.weight", width))
        if not bias:
            return MlpSpec(inner, Activation.SILU, gate_up, down)
        biases = ((f"{gate}.bias", inner), (f"{up}.bias", inner))
        return MlpSpec(
            inner,
            Activation.SILU,
            gate_up,
            down,
            gate_up_bias=self.table.bias(gate_up, *biases),
            down_bias=self.table.bias(down, (f"{out}.bias", width)),
        )
