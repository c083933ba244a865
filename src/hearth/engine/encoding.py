"""Encoding: which images the encoder works on, and the outputs that are kept.

Between two steps the encoder computes a few patches, so that running answers go on meanwhile; more
of them where nobody waits for a step. One image at a time: first those that running sequences wait
for, then those of waiting ones, in rank order. Images whose tokens the prefix cache holds are not
encoded.

Outputs are kept by the image's digest within a budget of bytes, the least recently used go first.
Those that a running sequence still needs stay; no new image is begun where it would not fit beside
them, unless there are none: so each image that is begun can be used up.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import HearthError
from hearth.core.images import ImageInput, ImageProcessorSpec
from hearth.core.step import ImageEncoder
from hearth.engine.images.patches import patch_rows
from hearth.engine.images.pixels import open_pixels
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.reuse import matched_hashes
from hearth.engine.sequence import Sequence, SequenceState

logger = logging.getLogger("hearth.engine")

# Patches a turn: while others decode (some 30 ms of a 9 B model's encoder on two cores), and alone.
BUSY_ROWS = 96
IDLE_ROWS = 192


class Encoding:
    """Owns the encoder, and the outputs by digest."""

    def __init__(
        self,
        encoder: ImageEncoder,
        processor: ImageProcessorSpec,
        cache_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._processor = processor
        self._cache_bytes = cache_bytes
        self._clock = clock
        self._outputs: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._needed: list[ImageInput] = []  # not encoded, the most urgent first
        self._pinned: set[bytes] = set()
        self._current: ImageInput | None = None
        self.num_encoded = 0
        self.encode_s = 0.0

    @property
    def num_bytes(self) -> int:
        """Of all outputs that are kept."""
        return sum(output.nbytes for output in self._outputs.values())

    @property
    def has_work(self) -> bool:
        """Whether `advance` would compute something."""
        return self._current is not None or any(map(self._may_begin, self._needed))

    def refresh(
        self, running: Iterable[Sequence], waiting: Iterable[Sequence], blocks: BlockManager
    ) -> None:
        """Brings the sequences' images up to date before a step is planned."""
        self._needed, self._pinned = [], set()
        for sequence in running:
            self._look_at(sequence, sequence.num_computed)
        for sequence in waiting:
            if sequence.images is not None:
                matched = matched_hashes(sequence, blocks)
                self._look_at(sequence, len(matched) * blocks.block_size)
        if self._current is not None and all(
            image.digest != self._current.digest for image in self._needed
        ):
            self._current = None  # whoever wanted it has gone

    def advance(self, *, is_busy: bool) -> HearthError | None:
        """Computes some patches. Returns why the image at hand failed, if it did; see `failed`."""
        if self._current is None:
            self._current = next(filter(self._may_begin, self._needed), None)
            if self._current is None:
                return None
            try:
                self._begin(self._current)
            except HearthError as error:
                return error
        started = self._clock()
        is_done = self._encoder.advance(BUSY_ROWS if is_busy else IDLE_ROWS)
        self.encode_s += self._clock() - started
        if is_done:
            self._keep(self._current.digest, self._encoder.features())
            self._current = None
            self.num_encoded += 1
        return None

    def take_failed(self) -> bytes:
        """The digest of the image that has just failed; it is forgotten."""
        assert self._current is not None, "no image failed"
        digest, self._current = self._current.digest, None
        return digest

    def close(self) -> None:
        """Closes the encoder."""
        self._encoder.close()

    def _look_at(self, sequence: Sequence, num_computed: int) -> None:
        """Which of a sequence's images are there, and which one it waits for."""
        images = sequence.images
        if images is None:
            return
        awaited: int | None = None
        for index, image in enumerate(images.inputs):
            output = self._outputs.get(image.digest)
            if image.first_token + image.num_tokens <= num_computed or awaited is not None:
                images.forget(index)
            elif output is None:
                images.forget(index)
                awaited = index
                self._needed.append(image)
            else:
                self._outputs.move_to_end(image.digest)
                images.note_ready(index, output)
                if sequence.state is SequenceState.RUNNING:
                    self._pinned.add(image.digest)
        images.wait_for(awaited)

    def _may_begin(self, image: ImageInput) -> bool:
        """Whether an image's output has room beside those that are being used up."""
        if not self._pinned:
            return True
        pinned = [self._outputs[digest] for digest in self._pinned if digest in self._outputs]
        row_bytes = max((output.nbytes // len(output) for output in pinned), default=0)
        held = sum(output.nbytes for output in pinned)
        return held + image.num_tokens * row_bytes <= self._cache_bytes

    def _begin(self, image: ImageInput) -> None:
        """Opens the pixels. Raises RequestError, KernelError."""
        spec = self._processor
        pixels = open_pixels(image, spec.patch_size)
        self._encoder.start(
            lambda first, count: patch_rows(pixels, spec, first, count),
            image.grid_height,
            image.grid_width,
        )

    def _keep(self, digest: bytes, output: NDArray[np.float32]) -> None:
        """Keeps an output, and lets the oldest ones go that nobody is using."""
        self._outputs[digest] = output
        for old in list(self._outputs):
            if self.num_bytes <= self._cache_bytes:
                return
            if old != digest and old not in self._pinned:
                del self._outputs[old]


def sequences_with(digest: bytes, sequences: Rows[Sequence]) -> list[Sequence]:
    """Those that show an image."""
    return [
        sequence
        for sequence in sequences
        if sequence.images and any(image.digest == digest for image in sequence.images.inputs)
    ]
