"""A GGUF model in several files, as `llama-gguf-split` cuts it: NAME-00001-of-00003.gguf.

Each part is a GGUF file with tensors of its own; the first one has the metadata. They say how many
they are (`split.count`), which they are (`split.no`) and how many tensors they have together
(`split.tensors.count`), and are believed where it agrees. Parts are read where they lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hearth.core.errors import WeightsError
from hearth.models.gguf.file import GgufFile, read_gguf

_NUMBER = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
_MOST_PARTS = 10_000
_REMEDY = "put all parts into one directory under the names that llama-gguf-split gives"


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file, by its name, is a part of; itself where it is none.

    Raises WeightsError where one is not there.
    """
    match = _NUMBER.search(path.name)
    if match is None:
        return (path,)
    count = int(match[2])
    if not 1 <= int(match[1]) <= count <= _MOST_PARTS:
        raise WeightsError(f"{path.name}: part {int(match[1])} of {count}", hint=_REMEDY)
    named = f"{path.name[: match.start()]}-{{:05}}-of-{match[2]}.gguf"
    parts = tuple(path.with_name(named.format(number)) for number in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise WeightsError(
            f"{path.name} is one of {count} parts, of which {len(missing)} are not beside it: "
            f"{', '.join(missing[:4])}",
            hint=_REMEDY,
        )
    return parts


def is_later_part(path: Path) -> bool:
    """Whether a file's name says that another one comes before it."""
    match = _NUMBER.search(path.name)
    return match is not None and int(match[1]) > 1


def plain_stem(path: Path) -> str:
    """The file's name without suffix and number of the part."""
    return _NUMBER.sub("", path.name).removesuffix(".gguf")


def read_parts(paths: Sequence[Path], *, with_texts: bool = True) -> GgufFile:
    """The model that the files are together: the first one's metadata, the tensors of all.

    Raises WeightsError as `read_gguf` does, and where files are not the parts of one model.
    """
    first, *others = (read_gguf(path, with_texts=with_texts and path == paths[0]) for path in paths)
    count = first.metadata.get("split.count", 1)
    if count not in (0, 1, len(paths)):
        raise WeightsError(
            f"{first.path.name} is one of {count} parts; found beside it: {len(paths) - 1} others",
            hint=_REMEDY,
        )
    tensors = dict(first.tensors)
    for number, file in enumerate(others, start=1):
        if file.metadata.get("split.count") != count or file.metadata.get("split.no") != number:
            raise WeightsError(
                f"{file.path.name} says that it is part {file.metadata.get('split.no')} (from 0) "
                f"of {file.metadata.get('split.count')}; here it is part {number} of {len(paths)}",
                hint=_REMEDY,
            )
        if twice := tensors.keys() & file.tensors.keys():
            raise WeightsError(f"{file.path.name} has {min(twice)}, as a part before it has")
        tensors |= file.tensors
    total = first.metadata.get("split.tensors.count", len(tensors))
    if others and total != len(tensors):
        raise WeightsError(
            f"{first.path.name}: its {len(paths)} parts have {len(tensors)} tensors together, not "
            f"{total}, as it says",
            hint="they are not parts of one model: fetch them again",
        )
    return GgufFile(first.path, first.metadata, tensors)
