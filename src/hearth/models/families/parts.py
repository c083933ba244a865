"""The parts that families share: a decoder whose tensors carry Llama's names.

A family file says which biases, windows, norms and rotations there are; the slots of the matrices
are written here, where q, k, v (or gate and up) are one matrix whether the checkpoint keeps them
in one tensor or in several.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.spec import Activation, AttentionSpec, MlpSpec, NormSpec, RopeSpec
from hearth.models.families.slots import SlotTable
from hearth.models.sizes import DecoderSizes


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What differs between the attentions of two families, or of two layers.

    `fused`: the checkpoint keeps q, k and v as qkv_proj. `scale` None: 1/√head_dim.
    `head_norms`: whether there are q_norm and k_norm.
    """

    qkv_bias: bool = False
    out_bias: bool = False
    fused: bool = False
    head_norms: bool = False
    window: int = 0
    scale: float | None = None
    soft_cap: float = 0.0
    rope: RopeSpec | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """Writes the parts of layer after layer into a slot table.

    `norm_offset` is added to norm weights when they are loaded (Gemma: 1). `prefix` begins the
    tensors' names.
    """

    table: SlotTable
    sizes: DecoderSizes
    activation: Activation = Activation.SILU
    norm_offset: float = 0.0
    prefix: str = "model."

    def norm(self, layer: int, name: str, tensor: str) -> NormSpec:
        """The norm that the checkpoint calls `tensor`; `name` is ours."""
        source = f"{self.prefix}layers.{layer}.{tensor}.weight"
        return self._norm(f"layers.{layer}.{name}", source, self.sizes.hidden_size)

    def final_norm(self) -> NormSpec:
        """The norm before the head."""
        return self._norm("final_norm", f"{self.prefix}norm.weight", self.sizes.hidden_size)

    def attention(self, layer: int, shape: AttentionShape) -> AttentionSpec:
        """The attention of a layer."""
        sizes, base = self.sizes, f"{self.prefix}layers.{layer}.self_attn"
        rows = {"q_proj": sizes.q_rows, "k_proj": sizes.kv_rows, "v_proj": sizes.kv_rows}
        if shape.fused:
            rows = {"qkv_proj": sizes.q_rows + 2 * sizes.kv_rows}
        qkv = self._matrix(f"layers.{layer}.qkv", sizes.hidden_size, base, rows)
        out_rows = {"o_proj": sizes.hidden_size}
        out = self._matrix(f"layers.{layer}.attention_out", sizes.q_rows, base, out_rows)
        q_norm, k_norm = (
            self._norm(f"layers.{layer}.{part}", f"{base}.{part}.weight", sizes.head_dim)
            if shape.head_norms
            else None
            for part in ("q_norm", "k_norm")
        )
        return AttentionSpec(
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            scale=sizes.head_dim**-0.5 if shape.scale is None else shape.scale,
            qkv=qkv,
            qkv_bias=self._bias(qkv, base, rows) if shape.qkv_bias else None,
            out=out,
            out_bias=self._bias(out, base, out_rows) if shape.out_bias else None,
            window=shape.window,
            q_norm=q_norm,
            k_norm=k_norm,
            rope=shape.rope,
            soft_cap=shape.soft_cap,
        )

    def mlp(self, layer: int, *, has_bias: bool = False, fused: bool = False) -> MlpSpec:
        """The gated MLP of a layer; `fused`: the checkpoint keeps gate and up as gate_up_proj."""
        base = f"{self.prefix}layers.{layer}.mlp"
        size = self.sizes.intermediate_size
        return self._mlp(f"layers.{layer}", base, size, has_bias=has_bias, fused=fused)

    def shared_expert(self, layer: int, intermediate_size: int) -> MlpSpec:
        """The MLP beside a layer's experts that serves every row."""
        base = f"{self.prefix}layers.{layer}.mlp.shared_experts"
        return self._mlp(f"layers.{layer}.shared", base, intermediate_size)

    def _mlp(
        self, name: str, base: str, size: int, *, has_bias: bool = False, fused: bool = False
    ) -> MlpSpec:
        hidden = self.sizes.hidden_size
        rows = {"gate_up_proj": 2 * size} if fused else {"gate_proj": size, "up_proj": size}
        gate_up = self._matrix(f"{name}.gate_up", hidden, base, rows)
        down_rows = {"down_proj": hidden}
        down = self._matrix(f"{name}.down", size, base, down_rows)
        return MlpSpec(
            size,
            self.activation,
            gate_up,
            down,
            gate_up_bias=self._bias(gate_up, base, rows) if has_bias else None,
            down_bias=self._bias(down, base, down_rows) if has_bias else None,
        )

    def _norm(self, name: str, source: str, width: int) -> NormSpec:
        slot = self.table.vector(name, (source, width), offset=self.norm_offset)
        return NormSpec(slot, self.sizes.rms_norm_eps)

    def _matrix(self, name: str, cols: int, base: str, rows: dict[str, int]) -> str:
        sources = ((f"{base}.{part}.weight", count) for part, count in rows.items())
        return self.table.linear(name, cols, *sources)

    def _bias(self, matrix: str, base: str, rows: dict[str, int]) -> str:
        sources = ((f"{base}.{part}.bias", count) for part, count in rows.items())
        return self.table.bias(matrix, *sources)
