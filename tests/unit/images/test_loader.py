"""The images of a request: all or none, in order, once each, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.images.samples import (
    GLM4V,
    SMALL,
    SVG,
    data_url,
    encoded,
    png,
    png_header,
    processor,
)
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

from hearth.core.config import MediaConfig
from hearth.core.errors import OverloadedError, RequestError
from hearth.core.images import ImageInfo, ImageInput
from hearth.engine.images import decode
from hearth.engine.images.loader import ImageLoader, LoadedImage, digest_of
from hearth.engine.images.pixels import PixelStore, open_pixels
from hearth.engine.images.resize import Size
from hearth.engine.images.sources import ImageBytes, ImageSource
from hearth.host.memory import HostMemory, MemoryFact

INFO = ImageInfo(SMALL, 7, 1 << 20)


def loader(info: ImageInfo = INFO, max_bytes: int = 1 << 20, **fields: Any) -> ImageLoader:
    return ImageLoader(info, fields.pop("media", MediaConfig()), max_bytes, **fields)


def sources(*urls: str, **fields: Any) -> list[ImageSource]:
    return [ImageSource(f"part.{i}", url, **fields) for i, url in enumerate(urls)]


async def settle(one_loader: ImageLoader) -> None:
    """Waits for what the loader's threads are still doing for nobody."""
    one_loader.close()
    for thread in [t for t in threading.enumerate() if t.name.startswith("hearth-image")]:
        thread.join(10)
    await asyncio.sleep(0)  # the loop lets go of what they hand to it


def input_of(image: LoadedImage) -> ImageInput:
    return ImageInput(
        image.digest,
        0,
        image.num_tokens,
        image.grid_height,
        image.grid_width,
        image.file.path,
    )


async def test_an_image_is_kept_as_the_reference_resizes_it() -> None:
    data = png(300, 100)
    loaded = await loader().load(sources(data_url(data)))
    (image,) = loaded.images
    height, width = smart_resize(
        2, 100, 300, min_pixels=SMALL.min_pixels, max_pixels=SMALL.max_pixels
    )
    found = open_pixels(input_of(image), SMALL.patch_size)
    expected = Image.open(BytesIO(data)).resize((width, height), Image.Resampling.BICUBIC)
    assert np.array_equal(found, np.asarray(expected))
    assert image.num_tokens == height * width // 28**2
    assert image.digest == digest_of(image.grid_height, image.grid_width, expected.tobytes())
    assert image.notes == ()
    loaded.close()


async def test_images_keep_their_order_and_equal_ones_share_a_file() -> None:
    one, two = png(60, 40, seed=1), png(40, 60, seed=2)
    again = encoded(Image.open(BytesIO(one)), compress_level=0)  # other bytes, equal pixels
    one_loader = loader()
    urls = [data_url(one), data_url(two), data_url(one), data_url(again)]
    loaded = await one_loader.load(sources(*urls))
    digests = [image.digest for image in loaded.images]
    assert digests[0] == digests[2] == digests[3] != digests[1]
    assert len({image.file.path for image in loaded.images}) == 2
    assert one_loader.store.num_bytes == sum(
        open_pixels(input_of(image), 14).size for image in loaded.images[:2]
    )
    loaded.close()
    assert one_loader.store.num_bytes == 0


