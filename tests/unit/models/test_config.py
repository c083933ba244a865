"""A config.json is read completely, or refused with the key, its value and what is permitted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.models.checkpoints import GLM4, LLAMA, write_config

from hearth.core.errors import (
    ConfigError,
    ModelError,
    ModelNotFoundError,
    UnknownArchitectureError,
)
from hearth.core.spec import DType, RopePairing
from hearth.models.dtype import resolve_dtype
from hearth.models.families import FAMILIES
from hearth.models.loader import load_model_spec
from hearth.models.rope_scaling import inverse_frequencies


def refused(directory: Path, base: dict[str, Any], **changes: Any) -> str:
    """The message with which a config is refused."""
    with pytest.raises(ModelError) as caught:
        load_model_spec(write_config(directory, base, **changes))
    return str(caught.value)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_model_spec(tmp_path / "absent")
    assert caught.value.message == f"model directory {tmp_path / 'absent'} does not exist"


def test_a_hub_id_is_recognised() -> None:
    with pytest.raises(ModelNotFoundError, match="hf download some-org/some-model"):
        load_model_spec("some-org/some-model")


def test_a_file_is_not_a_model_directory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=f"is a file.*did you mean {tmp_path}"):
        load_model_spec(path)


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        load_model_spec(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON: Expecting property name"),
        (b"\xff\xfe", "is not valid JSON: 'utf-8' codec"),
        (b"[1, 2]", "holds [1, 2]; permitted: a JSON object"),
        (b"[" * 100_000, "is not valid JSON: maximum recursion"),
    ],
)
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model_spec(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("listed", [..., None, [], "LlamaForCausalLM"])
def test_a_config_without_architecture_lists_what_is_supported(tmp_path: Path, listed: Any) -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        load_model_spec(write_config(tmp_path, LLAMA, architectures=listed))
    assert f"supported: {', '.join(sorted(FAMILIES))}" in str(caught.value)


def test_an_unknown_architecture_lists_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        load_model_spec(write_config(tmp_path, LLAMA, architectures=["BertModel"]))
    assert caught.value.message == (
        'config.json: architecture "BertModel" is not supported; '
        f"supported: {', '.join(sorted(FAMILIES))}"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "config.json: hidden_size is missing"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        (
            {"hidden_size": "8"},
            'config.json: hidden_size is "8"; permitted: an integer from 1 to 1048576',
        ),
        (
            {"num_hidden_layers": 0},
            "config.json: num_hidden_layers is 0; permitted: an integer from 1 to 1024",
        ),
        (
            {"vocab_size": -5},
            "config.json: vocab_size is -5; permitted: an integer from 1 to 16777216",
        ),
        (
            {"vocab_size": True},
            "config.json: vocab_size is true; permitted: an integer from 1 to 16777216",
        ),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 4},
            (
                "config.json: num_key_value_heads is 4; permitted: a divisor of "
                "num_attention_heads (6)"
            ),
        ),
        (
            {"num_key_value_heads": 3},
            "config.json: num_key_value_heads is 3; permitted: an integer from 1 to 2",
        ),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            (
                "config.json: hidden_size 8 is no multiple of num_attention_heads 3, and head_dim "
                "is missing"
            ),
        ),
        (
            {"head_dim": 5},
            (
                "config.json: head_dim 5 × partial_rotary_factor 1 gives 5 rotary dimensions; "
                "permitted: an even number from 2"
            ),
        ),
        (
            {"rms_norm_eps": 0},
            "config.json: rms_norm_eps is 0; permitted: a number above 0, at most 1",
        ),
        (
            {"rms_norm_eps": float("nan")},
            "config.json: rms_norm_eps is NaN; permitted: a number above 0, at most 1",
        ),
        (
            {"rope_theta": -1.0},
            "config.json: rope_theta is -1.0; permitted: a number above 0, at most 1e+15",
        ),
        (
            {"tie_word_embeddings": "yes"},
            'config.json: tie_word_embeddings is "yes"; permitted: true, false',
        ),
        (
            {"dtype": "float8"},
            'config.json: dtype is "float8"; permitted: float32, bfloat16, float16',
        ),
        (
            {"eos_token_id": "2"},
            'config.json: eos_token_id is "2"; permitted: a token id or a list of token ids',
        ),
        (
            {"partial_rotary_factor": 0.5},
            (
                "config.json: partial_rotary_factor gives 2 of 4 rotary dimensions; permitted for "
                "this architecture: 1"
            ),
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_permitted(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert refused(tmp_path, LLAMA, **changes) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, 'config.json: hidden_act is "gelu"; permitted: silu, swish, null'),
        ({"sliding_window": 4096}, "config.json: sliding_window is 4096; permitted: null"),
        (
            {"quantization_config": {"bits": 4}},
            'config.json: quantization_config: quant_method is null; permitted: "compressed-ten',
        ),
        ({"final_logit_softcapping": 30.0}, "config.json: final_logit_softcapping is 30.0"),
        ({"layer_types": ["sliding_attention"]}, "config.json: layer_types is"),
        ({"layer_types": 3}, "config.json: layer_types is 3"),
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 8}},
            'config.json: rope_scaling: rope_type is "proportional"; permitted: default, linear',
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}},
            'config.json: rope_scaling: type is "mrope"; permitted: default, linear, dynamic, yarn',
        ),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "config.json: rope_parameters: factor is missing",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "high_freq_factor": 4}},
            "config.json: rope_scaling: low_freq_factor is missing",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "config.json: rope_scaling: short_factor is [1]; permitted: a list of 2 numbers above",
        ),
        (
            {"use_bidirectional_attention": True},
            "config.json: use_bidirectional_attention is true; permitted: false, null",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "config.json: rope_parameters differs per layer type (full_attention)",
        ),
    ],
)
def test_what_would_change_the_arithmetic_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert refused(tmp_path, LLAMA, **changes).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4096, "use_sliding_window": False},
        {"sliding_window": None, "rope_scaling": None, "quantization_config": None},
        {"layer_types": ["full_attention", "full_attention"]},
        {"rope_scaling": {"rope_type": "default"}},
    ],
)
def test_neutral_values_are_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = load_model_spec(write_config(tmp_path, LLAMA)).spec
    assert load_model_spec(write_config(tmp_path, LLAMA, **changes)).spec == plain


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": 500000},
    ],
)
def test_both_spellings_of_rope_are_the_same(tmp_path: Path, spelling: dict[str, Any]) -> None:
    rope = load_model_spec(write_config(tmp_path, LLAMA, **spelling)).spec.rope
    assert rope.inv_freq == inverse_frequencies(500000.0, 4)
    assert rope.pairing is RopePairing.HALF


@pytest.mark.parametrize(
    "spelling",
    [
        {"partial_rotary_factor": 0.75},
        {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    ],
)
def test_partial_rotation_is_read_in_both_spellings(
    tmp_path: Path, spelling: dict[str, Any]
) -> None:
    rope = load_model_spec(write_config(tmp_path, GLM4, head_dim=8, **spelling)).spec.rope
    assert (rope.rotary_dim, len(rope.inv_freq)) == (6, 3)
    assert rope.pairing is RopePairing.INTERLEAVED


def test_glm4_rotates_half_of_a_head_unless_told(tmp_path: Path) -> None:
    assert load_model_spec(write_config(tmp_path, GLM4, head_dim=8)).spec.rope.rotary_dim == 4


def test_head_dim_is_derived_where_it_is_absent(tmp_path: Path) -> None:
    llama = load_model_spec(write_config(tmp_path, LLAMA)).spec
    assert llama.layers[0].attention.head_dim == 4
    glm4 = load_model_spec(write_config(tmp_path, GLM4, head_dim=...)).spec
    assert glm4.layers[0].attention.head_dim == 128  # the default of transformers' Glm4Config


@pytest.mark.parametrize(
    ("requested", "changes", "dtype", "reason"),
    [
        ("auto", {"dtype": "float32"}, DType.FLOAT32, "the checkpoint is float32"),
        ("auto", {"dtype": "bfloat16"}, DType.BFLOAT16, "the checkpoint is bfloat16"),
        (
            "auto",
            {"dtype": ..., "torch_dtype": "torch.bfloat16"},
            DType.BFLOAT16,
            "the checkpoint is bfloat16",
        ),
        (
            "auto",
            {"dtype": "float16"},
            DType.FLOAT16,
            "the checkpoint is float16",
        ),
        ("auto", {"dtype": ...}, DType.FLOAT32, "names no dtype"),
        ("bfloat16", {}, DType.BFLOAT16, "--dtype bfloat16, the checkpoint is float32"),
    ],
)
def test_the_precision_comes_with_its_reason(
    tmp_path: Path, requested: str, changes: dict[str, Any], dtype: DType, reason: str
) -> None:
    loaded = load_model_spec(write_config(tmp_path, LLAMA, **changes), requested)
    assert loaded.dtype is dtype
    assert reason in loaded.dtype_reason
    kinds = {slot.kind.value: slot.quant.dtype for slot in loaded.program.slots}
    assert kinds == {"linear": dtype, "table": dtype, "vector": DType.FLOAT32}


@pytest.mark.parametrize("requested", ["half", "fp8", ""])
def test_an_unknown_precision_is_refused(requested: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_dtype(requested, None)
    permitted = "auto, float32, bfloat16, float16"
    assert caught.value.message == f"--dtype is {requested!r}; permitted: {permitted}"


def test_reading_a_model_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, hearth.models.loader; "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
