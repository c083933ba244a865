"""Batches for training the phone agent: drawn screens as patches, conversations as ids and labels.

A batch holds images of one size. Screens are drawn at about twice the size that the model sees and
reduced as its image processor does; labels of every 28 × 28 cell say which element lies there.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tools.demo_model.phone_model import (
    CELL,
    LONGEST_EDGE,
    SHORTEST_EDGE,
    position_ids,
    to_patches,
)
from tools.demo_model.phone_steps import Example, Screen, question_example, step_examples
from tools.demo_model.phone_tokenizer import (
    BEGIN_OF_IMAGE,
    END_OF_ANSWER,
    IMAGE,
    THINK,
)
from tools.demo_model.tokenizer import ASSISTANT, IGNORED_LABEL, token_id
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

from hearth.demo_phone.drawing import draw_screen
from hearth.demo_phone.layout import Box, Element, layout
from hearth.demo_phone.words import ALL_NAMES, APPS, QUERIES

Number = TypeVar("Number", int, float)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
# The first token of a thought says what is looked for or done, the one after a colon whether it is
# there; of a coordinate the first digit decides, and the last one hardly matters.
DECISION_WEIGHT = 3.0
DIGIT_WEIGHTS = {1: (0.3,), 2: (1.0, 0.2), 3: (2.0, 1.0, 0.2)}
# How often a step of an episode is taken: questions teach where things are, and taps with them;
# what is rare in an episode, and what depends on its history, needs more.
STEP_WEIGHTS = {
    "Tap": 1.0,
    "Launch": 0.5,
    "Home": 1.0,
    "Finish": 1.0,
    "Swipe": 1.2,
    "Type": 1.0,
    "Back": 2.0,
}
POOL_EXAMPLES = 128
LENGTH_STEP = 16
NAMES = (*ALL_NAMES, *QUERIES.values())
_NUMBERS = {one.key: number for number, one in enumerate(NAMES, 1)}
_QUERY_KEYS = {text: one.key for one in QUERIES.values() for text in (one.en, one.zh)}


@dataclass(frozen=True, slots=True)
class PhoneBatch:
    """What one step learns from; n images of one size and their conversations.

    `patches` [n, patches, 588]. Of each cell, [n, rows · columns]: `cells`, which of NAMES is
    there, counted from 1 (0: none, IGNORED_LABEL: an element's edge), `cell_states`, 0 none, 1 off,
    2 on, 3 a second page's icon, and `centers` [.., 2], of the element there, 0 to 999, or
    IGNORED_LABEL. `ids`, `labels` int64 [n, tokens], `weights` of the labels, `positions`
    [3, n, tokens].
    """

    patches: torch.Tensor
    rows: int
    columns: int
    cells: torch.Tensor
    cell_states: torch.Tensor
    centers: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor


def resized(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of cells that the image processor gives a screen of this size."""
    h, w = smart_resize(
        2, height, width, factor=CELL, min_pixels=SHORTEST_EDGE, max_pixels=LONGEST_EDGE
    )
    return h // CELL, w // CELL


def screen_pixels(screen: Screen, rng: random.Random) -> np.ndarray:
    """The screen as the model sees it, uint8 [height, width, 3].

    Drawn a little larger than needed instead of in its native size, for speed.
    """
    rows, columns = resized(screen.width, screen.height)
    width, height = columns * CELL, rows * CELL
    factor = min(rng.choice((1.8, 2.0, 2.3, 2.6)), screen.width / width)
    drawn = draw_screen(screen.state, screen.look, round(width * factor), round(height * factor))
    return np.asarray(drawn.resize((width, height), Image.Resampling.BICUBIC))


def _core(one: Element) -> Box:
    """The part of an element where its icon and its name are."""
    if one.is_on is not None:
        return Box(one.box.left, one.box.top, 0.5, one.box.bottom)
    if one.key in APPS:
        width, height = one.box.right - one.box.left, one.box.bottom - one.box.top
        return one.box.shrunk(0.2 * width, 0.1 * height)
    return one.box


def _padded(row: list[Number], width: int, padding: Number) -> list[Number]:
    return row + [padding] * (width - len(row))


class BatchMaker:
    """Turns examples into batches with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.image = token_id(tokenizer, IMAGE)
        self._begin = token_id(tokenizer, BEGIN_OF_IMAGE)
        self._assistant = token_id(tokenizer, ASSISTANT)
        self._end = token_id(tokenizer, END_OF_ANSWER)
        self._deciding = {tokenizer.encode(one).ids[-1] for one in (THINK, ":", "：")}
        self._digits = {token_id(tokenizer, digit) for digit in "0123456789"}
        # Of the examples, those that are questions; may change while batches are taken.
        self.question_share = 0.0

    def endless(self, seed: int, batch_size: int) -> Iterator[PhoneBatch]:
        """Batches without end; a pure function of the seed and of the shares on the way."""
        rng = random.Random(seed)
        while True:
            pool = list(self._pool(rng))
            groups = self._groups(pool, batch_size)
            rng.shuffle(groups)
            for group in groups:
                yield self.batch(group, rng)

    def _pool(self, rng: random.Random) -> Iterator[Example]:
        for _ in range(POOL_EXAMPLES):
            if rng.random() < self.question_share:
                yield question_example(rng)
            else:
                steps = step_examples(rng)
                yield rng.choices(steps, weights=[STEP_WEIGHTS[one.kind] for one in steps])[0]

    def _groups(self, pool: list[Example], batch_size: int) -> list[list[Example]]:
        """Examples of one image size together, of similar length."""
        by_size = defaultdict(list)
        for one in sorted(pool, key=lambda one: len(one.text)):
            by_size[resized(one.screen.width, one.screen.height)].append(one)
        return [
            group
            for same in by_size.values()
            for start in range(0, len(same), batch_size)
            if len(group := same[start : start + batch_size]) == batch_size
        ]

    def batch(self, group: list[Example], rng: random.Random) -> PhoneBatch:
        """One batch; every example must have the same image size."""
        rows, columns = resized(group[0].screen.width, group[0].screen.height)
        pixels = np.stack([screen_pixels(one.screen, rng) for one in group])
        normal = (pixels.astype(np.float32) / 255 - MEAN) / STD
        marked = [self._cells(one.screen, rows, columns) for one in group]
        cells, states, centers = (torch.from_numpy(np.stack(one)) for one in zip(*marked))
        encoded = [self.encode(one, rows, columns) for one in group]
        width = -(-max(len(ids) for ids, _, _ in encoded) // LENGTH_STEP) * LENGTH_STEP
        places = [
            position_ids(ids.index(self.image), rows, columns, width) for ids, _, _ in encoded
        ]
        return PhoneBatch(
            to_patches(torch.from_numpy(normal).permute(0, 3, 1, 2)),
            rows,
            columns,
            cells,
            states,
            centers,
            torch.tensor([_padded(ids, width, 0) for ids, _, _ in encoded]),
            torch.tensor([_padded(labels, width, IGNORED_LABEL) for _, labels, _ in encoded]),
            torch.tensor([_padded(weights, width, 1.0) for _, _, weights in encoded]),
            torch.from_numpy(np.stack(places, 1)),
        )

    def _cells(self, screen: Screen, rows: int, columns: int) -> list[np.ndarray]:
        """Names, states and centres of the elements, by cells."""
        cells = np.zeros(rows * columns, dtype=np.int64)
        states = np.zeros(rows * columns, dtype=np.int64)
        centers = np.full((rows * columns, 2), IGNORED_LABEL, dtype=np.int64)
        for one in layout(screen.state, screen.look):
            is_written = one.key == "field" and screen.state.text
            key = _QUERY_KEYS[screen.state.text] if is_written else one.key
            core = _core(one)
            for row in range(rows):
                for column in range(columns):
                    x, y = (column + 0.5) / columns, (row + 0.5) / rows
                    if not one.box.holds(x, y):
                        continue
                    at = row * columns + column
                    cells[at] = _NUMBERS[key] if core.holds(x, y) else IGNORED_LABEL
                    centers[at] = one.center
                    if one.is_on is not None:
                        states[at] = 1 + one.is_on
                    elif screen.state.app is None and screen.state.page == 1:
                        states[at] = 3
        return [cells, states, centers]

    def encode(
        self, example: Example, rows: int, columns: int
    ) -> tuple[list[int], list[int], list[float]]:
        """Ids with the image's tokens in place, labels, and the labels' weights."""
        plain = self._tokenizer.encode(example.text, add_special_tokens=False).ids
        at = plain.index(self.image)
        ids = [*plain[:at], *[self.image] * (rows * columns), *plain[at + 1 :]]
        labels = [IGNORED_LABEL] * len(ids)
        starts = [i for i, one in enumerate(ids) if one == self._assistant]
        for start in starts if example.is_dense else starts[-1:]:
            # An answer begins after the mark and its line feed.
            end = ids.index(self._end, start) + 1
            labels[start + 2 : end] = ids[start + 2 : end]
        return ids, labels, self._weights(ids, labels)

    def _weights(self, ids: list[int], labels: list[int]) -> list[float]:
        weights = [
            DECISION_WEIGHT if before in self._deciding and label == token else 1.0
            for before, token, label in zip([-1, *ids[:-1]], ids, labels)
        ]
        at = 0
        while at < len(ids):
            end = at
            while end < len(ids) and labels[end] in self._digits:
                end += 1
            if end > at:
                weights[at:end] = DIGIT_WEIGHTS[end - at]
            at = max(end, at + 1)
        return weights
