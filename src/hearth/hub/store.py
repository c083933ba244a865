"""The local store of models: where they lie, which are whole, and who may change them.

    ROOT/ORG--NAME/COMMIT/…              the files, and .hearth.json when all are there
    ROOT/ORG--NAME/COMMIT.int4-g128/…    the same, converted (hub/converting)
    ROOT/ORG--NAME/COMMIT.MODEL-Q4_K_M/… one GGUF model of that commit (hub/gguf_choice)
    ROOT/ORG--NAME/.refs/REVISION        the commit that a revision meant when it was pulled; of
                                         a GGUF model REVISION:MODEL-Q4_K_M
    ROOT/ORG--NAME/.parts/…              what is not whole yet
    ROOT/.locks/ORG--NAME                flock(2): held by who changes anything above

ROOT is $HEARTH_MODELS_DIR, $XDG_CACHE_HOME/hearth/models or ~/.cache/hearth/models. Lock files are
never removed: a lock on a file that is gone would be no lock.

A few lines over 400: what is whole, what a name means and who may write are one another's rules.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from hearth.core.errors import (
    ChecksumError,
    ConfigError,
    HearthError,
    ModelError,
    ModelNotFoundError,
    StoreBusyError,
)
from hearth.core.paths import home_expanded
from hearth.core.quality import REPORT_FILE
from hearth.hub.digests import file_digest
from hearth.hub.download import sync_directory
from hearth.hub.gguf_files import SUFFIX, matches, quantization_of, stem_of
from hearth.hub.listing import MANIFEST
from hearth.hub.manifest import Manifest, read_manifest, write_manifest
from hearth.hub.names import DEFAULT_REVISION, ModelName, is_repo, parse_name

MODELS_VARIABLE = "HEARTH_MODELS_DIR"
_LOCKS, _REFS, _PARTS = ".locks", ".refs", ".parts"
_OF_MODEL = ":"  # no revision has one
_MIN_COMMIT_CHARS = 7
_SHORT_COMMIT = 12


def models_dir(environment: Mapping[str, str], given: str = "") -> Path:
    """The root of the store; `given` wins over the environment. Raises ConfigError."""
    named = given or environment.get(MODELS_VARIABLE, "")
    if named:
        path = home_expanded(named)
        if str(path).startswith("~"):
            raise ConfigError(f"{MODELS_VARIABLE} {named}: this home directory is not known")
        return path.absolute()
    base = environment.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # the specification: relative ones are ignored
        home = environment.get("HOME", "")
        if not Path(home).is_absolute():
            raise ConfigError(
                "neither XDG_CACHE_HOME nor HOME says where models are kept",
                hint=f"set {MODELS_VARIABLE} to a directory",
            )
        base = str(Path(home) / ".cache")
    return Path(base) / "hearth" / "models"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A revision in the store. `manifest` None: its download is not complete."""

    name: str
    commit: str
    path: Path
    manifest: Manifest | None
    num_bytes: int  # on disk
    revisions: tuple[str, ...] = ()  # that meant this commit when they were pulled

    @property
    def short(self) -> str:
        """As people read it: the beginning of the commit, and what was made of it."""
        commit, _, made = self.commit.partition(".")
        return commit[:_SHORT_COMMIT] + (f"+{made}" if made and not self.gguf else "")

    @property
    def gguf(self) -> str:
        """The file of the GGUF model that this is; empty: it is none."""
        return "" if self.manifest is None else self.manifest.gguf

    @property
    def tag(self) -> str:
        """What a name has behind ":" to mean it; empty: nothing."""
        return quantization_of(self.gguf) or stem_of(self.gguf)

    @property
    def title(self) -> str:
        """As it is named in a store that holds one revision of it."""
        return f"{self.name}:{self.tag}" if self.gguf else self.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The revisions, without what they say of a GGUF model."""
        return tuple(revision.partition(_OF_MODEL)[0] for revision in self.revisions)

    def is_meant(self, revision: str) -> bool:
        """Whether a revision, a commit or its short form means it."""
        own = self.commit.partition(".")[0] if self.gguf else self.commit
        return revision in (self.commit, own, self.short, *self.labels)


class Store:
    """One root. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repo_dir(self, name: ModelName) -> Path:
        """Everything of a model."""
        return self.root / name.directory

    def commit_dir(self, name: ModelName, commit: str) -> Path:
        """The files of one commit."""
        return self.repo_dir(name) / commit

    def parts_dir(self, name: ModelName) -> Path:
        """Files that are not whole yet."""
        return self.repo_dir(name) / _PARTS

    @contextmanager
    def locked(self, name: ModelName, waiting: Callable[[], None] | None) -> Iterator[None]:
        """The right to change a model's directory; a lock ends with its process.

        `waiting` is called before this waits for another process; None: StoreBusyError instead.
        Raises HearthError where the root cannot be written.
        """
        path = self.root / _LOCKS / name.directory
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HearthError(
                f"{self.root} cannot be written: {error.strerror}",
                hint=f"name a directory of yours with {MODELS_VARIABLE}",
            ) from error
        try:
            _take(fd, name, path, waiting)
            yield
        finally:
            os.close(fd)

    def check_names(self, paths: Iterable[str]) -> None:
        """Two files must not become one where the file system takes either case.

        For who holds a lock. Raises HearthError.
        """
        seen: dict[str, str] = {}
        for path in paths:
            other = seen.setdefault(path.casefold(), path)
            if other != path and self._ignores_case():
                raise HearthError(
                    f"{other} and {path} would be one file in {self.root}",
                    hint="leave one out with --exclude, or name a directory on a file system that "
                    f"tells upper case from lower case with {MODELS_VARIABLE}",
                )

    def _ignores_case(self) -> bool:
        return (self.root / _LOCKS.upper()).exists()

    def set_ref(self, name: ModelName, revision: str, commit: str) -> None:
        """Notes what a revision means now. Raises OSError."""
        path = self.repo_dir(name) / _REFS / quote(revision, safe="")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.parent / f".{path.name}.part"  # no revision begins with a dot
        with draft.open("w", encoding="utf-8") as file:
            file.write(f"{commit}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(path.parent)

    def models(self) -> list[StoredModel]:
        """All revisions, whole or not, by name."""
        found: list[StoredModel] = []
        for repo in _directories(self.root):
            if is_repo(text := repo.name.replace("--", "/")):
                found += self.revisions(ModelName(text))
        return found

    def revisions(self, name: ModelName) -> list[StoredModel]:
        """The revisions of one model, and what of it is not whole yet as one with commit ""."""
        repo = self.repo_dir(name)
        refs = _read_refs(repo / _REFS)
        found = []
        for path in _directories(repo):
            labels = tuple(sorted(ref for ref, commit in refs.items() if commit == path.name))
            manifest = None
            with contextlib.suppress(ModelError):  # a damaged one: as if it had not come so far
                manifest = read_manifest(path)
            num_bytes = _tree_bytes(path)
            found.append(StoredModel(name.repo, path.name, path, manifest, num_bytes, labels))
        if left := _tree_bytes(repo / _PARTS):
            found.append(StoredModel(name.repo, "", repo / _PARTS, None, left))
        return found

    def find(self, name: ModelName) -> StoredModel | None:
        """The whole model that a name means, or None.

        Without a revision: the one that was pulled without one, or else the only one there is.
        Raises ModelNotFoundError where that is not clear.
        """
        whole = [m for m in self.revisions(name) if is_whole(m) and _is_tagged(m, name.tag)]
        wanted = name.revision or DEFAULT_REVISION
        found = [model for model in whole if model.is_meant(wanted)]
        if name.tag is None:  # safetensors, where they are here
            found = [model for model in found if not model.gguf] or found
        if not found and name.revision is None:
            found = whole
        elif not found and len(wanted) >= _MIN_COMMIT_CHARS:
            found = [model for model in whole if model.commit.startswith(wanted)]
        if len(found) > 1:
            choices = ", ".join(sorted({_choice(model, found) for model in found}))
            raise ModelNotFoundError(
                f"{name} may be any of {len(found)} that were pulled", hint=f"name one: {choices}"
            )
        return found[0] if found else None

    def verify(self, model: StoredModel, on_bytes: Callable[[int], None]) -> Manifest:
        """Compares every file with the manifest, which then says when.

        Raises ChecksumError naming every file that is gone or changed, and ModelError without a
        manifest. Nothing is deleted; nobody has to wait meanwhile.
        """
        if model.manifest is None:
            raise ModelError(
                f"{model.name}: its download is not complete", hint=f"hearth pull {model.name}"
            )
        problems = []
        for file in model.manifest.files:
            if file.path == REPORT_FILE:  # see `is_whole`
                on_bytes(file.num_bytes)
                continue
            path = model.path / file.path
            try:
                found = file_digest(path, "sha256").value
            except OSError as error:
                problems.append(f"{file.path}: {error.strerror}")
            else:
                if found != file.sha256:
                    problems.append(f"{file.path} has sha256 {found}, pulled was {file.sha256}")
            on_bytes(file.num_bytes)
        if problems:
            named = _choice(model, self.revisions(ModelName(model.name)))
            raise ChecksumError(
                f"{model.name}@{model.short}: {'; '.join(problems)}",
                hint=f"hearth models remove {named}, and pull it again",
            )
        manifest = replace(model.manifest, verified_at=utc_now())
        self._note(model, manifest)
        return manifest

    def _note(self, model: StoredModel, manifest: Manifest) -> None:
        """Writes down what was verified, unless a pull or a removal came meanwhile.

        What cannot be written is left out: the store may be for reading only.
        """
        with (
            contextlib.suppress(OSError, HearthError),
            self.locked(ModelName(model.name), None),
        ):
            if read_manifest(model.path) == model.manifest:
                write_manifest(model.path, manifest)

    def remove(self, name: ModelName, models: list[StoredModel]) -> int:
        """Removes revisions, for a caller that holds the lock; the bytes freed. Raises OSError."""
        freed = 0
        for model in models:
            # The manifest first: what a kill leaves in the middle must not look whole.
            with contextlib.suppress(FileNotFoundError):
                (model.path / MANIFEST).unlink()
            shutil.rmtree(model.path)
            freed += model.num_bytes
            for revision in model.revisions:
                with contextlib.suppress(FileNotFoundError):
                    (self.repo_dir(name) / _REFS / quote(revision, safe="")).unlink()
        if not self.revisions(name):
            shutil.rmtree(self.repo_dir(name))
        return freed


def ref_name(revision: str, label: str) -> str:
    """How a revision is noted; `label`: of a GGUF model, of which a commit has several."""
    return f"{revision}{_OF_MODEL}{label}" if label else revision


def _is_tagged(model: StoredModel, tag: str | None) -> bool:
    return tag is None or (model.gguf != "" and is_tag_of(tag, model))


def is_tag_of(tag: str, model: StoredModel) -> bool:
    """Whether a tag means a GGUF model: its quantization, its file's name, or where it lay."""
    label = model.commit.partition(".")[2]
    return matches(tag, model.gguf) or tag.replace("/", "__").casefold() in (
        label.casefold(),
        f"{label}{SUFFIX}".casefold(),
    )


def _choice(model: StoredModel, others: list[StoredModel]) -> str:
    """A name that means it and none of the others, as far as names can."""
    if not model.gguf:
        return f"{model.name}@{model.short}"
    same = [other for other in others if other.gguf and is_tag_of(model.tag, other)]
    if len(same) == 1:
        return model.title
    if len({other.commit.partition(".")[0] for other in same}) == len(same):
        return f"{model.title}@{model.short}"
    return f"{model.name}:{model.commit.partition('.')[2].replace('__', '/')}"


def is_whole(model: StoredModel) -> bool:
    """Whether there is a manifest, and every file of it with its size.

    Not the report of quality: it is written anew where it is measured again.
    """
    if model.manifest is None:
        return False
    try:
        return all(
            (model.path / file.path).stat().st_size == file.num_bytes
            for file in model.manifest.files
            if file.path != REPORT_FILE
        )
    except OSError:
        return False


def resolve_model(text: str, environment: Mapping[str, str] | None = None) -> Path:
    """The directory of a pulled model.

    Raises ConfigError for what is no name, ModelNotFoundError where it was not pulled.
    """
    name = parse_name(text)
    store = Store(models_dir(os.environ if environment is None else environment))
    found = store.find(name)
    if found is None:
        raise ModelNotFoundError(
            f"{name} is not in {store.root}, or not all of it", hint=f"hearth pull {name}"
        )
    return found.path


def utc_now() -> str:
    """The time, as manifests write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _take(fd: int, name: ModelName, path: Path, waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise StoreBusyError(
                f"another process is changing {name.repo} at this moment",
                hint="wait until its `hearth pull` has ended, or end it",
            ) from None
        waiting()
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        raise HearthError(
            f"{path} cannot be locked: {error.strerror}",
            hint=f"name a directory on a local disk with {MODELS_VARIABLE}",
        ) from error


def _directories(path: Path) -> list[Path]:
    """Real directories in a directory, without those of our own; none where there is none."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return []
    return [e for e in entries if not e.name.startswith(".") and e.is_dir() and not e.is_symlink()]


def _read_refs(path: Path) -> dict[str, str]:
    from urllib.parse import unquote

    refs = {}
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            if not file.name.startswith("."):
                with contextlib.suppress(OSError):
                    refs[unquote(file.name)] = file.read_text("utf-8", "replace").strip()
    return refs


def _tree_bytes(path: Path) -> int:
    """What the files below take on disk."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(directory) / name).lstat().st_blocks * 512
    return total
