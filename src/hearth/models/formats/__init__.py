"""Checkpoints that others quantized: one module for each format, and what they share.

forms          which tensors are codes, and how the program keeps them
matrix         a stored matrix, its pieces, and rows of codes as they come from a file
placing        rows into a sink: exactly, or converted with the loss measured
X              how format X is declared and which tensors it uses; imports no numpy
X_rows         how its rows are read
"""
