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

PACKAGES = (
    "abs-guide apache2-doc apt-doc aptitude-doc-en autoconf-doc bash-doc cmake-doc coreutils"
    " debconf-doc debian-faq debian-handbook debian-kernel-handbook debian-policy"
    " debian-reference-en debmake-doc developers-reference dict-foldoc diffutils-doc doc-debian"
    " dpkg-dev exim4-doc-html findutils flex-doc git-doc glibc-doc gnome-user-docs gnupg"
    " gnuplot-doc grep harden-doc inkscape-tutorials installation-guide-amd64 jargon-text"
    " libreoffice-help-en-us libvirt-doc lilypond-doc-html linux-doc-6.1 live-manual-txt"
    " maint-guide manpages manpages-dev maxima-doc mutt octave-doc perl-doc postfix-doc"
    " postgresql-doc-15 python-django-doc python-sqlalchemy-doc python3.11-doc r-doc-html sed"
    " sphinx-doc sqlite3-doc vim-doc zsh-doc"
).split()


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
