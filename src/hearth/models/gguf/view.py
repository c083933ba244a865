"""A directory that looks like a checkpoint's, for a GGUF file: small text files and a link.

It lies in the user's cache and is named by what it was made from, so that it is made once; where
that cannot be, in a temporary directory that ends with the process. A tokenizer that lies beside
the GGUF file is taken before the one in its metadata.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from hearth.core.errors import ModelNotFoundError, WeightsError
from hearth.models.gguf.checkpoint import PROJECTOR_FILE, part_file
from hearth.models.gguf.config import architecture_of, config_of
from hearth.models.gguf.file import is_gguf, read_gguf
from hearth.models.gguf.glm4v import preprocessor_of
from hearth.models.gguf.names import GLM4V
from hearth.models.gguf.parts import is_later_part, parts_of, plain_stem, read_parts
from hearth.models.gguf.vocabulary import vocabulary_files
from hearth.models.safetensors_file import GGUF_FILE

SUFFIX = ".gguf"
_VERSION = 2  # of the files that are made
_PROJECTOR = "mmproj"  # how names of encoders' files begin
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_BESIDE = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
)


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a directory without config.json.

    Of a model in parts it is the first one. Raises ModelNotFoundError for a directory with several
    models, WeightsError where parts are missing.
    """
    if path.is_file():
        return parts_of(path)[0] if path.suffix == SUFFIX or is_gguf(path) else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(p for p in path.glob(f"*{SUFFIX}") if not p.name.startswith(_PROJECTOR))
    found = [p for p in found if not is_later_part(p)] or found[:1]
    if len(found) > 1:
        raise ModelNotFoundError(
            f"{path} holds {len(found)} GGUF files: {', '.join(p.name for p in found[:4])}",
            hint="name the file itself",
        )
    return parts_of(found[0])[0] if found else None


def view_of(path: Path, environment: Mapping[str, str]) -> Path:
    """The directory for a GGUF file. Raises WeightsError, ModelError, TokenizerError."""
    path = path.absolute()
    name = _name(path)
    parent = _cache(environment)
    if parent is not None:
        target = parent / name
        if (target / "config.json").is_file() and (target / GGUF_FILE).exists():
            return target
    files = _files(path)
    if parent is not None:
        try:
            return _write(parent, name, path, files)
        except OSError:
            pass  # no such user, a full or a read-only disk: it is needed now only
    temporary = Path(tempfile.mkdtemp(prefix="hearth-gguf-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    try:
        return _write(temporary, name, path, files)
    except OSError as error:
        raise WeightsError(
            f"{path.name}: its description cannot be written to {temporary}: {error.strerror}",
            hint="free some megabytes, or set TMPDIR",
        ) from error


def _files(path: Path) -> dict[str, bytes | Path]:
    """Contents by name, or what a link leads to."""
    parts = parts_of(path)
    file = read_parts(parts)
    files: dict[str, bytes | Path] = {part_file(n): p for n, p in enumerate(parts, start=1)}
    projector = None
    if architecture_of(file) is GLM4V and (found := _projector_of(path)) is not None:
        projector = read_gguf(found)
        files[PROJECTOR_FILE] = found
        files["preprocessor_config.json"] = json.dumps(preprocessor_of(projector)).encode()
    files["config.json"] = json.dumps(config_of(file, projector), indent=1).encode()
    beside = {name: path.with_name(name) for name in _BESIDE if path.with_name(name).is_file()}
    if any(name in beside for name in _TOKENIZERS):
        return files | beside
    images = {name: beside[name] for name in ("preprocessor_config.json",) if name in beside}
    return files | vocabulary_files(file) | images


def _projector_of(path: Path) -> Path | None:
    """The encoder's file beside a model's; None where there is none, or more than one."""
    found = sorted(path.parent.glob(f"{_PROJECTOR}*{SUFFIX}"))
    return found[0] if len(found) == 1 else None


def _write(parent: Path, name: str, path: Path, files: Mapping[str, bytes | Path]) -> Path:
    """All of them at once, under the final name; another process may have been first."""
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
    try:
        for key, content in files.items():
            if isinstance(content, bytes):
                (draft / key).write_bytes(content)
            else:
                (draft / key).symlink_to(content)
        target = parent / name
        try:
            draft.rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
        _forget_others(parent, path, target)
        return target
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _forget_others(parent: Path, path: Path, target: Path) -> None:
    """Views of the same file as it was before, and of files that are gone."""
    for other in parent.iterdir():
        link = other / GGUF_FILE
        if other == target or not link.is_symlink():
            continue
        if not link.exists() or link.readlink() == path:
            shutil.rmtree(other, ignore_errors=True)


def _name(path: Path) -> str:
    """By the file, and by what lies beside it."""
    stamps = []
    encoders = sorted(path.parent.glob(f"{_PROJECTOR}*{SUFFIX}"))
    for part in (*parts_of(path), *encoders, *(path.with_name(name) for name in _BESIDE)):
        try:
            status = part.stat()
        except OSError:
            continue
        stamps.append((str(part), status.st_ino, status.st_size, status.st_mtime_ns))
    digest = blake2b(json.dumps([_VERSION, stamps]).encode(), digest_size=8).hexdigest()
    return f"{plain_stem(path)}-{digest}"


def _cache(environment: Mapping[str, str]) -> Path | None:
    base = environment.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():
        home = environment.get("HOME", "")
        if not Path(home).is_absolute():
            return None
        base = str(Path(home) / ".cache")
    return Path(base) / "hearth" / "gguf"
