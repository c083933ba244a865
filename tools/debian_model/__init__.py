"""The larger text model: a corpus from Debian's documentation packages, its tokenizer, training.

Nothing of it is installed with hearth, and its weights are too large for the repository: the
scripts make them again. `docs/debian-model.md` holds the commands and the figures.
"""
