"""Which Debian packages the corpus is made of, and fetching them.

All are of Debian's `main`: free to use, change and pass on. Chosen for English prose; references
that are mostly signatures (of pandas, Rust, Haskell) are left out.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import ConfigError, HearthError

_LIST = Path(__file__).parent / "packages.txt"


def read_packages() -> list[str]:
    """The names, in order."""
    return _LIST.read_text(encoding="ascii").split()


@dataclass(frozen=True, slots=True)
class Package:
    """A package's file, and what the archive says of it."""

    name: str
    version: str
    sha256: str
    path: Path


def fetch(directory: Path, names: list[str]) -> list[Package]:
    """Downloads the packages that are not there. Raises ConfigError, HearthError."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not _files_of(directory, name)]
    if missing:
        _download(directory, missing)
    return [_described(directory, name) for name in names]


def _download(directory: Path, names: list[str]) -> None:
    try:
        subprocess.run(
            ["apt-get", "download", *names],
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError as error:
        raise ConfigError("apt-get is missing", hint="run this on Debian or Ubuntu") from error
    except subprocess.CalledProcessError as error:
        raise HearthError(
            f"apt-get download failed: {error.stderr.strip().splitlines()[-1]}",
            hint="run apt-get update, or name the packages that this release has with --packages",
        ) from error


def _files_of(directory: Path, name: str) -> list[Path]:
    return sorted(directory.glob(f"{name}_*.deb"))


def _described(directory: Path, name: str) -> Package:
    found = _files_of(directory, name)
    if len(found) != 1:
        raise HearthError(
            f"{directory} holds {len(found)} files of {name}, expected one",
            hint="remove the directory and fetch again",
        )
    query = ["dpkg-deb", "--field", str(found[0]), "Version"]
    version = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Package(name, version, digest, found[0])
