"""The images of a request: found, decoded, resized and kept, off the event loop.

    ImageSource ─ fetch, read ─ header ─┬▶ reserve ─ decode ─ resize ─ digest ─ keep ─▶ LoadedImage
                                        └─ large: in a thread of its own ─▲

Two threads read and decode, and one more takes large images, so that none of these stands in the
way of a screenshot. What is decoded at once is therefore bounded, and so is what waits for it, what
is kept (`PixelStore`) and what is fetched. What is known from a file's header is checked before any
pixel is decoded. Equal images of one request are kept once.

Errors name the part that they are about. Whoever gets a LoadedImages closes it, once the last of
the request's sequences has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import struct
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hearth.core.config import MediaConfig
from hearth.core.errors import OverloadedError, RequestError
from hearth.core.images import ImageInfo, ImageProcessorSpec
from hearth.core.units import format_bytes
from hearth.engine.images import decode
from hearth.engine.images.fetch import MediaFetcher
from hearth.engine.images.pixels import PixelFile, PixelStore
from hearth.engine.images.resize import Size, low_detail, num_tokens_of, resized_size
from hearth.engine.images.sources import (
    ImageBytes,
    ImageSource,
    read_data_url,
    read_file_url,
    scheme_of,
)
from hearth.host.memory import read_memory

DECODE_THREADS = 2
FETCHES_AT_ONCE = 4  # each with up to `max_bytes` in memory
# URLs of so many full bodies may wait for a thread, as many as are read at a time.
LOADS_AT_ONCE = 8
# What waits is bounded in number, too: 38 bytes can hold 16 million pixels. Where a request may
# have more images than that, as many as one has.
IMAGES_AT_ONCE = 128
LARGE_AT_ONCE = 8
_NUM_CHANNELS = 3
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]*")


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image as the engine gets it, and what the client should know of it."""

    file: PixelFile
    digest: bytes  # as ImageInput has it
    grid_height: int  # in patches
    grid_width: int
    num_tokens: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image whose header was read: what it is resized to, and by which processor."""

    header: decode.ImageHeader
    size: Size
    spec: ImageProcessorSpec
    media_type: str

    @property
    def needed_bytes(self) -> int:
        """Of memory while it is decoded and resized, at most."""
        return self.header.needed_bytes(self.size)


@dataclass(frozen=True, slots=True)
class LoadedImages:
    """All images of a request, in the order of its parts."""

    images: tuple[LoadedImage, ...]

    def close(self) -> None:
        """Gives their pixels back. May be called twice."""
        for image in self.images:
            image.file.close()


class ImageLoader:
    """Loads images for one model; belongs to one event loop."""

    def __init__(
        self,
        info: ImageInfo,
        media: MediaConfig,
        max_bytes: int,
        *,
        store: PixelStore | None = None,
        fetcher: MediaFetcher | None = None,
        max_pixels: int = decode.MAX_PIXELS,
    ) -> None:
        """`max_bytes`: of an image file that is fetched or read; `max_pixels`: of any image."""
        self.info = info
        self.media = media
        self.store = store or PixelStore(info.pixel_bytes)
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._max_chars = LOADS_AT_ONCE * max_bytes
        self._max_images = max(IMAGES_AT_ONCE, media.limit_images)
        self._max_large = max(LARGE_AT_ONCE, media.limit_images)
        self._num_chars = 0  # of URLs that are being loaded
        self._num_images = 0  # that are being loaded, of which so many are large:
        self._num_large = 0
        self._fetcher = fetcher or MediaFetcher(media, max_bytes)
        self._fetches = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._threads = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="hearth-image")
        self._large_thread = ThreadPoolExecutor(1, thread_name_prefix="hearth-image-large")

    async def load(self, sources: Sequence[ImageSource]) -> LoadedImages:
        """Loads them side by side; all or none.

        Raises RequestError, with the place of the image as `param`, and OverloadedError.
        """
        num_chars = sum(len(source.url) for source in sources)
        if self._num_images + len(sources) > self._max_images:
            raise _too_many(self._num_images, self._max_images, "images")
        if self._num_chars and self._num_chars + num_chars > self._max_chars:
            raise OverloadedError(
                f"images that wait to be read have {format_bytes(self._num_chars)} of text, "
                f"permitted are {format_bytes(self._max_chars)}",
                hint="retry later",
            )
        self._num_chars += num_chars
        self._num_images += len(sources)
        try:
            return await self._load_all(sources)
        finally:
            self._num_chars -= num_chars
            self._num_images -= len(sources)

    def close(self) -> None:
        """Ends the threads, after what they are doing."""
        for threads in (self._threads, self._large_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _load_all(self, sources: Sequence[ImageSource]) -> LoadedImages:
        tasks: dict[tuple[str, bool], asyncio.Task[LoadedImage]] = {}
        for source in sources:
            key = source.url, source.is_low_detail
            if key not in tasks:
                tasks[key] = asyncio.ensure_future(self._load(source))
        try:
            for source in sources:  # the first part that is wrong is the one that is told
                await tasks[source.url, source.is_low_detail]
        except BaseException:
            for task in tasks.values():
                task.cancel()
            for outcome in await asyncio.gather(*tasks.values(), return_exceptions=True):
                if isinstance(outcome, LoadedImage):
                    outcome.file.close()
            raise
        loaded = [tasks[source.url, source.is_low_detail].result() for source in sources]
        return LoadedImages(tuple(_shared(loaded)))

    async def _load(self, source: ImageSource) -> LoadedImage:
        """One image. Raises RequestError that names it, OverloadedError."""
        try:
            scheme = scheme_of(source.url)
            if scheme not in ("http", "https"):
                return await self._decoded(source, scheme, None)
            async with self._fetched(source.url) as found:
                return await self._decoded(source, scheme, found)
        except RequestError as error:
            raise RequestError(
                f"{source.where}: {error.message}", hint=error.hint, param=source.where
            ) from error

    @contextlib.asynccontextmanager
    async def _fetched(self, url: str) -> AsyncIterator[ImageBytes]:
        """What an http or https URL gives; few are in memory at a time, until they are decoded."""
        try:
            async with asyncio.timeout(self._fetcher.total_s):
                await self._fetches.acquire()
        except TimeoutError as error:
            raise OverloadedError(
                f"{FETCHES_AT_ONCE} other images are being fetched, the limit, and none of them "
                f"ended within {self._fetcher.total_s:g} s",
                hint="retry later, or send data: URLs",
            ) from error
        try:
            yield await self._fetcher.fetch(url)
        finally:
            self._fetches.release()

    async def _decoded(
        self, source: ImageSource, scheme: str, fetched: ImageBytes | None
    ) -> LoadedImage:
        """In threads: from what was fetched or what a URL holds to what the engine reads."""
        loop = asyncio.get_running_loop()
        begun = await loop.run_in_executor(self._threads, self._begin, source, scheme, fetched)
        if isinstance(begun, LoadedImage):
            return begun
        if self._num_large >= self._max_large:
            raise _too_many(self._num_large, self._max_large, "large images")
        self._num_large += 1
        try:
            return await loop.run_in_executor(self._large_thread, self._finish, begun)
        finally:
            self._num_large -= 1

    def _begin(
        self, source: ImageSource, scheme: str, fetched: ImageBytes | None
    ) -> LoadedImage | _Opened:
        """All of it, or no more than the header where the image is large."""
        opened = self._open(source, self._read(source, scheme) if fetched is None else fetched)
        return opened if opened.needed_bytes > decode.SMALL_BYTES else self._finish(opened)

    def _read(self, source: ImageSource, scheme: str) -> ImageBytes:
        """What a data: or file: URL names."""
        if scheme == "data":
            return read_data_url(source.url)
        return read_file_url(source.url, self.media.allowed_local_path, self._max_bytes)

    def _open(self, source: ImageSource, found: ImageBytes) -> _Opened:
        """Looks at the header; only what came with the request itself is quoted."""
        may_quote = source.url[:5].lower() == "data:"
        header = decode.read_header(found.data, max_pixels=self._max_pixels, may_quote=may_quote)
        spec = self.info.processor
        if source.is_low_detail:
            spec = low_detail(spec)
        # Turning an image by its EXIF exchanges the sides, which changes neither bound.
        return _Opened(header, self._checked_size(header.size, spec), spec, found.media_type)

    def _finish(self, opened: _Opened) -> LoadedImage:
        """Decodes, resizes and keeps. Raises RequestError, OverloadedError."""
        header, spec = opened.header, opened.spec
        num_bytes = opened.size.num_pixels * _NUM_CHANNELS
        self.store.reserve(num_bytes)
        try:
            if opened.needed_bytes > decode.SMALL_BYTES:
                _check_memory(header.size, opened.needed_bytes)
            rgb = decode.decode_rgb(header)
            size = resized_size(decode.size_of(rgb), spec)
            pixels = decode.resized_pixels(rgb, size)
            assert len(pixels) == num_bytes, "an image turned on its side has another size"
            image = self._kept(pixels, size, spec)
        except BaseException as error:
            self.store.release(num_bytes)
            if isinstance(error, MemoryError):
                raise OverloadedError(
                    f"an image of {header.size} pixels finds no memory", hint="retry later"
                ) from error
            raise
        return replace(image, notes=_notes(header, opened.media_type))

    def _checked_size(self, size: Size, spec: ImageProcessorSpec) -> Size:
        """The size to resize to. Raises RequestError where the encoder has no room for it."""
        resized = resized_size(size, spec)
        num_patches = resized.num_pixels // spec.patch_size**2
        if num_patches > self.info.max_patches:
            raise RequestError(
                f"the image of {size} pixels becomes {resized}, {num_patches:,} patches "
                f"(permitted: {self.info.max_patches:,})",
                hint="send one that is less long and narrow, or start the server with a smaller "
                "--max-pixels",
            )
        return resized

    def _kept(self, pixels: bytes, size: Size, spec: ImageProcessorSpec) -> LoadedImage:
        grid_height, grid_width = size.height // spec.patch_size, size.width // spec.patch_size
        digest = digest_of(grid_height, grid_width, pixels)
        file = self.store.keep(digest, pixels)
        return LoadedImage(file, digest, grid_height, grid_width, num_tokens_of(size, spec))


def _too_many(count: int, limit: int, what: str) -> OverloadedError:
    return OverloadedError(
        f"{count} {what} of all requests are being read or wait for it, permitted are {limit}",
        hint="retry later",
    )


def _check_memory(size: Size, needed: int) -> None:
    """Raises OverloadedError where an image that no plan counts finds no memory to be decoded."""
    free = read_memory().available_bytes
    if needed > free:
        raise OverloadedError(
            f"decoding an image of {size} pixels takes {format_bytes(needed)}, "
            f"{format_bytes(free)} are free",
            hint="send a smaller one, or retry later",
        )


def digest_of(grid_height: int, grid_width: int, pixels: bytes) -> bytes:
    """The digest of ImageInput: SHA-256 over both sizes, in patches, and the pixels."""
    found = hashlib.sha256(struct.pack("<II", grid_height, grid_width))
    found.update(pixels)
    return found.digest()


def _shared(loaded: Sequence[LoadedImage]) -> list[LoadedImage]:
    """The same images, equal ones with one file."""
    first: dict[bytes, PixelFile] = {}
    shared: list[LoadedImage] = []
    for image in loaded:
        file = first.setdefault(image.digest, image.file)
        if file is not image.file:
            image.file.close()
        shared.append(replace(image, file=file))
    return shared


def _notes(header: decode.ImageHeader, media_type: str) -> tuple[str, ...]:
    """What the client should know of how its image was read."""
    notes: list[str] = []
    if header.is_animated:
        notes.append(f"the {header.format} image is animated; its first picture was taken")
    permitted = decode.MEDIA_TYPES[header.format]
    if media_type.startswith("image/") and media_type not in permitted:
        declared = media_type[:40]  # a client's or a host's text, and notes are logged
        if not _MEDIA_TYPE.fullmatch(declared):
            declared = ascii(declared)
        notes.append(f"it was declared as {declared} and is {permitted[0]}")
    return tuple(notes)
