"""Encoding: which images the encoder works on, and the outputs that are kept.

Between two steps the encoder computes a few patches at a time, for as long as the step took, so
that running answers, prompts and images share the machine; more of them where there is no step. One
image at a time, in the order of the sequences' ranks: an image that was begun gives way to one of a
better priority, and prompts of a worse priority wait for it (`priority`). Images whose tokens the
prefix cache holds are not encoded.

Outputs are kept by the image's digest within a budget of bytes. Room is set aside for the images of
one sequence after the other; one is begun only where it fits beside those of sequences that rank
before it (the first always is), so that no output pushes out another that is needed sooner.
Otherwise the least recently used go first.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from heapq import merge
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import CapacityError, HearthError, RequestError
from hearth.core.images import ImageInput, ImageProcessorSpec
from hearth.core.request import Request
from hearth.core.step import ImageEncoder
from hearth.engine.images.patches import patch_rows
from hearth.engine.images.pixels import open_pixels
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.reuse import matched_hashes
from hearth.engine.sequence import Sequence, SequenceState

logger = logging.getLogger("hearth.engine")

# Patches a call: while others decode (some 30 ms of a 9 B model's encoder on two cores), and alone.
BUSY_ROWS = 96
IDLE_ROWS = 192
# Sequences with images that are looked at in a step; those behind them wait.
MAX_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that cannot be encoded, and why.

    `is_file`: its file could not be read: other requests may show it from files of their own.
    """

    image: ImageInput
    error: HearthError
    is_file: bool

    def concerns(self, sequence: Sequence) -> bool:
        """Whether a sequence cannot go on for it."""
        shown = sequence.images.inputs if sequence.images else ()
        return any(
            image.digest == self.image.digest
            and (not self.is_file or image.path == self.image.path)
            for image in shown
        )


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
        self._wanted: dict[bytes, int] = {}  # digests in the order of rank: bytes of those before
        self._needed: list[ImageInput] = []  # not encoded, the most urgent first
        self._priorities: dict[bytes, int] = {}  # of those, the best of whoever needs it
        self._current: ImageInput | None = None
        self.num_encoded = 0
        self.encode_s = 0.0

    @property
    def num_bytes(self) -> int:
        """Of all outputs that are kept."""
        return sum(output.nbytes for output in self._outputs.values())

    @property
    def is_idle(self) -> bool:
        """Whether no image is half encoded."""
        return self._current is None

    @property
    def priority(self) -> int | None:
        """That of whoever waits for the image that is encoded next (smaller goes first).

        None: no image is; one that has no room yet must not hold up those that will make it.
        """
        images = [image for image in (self._current, self._most_urgent()) if image is not None]
        return min((self._priorities[image.digest] for image in images), default=None)

    def check(self, request: Request) -> None:
        """Raises RequestError for images that are not of this encoder's kind or size."""
        for image in request.images:
            num_patches = image.grid_height * image.grid_width
            if image.num_tokens * self._processor.merge_size**2 != num_patches:
                raise RequestError("an image has another grid than tokens", param="messages")
            if num_patches > self._encoder.max_patches:
                raise RequestError(
                    f"an image has {num_patches:,} patches, the encoder has room for "
                    f"{self._encoder.max_patches:,}",
                    param="messages",
                )

    def refresh(
        self, running: Iterable[Sequence], waiting: Iterable[Sequence], blocks: BlockManager
    ) -> None:
        """Brings the sequences' images up to date before a step is planned; both are by rank."""
        self._needed, self._wanted, self._priorities = [], {}, {}
        num_looked_at = num_bytes = 0
        for sequence in merge(running, waiting, key=attrgetter("rank")):
            if sequence.images is None:
                continue
            if num_looked_at == MAX_LOOKED_AT and sequence.state is SequenceState.WAITING:
                sequence.images.wait_for(0)
                continue
            num_looked_at += 1
            num_computed = sequence.num_computed
            if sequence.state is SequenceState.WAITING:
                num_computed = len(matched_hashes(sequence, blocks)) * blocks.block_size
            num_bytes = self._look_at(sequence, num_computed, num_bytes)
        if self._current is not None and self._current.digest not in self._wanted:
            self._current = None  # whoever wanted it has gone

    def advance(self, *, is_busy: bool) -> FailedImage | None:
        """Computes some patches. Returns the image that failed, if one did; it is forgotten."""
        if self._is_outranked():
            self._current = None  # begun anew when its turn comes
        if self._current is None and (failed := self._begin_next()) is not None:
            return failed
        image = self._current
        if image is None:
            return None
        started = self._clock()
        try:
            is_done = self._encoder.advance(BUSY_ROWS if is_busy else IDLE_ROWS)
        except HearthError as error:
            self._current = None
            return FailedImage(image, error, is_file=False)
        self.encode_s += self._clock() - started
        if is_done:
            self._current = None
            self.num_encoded += 1
            self._keep(image.digest, self._encoder.features())
        return None

    def close(self) -> None:
        """Closes the encoder."""
        self._encoder.close()

    def _look_at(self, sequence: Sequence, num_computed: int, num_bytes: int) -> int:
        """Which of a sequence's images are there, and which one it waits for.

        `num_bytes`: set aside for those before it; returns that and what its own images take.
        """
        images = sequence.images
        assert images is not None, "only sequences with images are looked at"
        awaited: int | None = None
        images.num_past = 0
        for index, image in enumerate(images.inputs):
            end = image.first_token + image.num_tokens
            output = self._outputs.get(image.digest)
            if end <= num_computed:
                # Computed, or to be taken from the prefix cache: where less of it is found after
                # all, the sequence waits until it has been looked at again.
                images.keep(index, None)
                images.num_past = end
                continue
            images.keep(index, output if awaited is None else None)
            if image.digest not in self._wanted:
                self._wanted[image.digest] = num_bytes
                num_bytes += image.num_tokens * self._encoder.output_size * 4
            if output is not None:
                self._outputs.move_to_end(image.digest)
            else:
                awaited = index if awaited is None else awaited
                self._needed.append(image)
                priority = self._priorities.get(image.digest, sequence.rank[0])
                self._priorities[image.digest] = min(priority, sequence.rank[0])
        images.wait_for(awaited)
        return num_bytes

    def _is_outranked(self) -> bool:
        """Whether an image of a better priority than that of the one at hand could be begun."""
        if self._current is None or (first := self._most_urgent()) is None:
            return False
        return self._priorities[first.digest] < self._priorities[self._current.digest]

    def _most_urgent(self) -> ImageInput | None:
        """The first that has room."""
        for image in self._needed:
            before = self._wanted[image.digest]
            num_bytes = image.num_tokens * self._encoder.output_size * 4
            if not before or before + num_bytes <= self._cache_bytes:
                return image
        return None

    def _begin_next(self) -> FailedImage | None:
        """Begins the most urgent image, if there is one; returns one that cannot be begun."""
        image = self._most_urgent()
        if image is None:
            return None
        try:
            self._begin(image)
        except RequestError as error:
            return FailedImage(image, error, is_file=True)
        except HearthError as error:
            return FailedImage(image, error, is_file=False)
        self._current = image
        return None

    def _begin(self, image: ImageInput) -> None:
        """Opens the pixels. Raises RequestError (the file), KernelError, CapacityError."""
        spec = self._processor
        pixels = open_pixels(image, spec.patch_size)
        try:
            self._encoder.start(
                lambda first, count: patch_rows(pixels, spec, first, count),
                image.grid_height,
                image.grid_width,
            )
        except MemoryError as error:
            raise CapacityError("no memory is left for the output of an image") from error

    def _keep(self, digest: bytes, output: NDArray[np.float32]) -> None:
        """Keeps an output, and lets go what is needed last while there are too many."""
        self._outputs[digest] = output
        unwanted = [old for old in self._outputs if old not in self._wanted]
        last_first = [old for old in reversed(self._wanted) if old in self._outputs]
        for old in (*unwanted, *last_first):
            if self.num_bytes <= self._cache_bytes:
                return
            if old != digest:
                del self._outputs[old]


def failed_sequences(failed: FailedImage, sequences: Rows[Sequence]) -> list[Sequence]:
    """Those that cannot go on for a failed image."""
    return [sequence for sequence in sequences if failed.concerns(sequence)]
