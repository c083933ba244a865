"""The support archive of `hearth doctor --bundle`: whole or not at all, over no file."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hearth.core.errors import CapacityError, ConfigError

_FOLDER = "hearth-doctor"


def write_bundle(path: Path, files: Mapping[str, str]) -> None:
    """Writes the texts as a .tar.gz that only its owner may read.

    Raises ConfigError where the path is taken or cannot be written, CapacityError for a full disk.
    """
    if not path.name.endswith((".tar.gz", ".tgz")):
        raise ConfigError(
            f"--bundle {path} is not the name of an archive (permitted: FILE.tar.gz, FILE.tgz)"
        )
    if os.path.lexists(path):
        raise _taken(path)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_packed(files))
            file.flush()
            os.fsync(file.fileno())
        _publish(Path(temporary), path)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise _taken(path) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise CapacityError(
                f"--bundle {path} cannot be written: {error.strerror}", hint="free disk space"
            ) from error
        raise ConfigError(f"--bundle {path} cannot be written: {error.strerror}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Gives the file its name, which fails where another process has taken it meanwhile."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        # A file system without links: the name is taken first, and then the file put in its place.
        path.touch(mode=0o600, exist_ok=False)
        temporary.replace(path)


def _packed(files: Mapping[str, str]) -> bytes:
    """The same texts give the same bytes: no time, no owner."""
    raw = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, text in files.items():
            data = text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


def _taken(path: Path) -> ConfigError:
    return ConfigError(
        f"--bundle {path} is there already, and is not overwritten",
        hint="name another file, or remove that one",
    )
