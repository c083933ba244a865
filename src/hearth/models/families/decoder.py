"""From what a family file chose to the whole spec: embedding, layers, final norm, head.

The order in which the slots are named is that of the model, and the same for all families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hearth.core.spec import Activation, DType, LayerSpec, MlpSpec, ModelSpec, MoeSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.families.slots import SlotTable, embedding_and_head
from hearth.models.rope import ReadRope
from hearth.models.sizes import DecoderSizes

Layer = Callable[[Parts, int], LayerSpec]
Mlp = Callable[[Parts, int], MlpSpec | MoeSpec]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What holds for the whole model; `tied` where the config does not say it.

    `norm_offset` is added to norm weights when they are loaded (Gemma: 1). `prefix` begins the
    tensors' names.
    """

    family: str
    architecture: str
    config: ConfigJson
    sizes: DecoderSizes
    rope: ReadRope
    activation: Activation = Activation.SILU
    norm_offset: float = 0.0
    tied: bool = False
    prefix: str = "model."

    def with_llama_layers(
        self, dtype: DType, attentions: Iterable[AttentionShape], mlp: Mlp = Parts.mlp
    ) -> ModelSpec:
        """Layers of norm, attention, norm, MLP, one for each attention. Raises ModelError."""
        shapes = tuple(attentions)

        def layer(parts: Parts, i: int) -> LayerSpec:
            return LayerSpec(
                attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
                attention=parts.attention(i, shapes[i]),
                mlp_norm=parts.norm(i, "mlp_norm", "post_attention_layernorm"),
                mlp=mlp(parts, i),
            )

        return self.with_layers(dtype, layer)

    def with_layers(self, dtype: DType, layer: Layer) -> ModelSpec:
        """The spec; `layer` writes the parts of the one with an index. Raises ModelError."""
        table, sizes = SlotTable(dtype), self.sizes
        tied = self.config.flag("tie_word_embeddings", default=self.tied)
        embedding, head = embedding_and_head(table, sizes, tied=tied, prefix=self.prefix)
        parts = Parts(table, sizes, self.activation, self.norm_offset, self.prefix)
        layers = tuple(layer(parts, i) for i in range(sizes.num_layers))
        return ModelSpec(
            family=self.family,
            architecture=self.architecture,
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            max_position_embeddings=self.rope.longest_context,
            layers=layers,
            rope=self.rope.spec,
            embedding=embedding,
            final_norm=parts.final_norm(),
            head=head,
            slots=tuple(table.slots),
        )
