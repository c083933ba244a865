"""A model of a pinned commit: what never means anything else, so that nobody has to be asked."""

from __future__ import annotations

from hearth.hub.names import ModelName
from hearth.hub.store import Store, StoredModel, is_tag_of, is_whole


def find_pinned(store: Store, name: ModelName) -> StoredModel | None:
    """What is here of just this commit, nothing that was made of it; a GGUF model by its tag."""
    found = [
        model
        for model in store.revisions(name)
        if is_whole(model) and _is_pinned(model, name.revision or "", name.tag)
    ]
    return found[0] if len(found) == 1 else None


def _is_pinned(model: StoredModel, commit: str, tag: str | None) -> bool:
    if tag is None:
        return model.commit == commit
    own = model.commit.partition(".")[0]
    return bool(model.gguf) and own == commit and is_tag_of(tag, model)
