"""The executor for NVIDIA GPUs: step programs as Triton launches; see docs/cuda.md.

Modules that import torch or triton are imported where a model is built for a GPU, and by tests.
"""