async def test_the_first_wrong_part_is_named_and_nothing_is_kept() -> None:
    one_loader = loader()
    wrong = data_url(SVG)
    urls = [data_url(png()), data_url(png(seed=1)), wrong, "gopher://x", data_url(png(seed=2))]
    with pytest.raises(RequestError) as caught:
        await one_loader.load(sources(*urls))
    assert caught.value.param == "part.2"
    assert caught.value.message.startswith("part.2: the image cannot be read: it is an SVG")
    await settle(one_loader)
    assert one_loader.store.num_bytes == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (data_url(png()[:300]), "damaged or cut off"),
        (data_url(png_header(60_000, 60_000)), "permitted: 89,478,485"),
        (data_url(png(1, 5000)), "more than 200 times"),
        (data_url(png_header(0, 0)), "names no size"),
        (data_url(SVG, "image/svg+xml"), "an SVG drawing"),
        (data_url(b"just text"), "text that begins with 'just text'"),
        ("data:image/png;base64,just text", "' ' is character 5"),
        (data_url(b""), "no data"),
        ("", "is empty"),
        ("/tmp/x.png", "permitted: data:"),
        ("file:///tmp/x.png", "not permitted by this server"),
        ("https://host/x.png", "not fetched by this server"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_image_is_refused_with_a_reason(url: str, said: str) -> None:
    one_loader = loader()
    with pytest.raises(RequestError) as caught:
        await one_loader.load(sources(url))
    assert said in caught.value.message
    assert len(str(caught.value)) < 500
    assert one_loader.store.num_bytes == 0


async def test_a_wrong_media_type_and_an_animation_are_told() -> None:
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    urls = [data_url(png(), "image/jpeg"), data_url(moving, "image/gif"), data_url(png(), "")]
    loaded = await loader().load(sources(*urls))
    notes = [image.notes for image in loaded.images]
    assert notes[0] == ("it was declared as image/jpeg and is image/png",)
    assert notes[1] == ("the GIF image is animated; its first picture was taken",)
    assert notes[2] == ()
    loaded.close()


async def test_a_declared_media_type_cannot_write_lines_of_a_log() -> None:
    forged = "image/x\n2026-01-01 hearth.serve: all is well \x1b[2J\x9b2J"
    loaded = await loader().load(sources(data_url(png(), forged), data_url(png(seed=1), "image/é")))
    for image in loaded.images:
        (note,) = image.notes
        assert note.isprintable()
        assert note.isascii()
        assert note.endswith("' and is image/png")
    loaded.close()


async def test_low_detail_has_fewer_tokens() -> None:
    one_loader = loader(ImageInfo(GLM4V, 7, 1 << 20))
    url = data_url(png(900, 900))
    parts = [ImageSource("a", url), ImageSource("b", url, is_low_detail=True)]
    loaded = await one_loader.load(parts)
    assert [image.num_tokens for image in loaded.images] == [1024, 324]
    loaded.close()


async def test_an_image_that_the_encoder_has_no_room_for_is_refused() -> None:
    info = ImageInfo(processor(1, 28 * 28 * 2, 2), 7, 8)  # 2 tokens of 4 patches
    with pytest.raises(RequestError, match=r"28×196, 28 patches \(permitted: 8"):
        await loader(info).load(sources(data_url(png(10, 500))))


async def test_files_and_fetched_images_go_the_same_way(tmp_path: Path) -> None:
    class Fetcher:
        total_s = 10.0

        async def fetch(self, url: str) -> ImageBytes:
            return ImageBytes(png(seed=5), "image/png")

    (tmp_path / "a.png").write_bytes(png(seed=4))
    media = MediaConfig(allowed_local_path=str(tmp_path))
    fetcher: Any = Fetcher()
    one_loader = loader(media=media, fetcher=fetcher)
    urls = [f"file://{tmp_path}/a.png", "https://host/b.png"]
    loaded = await one_loader.load(sources(*urls))
    assert len({image.digest for image in loaded.images}) == 2
    loaded.close()
    (tmp_path / "secret.txt").write_bytes(b"secret text")
    with pytest.raises(RequestError) as caught:
        await one_loader.load(sources(f"file://{tmp_path}/secret.txt"))
    assert "it is text" in caught.value.message
    assert "secret text" not in caught.value.message


async def test_pixels_beyond_the_bound_are_an_overload() -> None:
    one_loader = loader(store=PixelStore(max_total_bytes=100_000))
    first = await one_loader.load(sources(data_url(png(100, 100))))
    with pytest.raises(OverloadedError, match="pixels, permitted are"):
        await one_loader.load(sources(*[data_url(png(200, 200, seed=i)) for i in range(4)]))
    first.close()
    assert one_loader.store.num_bytes == 0


async def test_what_waits_for_a_thread_is_bounded() -> None:
    url = data_url(png(64, 64))
    one_loader = loader(max_bytes=-(-len(url) // 4))
    loads = [asyncio.ensure_future(one_loader.load(sources(url))) for _ in range(3)]
    outcomes = await asyncio.gather(*loads, return_exceptions=True)
    assert [isinstance(outcome, OverloadedError) for outcome in outcomes] == [False, False, True]
    for outcome in outcomes[:2]:
        assert not isinstance(outcome, BaseException)
        outcome.close()
    (await one_loader.load(sources(url))).close()  # the bound counts what waits now


async def test_the_number_of_images_that_wait_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few characters can name many pixels."""
    monkeypatch.setattr("hearth.engine.images.loader.IMAGES_AT_ONCE", 2)
    one_loader = loader(media=MediaConfig(limit_images=3))
    urls = [data_url(png(seed=i)) for i in range(3)]
    loads = [asyncio.ensure_future(one_loader.load(sources(*urls[:n]))) for n in (2, 2, 1)]
    outcomes = await asyncio.gather(*loads, return_exceptions=True)
    assert [isinstance(outcome, OverloadedError) for outcome in outcomes] == [False, True, False]
    assert str(outcomes[1]).startswith("2 images of all requests are being read or wait for it")
    for outcome in (outcomes[0], outcomes[2]):
        assert not isinstance(outcome, BaseException)
        outcome.close()
    (await one_loader.load(sources(*urls))).close()  # as many as one request may have


async def test_few_images_are_fetched_at_a_time_and_nobody_waits_for_ever() -> None:
    class Fetcher:
        total_s = 0.05

        def __init__(self) -> None:
            self.gate, self.is_full = asyncio.Event(), asyncio.Event()
            self.asked: list[str] = []

        async def fetch(self, url: str) -> ImageBytes:
            self.asked.append(url)
            if len(self.asked) == 4:
                self.is_full.set()
            await self.gate.wait()
            return ImageBytes(png(), "image/png")

    fetcher: Any = Fetcher()
    one_loader = loader(fetcher=fetcher)
    urls = [f"https://host/{i}.png" for i in range(5)]
    first = asyncio.ensure_future(one_loader.load(sources(*urls[:4])))
    async with asyncio.timeout(30):
        await fetcher.is_full.wait()
        with pytest.raises(OverloadedError, match="4 other images are being fetched"):
            await one_loader.load(sources(urls[4]))
        assert fetcher.asked == urls[:4]
        fetcher.gate.set()
        (await first).close()
        (await one_loader.load(sources(urls[4]))).close()
    assert one_loader.store.num_bytes == 0


async def test_few_images_are_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, running, most = threading.Lock(), 0, 0
    plain = decode.decode_rgb
    gate = threading.Barrier(2, timeout=10)

    def watched(header: decode.ImageHeader) -> Image.Image:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait()  # two are here at the same time
        try:
            return plain(header)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(decode, "decode_rgb", watched)
    loaded = await loader().load(sources(*[data_url(png(seed=i)) for i in range(8)]))
    assert most == 2
    loaded.close()


async def test_large_images_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one_loader = loader()
    running = threading.Semaphore(1)
    plain = decode.decode_rgb

    def watched(header: decode.ImageHeader) -> Image.Image:
        assert running.acquire(blocking=False), "two large ones at a time"
        try:
            return plain(header)
        finally:
            running.release()

    monkeypatch.setattr(decode, "decode_rgb", watched)
    monkeypatch.setattr(decode, "SMALL_BYTES", 0)
    (await one_loader.load(sources(*[data_url(png(seed=i)) for i in range(6)]))).close()


async def test_small_images_do_not_wait_behind_large_ones_whose_number_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()
    plain = decode.decode_rgb

    def watched(header: decode.ImageHeader) -> Image.Image:
        assert header.size.width < 500 or gate.wait(60)
        return plain(header)

    monkeypatch.setattr(decode, "decode_rgb", watched)
    monkeypatch.setattr("hearth.engine.images.loader.LARGE_AT_ONCE", 3)
    small = decode.read_header(png(400, 400)).needed_bytes(Size(224, 224))
    monkeypatch.setattr(decode, "SMALL_BYTES", small)
    one_loader = loader(media=MediaConfig(limit_images=3))
    urls = [data_url(png(500, 500, seed=i)) for i in range(4)]
    large = asyncio.ensure_future(one_loader.load(sources(*urls[:3])))
    async with asyncio.timeout(30):
        for seed in range(4):
            (await one_loader.load(sources(data_url(png(400, 400, seed=seed))))).close()
        with pytest.raises(OverloadedError, match="3 large images of all requests"):
            await one_loader.load(sources(urls[3]))
        assert not large.done()
        gate.set()
        (await large).close()
        (await one_loader.load(sources(urls[3]))).close()
    assert one_loader.store.num_bytes == 0


async def test_a_large_image_is_decoded_only_where_there_is_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = decode.read_header(png(100, 100)).needed_bytes(Size(196, 196))
    monkeypatch.setattr(decode, "SMALL_BYTES", small)
    needed = decode.read_header(png(400, 300)).needed_bytes(Size(196, 252))
    assert needed > small
    memory = [HostMemory((MemoryFact(num_bytes, "a test"),)) for num_bytes in (needed, needed - 1)]
    monkeypatch.setattr("hearth.engine.images.loader.read_memory", lambda: memory.pop(0))
    one_loader = loader()
    (await one_loader.load(sources(data_url(png(100, 100))))).close()
    (await one_loader.load(sources(data_url(png(400, 300))))).close()
    with pytest.raises(OverloadedError, match="decoding an image of 400×300 pixels takes"):
        await one_loader.load(sources(data_url(png(400, 300))))
    assert one_loader.store.num_bytes == 0


async def test_a_load_that_is_cancelled_leaves_nothing() -> None:
    one_loader = loader()
    task = asyncio.ensure_future(
        one_loader.load(sources(*[data_url(png(300, 300, seed=i)) for i in range(6)]))
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle(one_loader)
    assert one_loader.store.num_bytes == 0


async def test_no_memory_is_an_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: decode.ImageHeader) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(decode, "decode_rgb", none)
    one_loader = loader()
    with pytest.raises(OverloadedError, match="finds no memory"):
        await one_loader.load(sources(data_url(png())))
    assert one_loader.store.num_bytes == 0
