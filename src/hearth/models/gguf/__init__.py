"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md) as models.

    file           the header: metadata and where each tensor lies
    names          llama.cpp's names of architectures and tensors, in the words of checkpoints
    config         metadata to a config.json that the family files read
    vocabulary     metadata to tokenizer files
    view           a directory that looks like a checkpoint's, with the file linked into it

Their matrices are read by `models/formats/gguf_rows`. Nothing here imports numpy.
"""
