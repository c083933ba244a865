"""The C structures of `csrc/hearth.h` for ctypes, and their constants.

Field for field as in the header; `ABI_VERSION` is compared when the library is loaded.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p

from hearth.core.program import BufferRows
from hearth.core.spec import (
    Activation,
    DType,
    KvDType,
    RopePairing,
    RouterScoring,
    SlotKind,
    WeightSlot,
)

ABI_VERSION = 15
DTYPE_CODES = {DType.FLOAT32: 0, DType.BFLOAT16: 1, DType.FLOAT16: 2}
KV_CODES = {
    KvDType.FLOAT32: 0,
    KvDType.BFLOAT16: 1,
    KvDType.INT8: 3,
    KvDType.INT4: 4,
    KvDType.FP8: 5,
}
KIND_CODES = {SlotKind.LINEAR: 0, SlotKind.TABLE: 1, SlotKind.VECTOR: 2}
ROW_CODES = {
    BufferRows.TOKENS: 0,
    BufferRows.LOGITS: 1,
    BufferRows.IMAGE: 2,
    BufferRows.MERGED: 3,
}
ACTIVATION_CODES = {
    Activation.SILU: 0,
    Activation.GELU_TANH: 1,
    Activation.GELU: 2,
    Activation.QUICK_GELU: 3,
}
SCORING_CODES = {RouterScoring.SOFTMAX: 0, RouterScoring.SIGMOID: 1}
SPLIT_CODES = {"auto": 0, "never": 1, "always": 2}
PAIRING_CODES = {RopePairing.HALF: 0, RopePairing.INTERLEAVED: 1}
WANT_HASHES = 1
WANT_LOGITS = 2
E_MEMORY = 2  # an error code
ATTEND_IMAGE, ATTEND_ROUNDED = 1, 2

(
    OP_EMBED,
    OP_ANGLES,
    OP_NORM,
    OP_LINEAR,
    OP_ROPE,
    OP_KV_WRITE,
    OP_ATTEND,
    OP_GATE,
    OP_ADD,
    OP_SELECT,
    OP_SAMPLE,
    OP_HEAD_NORM,
    OP_SOFT_CAP,
    OP_EXPERTS,
    OP_QUANTIZE,
    OP_ACTIVATE,
    OP_PATCHES,
    OP_GRID_EMBED,
    OP_REGROUP,
    OP_EMIT,
) = range(1, 21)


class CStructure(ctypes.Structure):
    """Base that allows keyword construction under strict typing."""

    def __init__(self, **fields: object) -> None:
        super().__init__(**fields)


class COp(CStructure):
    """hearth_op."""

    _fields_ = (
        ("kind", c_int32),
        ("x", c_int32),
        ("y", c_int32),
        ("out", c_int32),
        ("weight", c_int32),
        ("bias", c_int32),
        ("group", c_int32),
        ("layer", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("window", c_int32),
        ("rotary_dim", c_int32),
        ("pairing", c_int32),
        ("freq_offset", c_int32),
        ("sections", c_int32 * 3),
        ("activation", c_int32),
        ("eps", c_float),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("routes", c_int32),
        ("gated", c_int32),
        ("down", c_int32),
        ("experts", c_int32),
        ("top_k", c_int32),
        ("expert_groups", c_int32),
        ("top_groups", c_int32),
        ("scoring", c_int32),
        ("normalize", c_int32),
        ("gated_codes", c_int32),
        ("fused", c_int32),
        ("flag", c_int32),
        ("count", c_int32),
    )


class CBuffer(CStructure):
    """hearth_buffer."""

    _fields_ = (
        ("width", c_int32),
        ("rows", c_int32),
        ("group", c_int32),
        ("is_tile", c_int32),
        ("residual", c_int32),
    )


class CLayout(CStructure):
    """hearth_layout."""

    _fields_ = (
        ("kind", c_int32),
        ("dtype", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("stack", c_int64),
        ("bits", c_int32),
        ("group", c_int32),
        ("zeros", c_int32),
        ("wide", c_int32),
        ("fp8", c_int32),
    )


class CWeight(CStructure):
    """hearth_weight."""

    _fields_ = (("data", c_void_p), ("layout", CLayout))


def layout_of(slot: WeightSlot) -> CLayout:
    """How a slot is packed."""
    return CLayout(
        kind=KIND_CODES[slot.kind],
        dtype=DTYPE_CODES[slot.quant.dtype],
        rows=slot.rows,
        cols=1 if slot.kind is SlotKind.VECTOR else slot.cols,
        stack=slot.stack,
        bits=slot.quant.bits,
        group=slot.quant.group_size,
        zeros=slot.quant.bits > 0 and not slot.quant.symmetric,
        wide=slot.quant.bits > 0 and slot.quant.wide_scales,
        fp8=slot.quant.bits > 0 and slot.quant.is_float,
    )


class CGroup(CStructure):
    """hearth_group."""

    _fields_ = (
        ("layers", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("window", c_int32),
        ("blocks", c_int64),
    )


class CModelDesc(CStructure):
    """hearth_model_desc."""

    _fields_ = (
        ("abi_version", c_int32),
        ("num_ops", c_int32),
        ("num_buffers", c_int32),
        ("num_weights", c_int32),
        ("num_groups", c_int32),
        ("num_inv_freq", c_int32),
        ("ops", POINTER(COp)),
        ("buffers", POINTER(CBuffer)),
        ("weights", POINTER(CWeight)),
        ("groups", POINTER(CGroup)),
        ("inv_freq", POINTER(c_float)),
        ("vocab_size", c_int32),
        ("max_tokens", c_int32),
        ("max_sequences", c_int32),
        ("max_logit_rows", c_int32),
        ("max_model_len", c_int32),
        ("block_size", c_int32),
        ("kv_dtype", c_int32),
        ("kv_rotated", c_int32),
        ("max_image_rows", c_int32),
        ("merge_rows", c_int32),
        ("num_threads", c_int32),
        ("attend_split", c_int32),
        ("isa", c_char_p),
    )


class CPlan(CStructure):
    """hearth_plan; pointers as integers, since they change with every step."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_sequences", c_int32),
        ("num_logit_rows", c_int32),
        ("num_copies", c_int32),
        ("num_blocks", c_int32),
        ("flags", c_int32),
        ("num_top", c_int32),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("row_start", c_void_p),
        ("context", c_void_p),
        ("slots", c_void_p),
        ("blocks", c_void_p),
        ("block_start", c_void_p),
        ("first_block", c_void_p),
        ("logit_rows", c_void_p),
        ("copies", c_void_p),
        ("temperature", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("seed", c_void_p),
        ("position", c_void_p),
        ("choice", c_void_p),
        ("num_logprobs", c_void_p),
        ("given", c_void_p),
        ("repetition", c_void_p),
        ("frequency", c_void_p),
        ("presence", c_void_p),
        ("count_start", c_void_p),
        ("count_tokens", c_void_p),
        ("counts", c_void_p),
        ("bias_start", c_void_p),
        ("bias_tokens", c_void_p),
        ("biases", c_void_p),
        ("features", c_void_p),
        ("image_rows", c_int32),
        ("grid_height", c_int32),
        ("grid_width", c_int32),
        ("patches", c_void_p),
        ("num_windows", c_int32),
        ("window_start", c_void_p),
    )


