"""Models as data: family files map a config.json to a ModelSpec, which is lowered to a program.

Owns the family files, lowering, and the way from checkpoint tensors to packed weights. Holds no
forward code.
"""
