"""A file without a name: what a first model leaves for the second, gone with the process.

It is made where packed weights are kept, or else among the temporary files; never in memory, which
is what there is not enough of. Nothing of it stays, however the process ends: it has no name from
the beginning (O_TMPFILE), or loses it at once.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.config import WeightCacheConfig
from hearth.core.errors import CapacityError
from hearth.core.paths import home_expanded
from hearth.core.units import format_bytes, round_up
from hearth.engine.weight_cache import default_directory
from hearth.host.disk import read_disk

Floats = NDArray[np.float32]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spool:
    """Bytes are appended and read back by their place. Close it, or let it go."""

    def __init__(self, num_bytes: int, config: WeightCacheConfig) -> None:
        """Reserves `num_bytes`; more may be appended. Raises CapacityError: no room anywhere."""
        problems = []
        for directory in _directories(config):
            try:
                disk = read_disk(directory)
                if disk.is_in_memory:
                    problems.append(f"{directory} is in memory ({disk.file_system})")
                elif disk.is_remote:
                    problems.append(f"{directory} is on {disk.file_system}, which may be lost")
                elif disk.free_bytes < num_bytes:
                    problems.append(f"{directory} has {format_bytes(disk.free_bytes)} free")
                else:
                    self._open(directory, num_bytes)
                    return
            except OSError as error:
                problems.append(f"{directory}: {error.strerror}")
        raise CapacityError(
            f"the models do not fit into memory together, and what the first leaves for the second "
            f"needs {format_bytes(num_bytes)} of disk: {'; '.join(problems)}",
            hint="free disk space, set --weight-cache-dir to a disk that has it, or lower --tokens",
        )

    def _open(self, directory: Path, num_bytes: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 -- closed by `close`
        try:
            if num_bytes:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        except BaseException:
            file.close()
            raise
        self._file, self._end, self.directory = file, 0, directory

    @property
    def free_bytes(self) -> int:
        """Of the disk, beside what is reserved."""
        return read_disk(self.directory).free_bytes

    def append(self, values: NDArray[np.generic]) -> int:
        """Writes an array behind all others; its place, aligned to a page. Raises CapacityError."""
        place = self.reserve(values.nbytes)
        self.write(place, values)
        return place

    def reserve(self, num_bytes: int) -> int:
        """A place for so many bytes, aligned to a page."""
        place = self._end
        self._end = place + round_up(num_bytes, mmap.ALLOCATIONGRANULARITY)
        return place

    def write(self, place: int, values: NDArray[np.generic]) -> None:
        """Writes an array within what is reserved. Raises CapacityError."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], place + done)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise CapacityError(
                f"{self.directory} has become full while the reference was measured",
                hint="free disk space, or set --weight-cache-dir to a disk that has it",
            ) from error

    def read(self, place: int, shape: tuple[int, ...]) -> Floats:
        """An array of float32 that was appended, or the rows that it begins with; a copy."""
        values = np.empty(shape, np.float32)
        data, done = values.reshape(-1).view(np.uint8).data, 0
        while done < len(data):
            count = os.preadv(self._file.fileno(), [data[done:]], place + done)
            assert count, "read behind the end"
            done += count
        return values

    def mapped(self, place: int, num_bytes: int) -> mmap.mmap:
        """What lies at a place, for reading; what was not written of it is zero."""
        if os.fstat(self._file.fileno()).st_size < place + num_bytes:
            os.ftruncate(self._file.fileno(), place + num_bytes)
        return mmap.mmap(
            self._file.fileno(), num_bytes, mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=place
        )

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()


def _directories(config: WeightCacheConfig) -> Iterator[Path]:
    given = home_expanded(config.directory) if config.directory else None
    directory = given or default_directory(os.environ)
    if directory is not None:
        yield directory.absolute()
    yield Path(tempfile.gettempdir())
