"""Makes the texts to train and to test on: `python -m tools.debian_model.corpus DIRECTORY`.

Writes `train.txt`, `test.txt`, `calibration.txt` (a part of what is trained on, for quantizing by
a text) and `manifest.json`. Documents are divided by a hash of their name,
and a paragraph that was seen once, in either text, is dropped wherever it comes again: nothing of
the test is in what was trained. The same packages always give the same files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.debian_model.extract import html_blocks, man_blocks, names, text_blocks
from tools.debian_model.packages import Package, fetch, read_packages

# The end of a document; the tokenizer's END_OF_TEXT is the same.
DOCUMENT_END = "<|endoftext|>"
TEST_ONE_IN = 40
# One package must not be the corpus: documents of a larger one are chosen by the hash.
MAX_PACKAGE_CHARS = 6_000_000
# Longer ones (a dictionary, a manual in one file) are cut off there.
MAX_DOCUMENT_CHARS = 1_500_000
MIN_DOCUMENT_CHARS = 800
MIN_UNIQUE_CHARS = 40
MIN_ENGLISH_SHARE = 0.15
_PLACES = ("usr/share/doc/", "usr/share/info/", "usr/share/man/", "usr/share/help/C/", "usr/share/")
_ENGLISH = names(
    "the of to and a in is that it for be as with on this are or by an not you can if from"
)
_OTHER_LANGUAGE = re.compile(
    r"/(?!en\b|us\b)[a-z]{2}(?:[-_][A-Z]{2})?/|\.(?!en)[a-z]{2}\.(?:html|txt)"
)
_UNWANTED = re.compile(
    r"changelog|copyright|/examples?/|genindex|/search\.html|NEWS|README|TODO|\bindex-|bookindex"
    r"|licen[cs]e|GPL|/py-modindex|authors|credits|contributors|/_sources/|release-?notes",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Counts:
    """Of one package, for the manifest."""

    documents: int = 0
    train_chars: int = 0
    test_chars: int = 0
    repeated_chars: int = 0


@dataclass(slots=True)
class Corpus:
    """The texts while they grow."""

    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    calibration: list[str] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def add(self, package: Package) -> Counts:
        """Takes a package's documents. Raises CalledProcessError, OSError."""
        counts = Counts()
        found = list(documents(package))
        # By the hash, so that what the limit leaves out is spread over the package.
        for name, blocks in sorted(found, key=lambda one: _hash(one[0])):
            if counts.train_chars + counts.test_chars > MAX_PACKAGE_CHARS:
                break
            text = self._unseen(blocks, counts)
            if len(text) < MIN_DOCUMENT_CHARS or not is_english(text):
                continue
            counts.documents += 1
            if is_test(name):
                self.test.append(text)
                counts.test_chars += len(text)
            else:
                self.train.append(text)
                if _hash(name) % TEST_ONE_IN == 1:
                    self.calibration.append(text)
                counts.train_chars += len(text)
        return counts

    def _unseen(self, blocks: list[str], counts: Counts) -> str:
        kept = []
        num_chars = 0
        for block in blocks:
            if num_chars > MAX_DOCUMENT_CHARS:
                break
            if len(block) >= MIN_UNIQUE_CHARS:
                key = hashlib.blake2b(block.lower().encode(), digest_size=12).digest()
                if key in self.seen:
                    counts.repeated_chars += len(block)
                    continue
                self.seen.add(key)
            kept.append(block)
            num_chars += len(block)
        return "\n\n".join(kept)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def is_test(name: str) -> bool:
    """Whether a document (`package/path`) is held out."""
    return _hash(name) % TEST_ONE_IN == 0


def is_english(text: str) -> bool:
    """Whether as many of its words are the commonest English ones as in prose."""
    words = re.findall(r"[a-z']+", text.lower())
    return sum(word in _ENGLISH for word in words) >= MIN_ENGLISH_SHARE * max(1, len(words))


def documents(package: Package) -> Iterator[tuple[str, list[str]]]:
    """(`package/path`, its blocks) of each documentation file, in the order of the archive."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if not member.isfile() or not path.startswith(_PLACES):
                    continue
                if _UNWANTED.search(path) or _OTHER_LANGUAGE.search(path):
                    continue
                file = archive.extractfile(member)
                blocks = _blocks(path, file.read()) if file is not None else []
                if blocks:
                    yield f"{package.name}/{path}", blocks
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command)


def _blocks(path: str, data: bytes) -> list[str]:
    if path.endswith((".gz", ".dz")):
        data = gzip.decompress(data)
        path = path[:-3]
    text = _decode(data)
    if path.endswith((".html", ".htm", ".xhtml", ".page")):
        return html_blocks(text)
    if "/man/man" in path or re.search(r"\.[1-8]$", path):
        return man_blocks(text)
    if path.endswith((".txt", ".dict")) or re.search(r"\.info(-\d+)?$", path):
        return text_blocks(text)
    return []


def _decode(data: bytes) -> str:
    """UTF-8 but for stray bytes, which are dropped; Latin-1 where they are many."""
    text = data.decode("utf-8", errors="ignore")
    is_utf8 = len(data) - len(text.encode()) <= len(data) // 500
    return text if is_utf8 else data.decode("latin-1")


def make(directory: Path, packages: list[str]) -> None:
    """Fetches, extracts and writes. Raises HearthError, CalledProcessError, OSError."""
    corpus = Corpus()
    described = []
    for package in fetch(directory / "packages", packages):
        counts = corpus.add(package)
        print(
            f"{package.name}: {counts.documents} documents, {counts.train_chars:,} characters to "
            f"train, {counts.test_chars:,} to test, {counts.repeated_chars:,} repeated",
            flush=True,
        )
        described.append(
            {
                "name": package.name,
                "version": package.version,
                "sha256": package.sha256,
                "documents": counts.documents,
                "train_chars": counts.train_chars,
                "test_chars": counts.test_chars,
            }
        )
    texts = {name: _write(directory / name, getattr(corpus, name[:-4])) for name in _TEXTS}
    manifest = {"packages": described, "texts": texts}
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


_TEXTS = ("train.txt", "test.txt", "calibration.txt")


def _write(path: Path, parts: list[str]) -> dict[str, object]:
    data = "".join(f"{text}\n{DOCUMENT_END}\n" for text in parts).encode()
    path.write_bytes(data)
    return {
        "documents": len(parts),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--packages", nargs="+", default=read_packages(), metavar="NAME")
    given = parser.parse_args()
    make(given.directory, given.packages)


if __name__ == "__main__":
    main()
