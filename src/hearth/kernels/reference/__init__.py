"""The reference backend: plain, differentiable torch, the truth that tests compare with.

The only backend here that imports torch, so nothing imports this package except lazily.
"""
