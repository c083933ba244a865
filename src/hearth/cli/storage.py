"""Which directory stands for the storage of models."""

from __future__ import annotations

import os
from pathlib import Path

from hearth.core.errors import ConfigError
from hearth.core.paths import home_expanded


def storage_of(model: str | None, models_dir: str | None) -> Path:
    """The directory that was named, else that of a MODEL which is here, else of pulled models."""
    if not models_dir and model is not None:
        path = home_expanded(model).absolute()
        if path.exists():
            return path.parent if path.is_file() else path
    return storage_directory(models_dir)


def storage_directory(given: str | None) -> Path:
    """The directory that was named, else that of pulled models."""
    if given:
        return home_expanded(given).absolute()
    from hearth.hub.store import models_dir

    try:
        return models_dir(os.environ)
    except ConfigError:  # nobody's home, as in some containers: this disk is as good as any
        return Path.cwd()
