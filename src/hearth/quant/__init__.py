"""Quantized checkpoints: which matrices become codes, and the files that hold them."""
