"""Models from a hub: found, downloaded, verified, kept, staged.

    names ─▶ sources (huggingface, modelscope) ─ Listing ─▶ selection ─▶ pull ─▶ store ─▶ a path
                              transport ── download ── digests ── manifest ─┘

Owns the local store of models and the staging directories; nothing else writes there. It never
loads a model and knows nothing of tensors: whether files fit together is `engine.compatibility`.
"""