class CResult(CStructure):
    """hearth_result."""

    _fields_ = (
        ("tokens", c_void_p),
        ("logprobs", c_void_p),
        ("hashes", c_void_p),
        ("logits", c_void_p),
        ("top_tokens", c_void_p),
        ("top_logprobs", c_void_p),
        ("ranks", c_void_p),
        ("features", c_void_p),
    )


def declare(library: ctypes.CDLL) -> None:
    """Sets argument and result types of every function that is called."""
    library.hearth_abi_version.restype = c_int32
    library.hearth_last_error.restype = c_char_p
    library.hearth_isas.restype = c_char_p
    library.hearth_model_create.argtypes = (POINTER(CModelDesc), POINTER(c_void_p))
    library.hearth_model_destroy.argtypes = (c_void_p,)
    library.hearth_model_destroy.restype = None
    library.hearth_model_bind.argtypes = (c_void_p, POINTER(c_int32))
    library.hearth_run.argtypes = (c_void_p, c_int32, c_int32, POINTER(CPlan), POINTER(CResult))
    library.hearth_read_buffer.argtypes = (c_void_p, c_int32, c_int32, c_void_p)
    library.hearth_write_buffer.argtypes = (c_void_p, c_int32, c_int32, c_void_p)
    library.hearth_pack.argtypes = (
        c_void_p,
        POINTER(CLayout),
        c_void_p,
        c_int32,
        c_int64,
        c_int64,
        c_int32,
        c_char_p,
    )
    library.hearth_quantize.argtypes = (
        POINTER(CLayout),
        c_void_p,
        c_int32,
        c_int64,
        c_int32,
        c_char_p,
        c_void_p,
        c_void_p,
        c_void_p,
    )
    library.hearth_pack_codes.argtypes = (
        c_void_p,
        POINTER(CLayout),
        c_void_p,
        c_void_p,
        c_void_p,
        c_int64,
        c_int64,
    )
    library.hearth_fill_random.argtypes = (
        c_void_p,
        POINTER(CLayout),
        c_int64,
        c_int64,
        c_uint64,
        c_float,
        c_float,
    )
