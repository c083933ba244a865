"""The engines that are compared, each with the scheme that comes nearest to hearth's."""

from __future__ import annotations

from benchmarks.peers.worker import EngineSpec

ENGINES = {
    spec.name: spec
    for spec in (
        EngineSpec(
            "hearth",
            "hearth INT4",
            "hearth_worker",
            "hearth",
            "hf",
            "int4 symmetric, groups of 128, int8 rows; head and embedding int8; KV bfloat16",
            1.0,
            {"flags": ["--quantize", "int4"]},
        ),
        EngineSpec(
            "llama.cpp",
            "llama.cpp Q4_0",
            "llama_cpp_worker",
            "llama.cpp",
            "gguf-q4_0",
            "Q4_0: int4 symmetric, groups of 32, int8 rows; head Q6_K; KV f16",
            18 / 32,
        ),
        EngineSpec(
            "openvino-int4",
            "OpenVINO GenAI INT4",
            "openvino_worker",
            "openvino",
            "openvino-int4",
            "int4 asymmetric, groups of 128, ratio 1.0; head and embedding int8; KV u8",
            1.0,
        ),
        EngineSpec(
            "openvino-int8",
            "OpenVINO GenAI INT8",
            "openvino_worker",
            "openvino",
            "openvino-int8",
            "int8 asymmetric, a scale a row; KV u8",
            1.0,
        ),
        EngineSpec(
            "onnxruntime",
            "ONNX Runtime GenAI INT4",
            "onnxruntime_worker",
            "onnxruntime",
            "onnx-int4",
            "int4, groups of 32, int8 rows (accuracy level 4); KV float32",
            4.0,
        ),
        EngineSpec(
            "transformers",
            "transformers bf16",
            "transformers_worker",
            "transformers",
            "hf",
            "bfloat16, eager",
            2.0,
        ),
        EngineSpec(
            "vllm",
            "vLLM CPU bf16",
            "vllm_worker",
            "vllm",
            "hf",
            "bfloat16, eager; KV bfloat16",
            2.0,
        ),
    )
}
DEFAULT_ENGINES = ("hearth", "llama.cpp", "openvino-int4")
