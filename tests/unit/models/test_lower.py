"""A spec becomes the program that the family's architecture means, operation by operation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.models.checkpoints import GLM4, HIDDEN, LLAMA, VOCABULARY, write_config

from hearth.core.program import (
    Attend,
    BufferRows,
    Embed,
    KvGroupSpec,
    KvWrite,
    Linear,
    Select,
    StepProgram,
)
from hearth.core.spec import SlotKind
from hearth.kernels.fuse import access_of
from hearth.models.loader import load_model_spec
from hearth.models.lower import lower

KEYS = ["Norm", "Linear", "Rope", "KvWrite"]
MLP = ["Norm", "Linear", "Gate", "Linear"]
LLAMA_REST = ["Attend", "Linear", "Add", *MLP, "Add"]
GLM4_REST = ["Attend", "Linear", "Norm", "Add", *MLP, "Norm", "Add"]


def program_of(directory: Path, base: dict[str, Any], **changes: Any) -> StepProgram:
    return load_model_spec(write_config(directory, base, **changes)).program


@pytest.mark.parametrize(("base", "rest"), [(LLAMA, LLAMA_REST), (GLM4, GLM4_REST)])
def test_the_operations_are_those_of_the_architecture(
    tmp_path: Path, base: dict[str, Any], rest: list[str]
) -> None:
    program = program_of(tmp_path, base)
    names = [type(op).__name__ for op in program.ops]
    last = [*KEYS, "Select", "Select", *rest]
    assert names == ["Embed", "Angles", *KEYS, *rest, *last, "Norm", "Linear", "Sample"]


@pytest.mark.parametrize("quantize", ["none", "int4"])
@pytest.mark.parametrize("base", [LLAMA, GLM4, {**LLAMA, "num_hidden_layers": 1}])
def test_what_follows_the_last_keys_has_the_wanted_rows_only(
    tmp_path: Path, base: dict[str, Any], quantize: str
) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    directory = write_config(tmp_path, base, **wide)
    program = load_model_spec(directory, quantize=quantize).program
    first = next(at for at, op in enumerate(program.ops) if isinstance(op, Select))
    assert max(at for at, op in enumerate(program.ops) if isinstance(op, KvWrite)) == first - 1
    for at, op in enumerate(program.ops):
        access = access_of(op)
        kinds = {program.buffers[one].rows for one in access.reads + access.writes}
        if isinstance(op, Select):
            assert [program.buffers[one].rows for one in (op.x, op.out)] == [
                BufferRows.TOKENS,
                BufferRows.LOGITS,
            ]
        else:
            assert kinds == {BufferRows.LOGITS if at > first else BufferRows.TOKENS}


def test_keys_are_written_before_they_are_read(tmp_path: Path) -> None:
    places = [
        (type(op), op.group, op.layer)
        for op in program_of(tmp_path, GLM4).ops
        if isinstance(op, KvWrite | Attend)
    ]
    assert places == [(KvWrite, 0, 0), (Attend, 0, 0), (KvWrite, 0, 1), (Attend, 0, 1)]


@pytest.mark.parametrize("base", [LLAMA, GLM4])
def test_buffers_are_shared_by_all_layers(tmp_path: Path, base: dict[str, Any]) -> None:
    few = program_of(tmp_path, base, num_hidden_layers=2).buffers
    many = program_of(tmp_path, base, num_hidden_layers=7).buffers
    assert few == many
    assert [b.width for b in few if b.name == "hidden"] == [HIDDEN, HIDDEN]
    assert [(b.width, b.rows) for b in few][-1] == (VOCABULARY, BufferRows.LOGITS)


def test_every_operand_has_the_width_of_its_weight(tmp_path: Path) -> None:
    for base in (LLAMA, GLM4):
        program = program_of(tmp_path, base)
        slots = {slot.name: slot for slot in program.slots}
        for op in program.ops:
            if isinstance(op, Linear):
                assert program.buffers[op.x].width == slots[op.weight].cols
                assert program.buffers[op.out].width == slots[op.weight].rows
                if op.bias is not None:
                    assert slots[op.bias].rows == slots[op.weight].rows


@pytest.mark.parametrize("base", [LLAMA, GLM4])
def test_every_slot_is_used(tmp_path: Path, base: dict[str, Any]) -> None:
    program = program_of(tmp_path, base)
    text = repr(program.ops)
    assert [slot.name for slot in program.slots if f"'{slot.name}'" not in text] == []


def test_a_tied_model_has_one_matrix_for_embedding_and_head(tmp_path: Path) -> None:
    program = program_of(tmp_path, LLAMA, tie_word_embeddings=True)
    embed = next(op for op in program.ops if isinstance(op, Embed))
    head = [op for op in program.ops if isinstance(op, Linear)][-1]
    assert embed.table == head.weight == "embedding"
    slots = [slot for slot in program.slots if slot.rows == VOCABULARY]
    assert [(slot.name, slot.kind) for slot in slots] == [("embedding", SlotKind.LINEAR)]


def test_qkv_and_gate_up_concatenate_their_sources(tmp_path: Path) -> None:
    slots = {slot.name: slot for slot in program_of(tmp_path, LLAMA).slots}
    sources = [(s.tensor.split(".")[-2], s.num_rows) for s in slots["layers.1.qkv"].sources]
    assert sources == [("q_proj", 8), ("k_proj", 4), ("v_proj", 4)]
    sources = [(s.tensor.split(".")[-2], s.num_rows) for s in slots["layers.1.gate_up"].sources]
    assert sources == [("gate_proj", 6), ("up_proj", 6)]


@pytest.mark.parametrize(
    ("base", "changes", "biased"),
    [
        (LLAMA, {}, set()),
        (LLAMA, {"attention_bias": True}, {"qkv", "attention_out"}),
        (LLAMA, {"mlp_bias": True}, {"gate_up", "down"}),
        (GLM4, {}, {"qkv"}),
        (GLM4, {"attention_bias": False}, set()),
    ],
)
def test_biases_are_where_the_config_puts_them(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], biased: set[str]
) -> None:
    program = program_of(tmp_path, base, **changes)
    names = {op.weight.split(".")[-1] for op in program.ops if isinstance(op, Linear) and op.bias}
    assert names == biased


def test_layers_are_grouped_by_window(tmp_path: Path) -> None:
    spec = load_model_spec(write_config(tmp_path, LLAMA, num_hidden_layers=3)).spec
    windowed = replace(spec.layers[1], attention=replace(spec.layers[1].attention, window=4))
    program = lower(replace(spec, layers=(spec.layers[0], windowed, spec.layers[2])))
    assert program.kv_groups == (KvGroupSpec(2, 1, 4), KvGroupSpec(1, 1, 4, window=4))
    attends = [(op.group, op.layer, op.window) for op in program.ops if isinstance(op, Attend)]
    assert attends == [(0, 0, 0), (1, 0, 4), (0, 1, 0)]


def test_the_digest_tells_programs_apart(tmp_path: Path) -> None:
    one = program_of(tmp_path, LLAMA).digest()
    assert one == program_of(tmp_path, LLAMA).digest()
    assert one != program_of(tmp_path, LLAMA, rope_theta=5.0).digest()
