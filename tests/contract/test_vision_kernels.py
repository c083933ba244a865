"""The encoder's kernels on every instruction set: the same bits however patches are cut, close to
plain torch in float32 and with codes, and refusals of plans that leave the image."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.executors import require_cpu_library
from tests.support.vision_engine import MAX_PATCHES, PROCESSOR
from tests.support.vision_models import MERGE, ExpectedVision, Picture, expect_vision
from tests.unit.kernels.programs import ISAS

from hearth.core.errors import KernelError
from hearth.core.spec import Activation, KvDType
from hearth.engine.images.patches import patch_rows
from hearth.kernels.cpu.encoder import CpuEncoder
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.encoder import EncoderWalk, patch_places
from hearth.kernels.reference.encoder import ReferenceEncoder
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.lower_vision import lower_vision
from hearth.models.weights import load_weights

# Of the largest feature; measured: 2e-5.
TOLERANCE = 1e-4
# With codes, where a value that is rounded to int8 fell to the other side of a tie (a step of one
# code of a group) and all that attend to it differ a little. Where none did: TOLERANCE.
TIED_LARGEST, TIED_MEAN = 5e-2, 1e-2


@pytest.fixture(scope="module", params=["glm4v", "qwen2_5_vl"])
def expected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ExpectedVision:
    return expect_vision(tmp_path_factory.mktemp("kernels"), request.param)


def encode(
    encoder: CpuEncoder | ReferenceEncoder, picture: Picture, rows: int = 192
) -> NDArray[np.float32]:
    def patches(first: int, count: int) -> NDArray[np.float32]:
        return patch_rows(picture.pixels, PROCESSOR, first, count)

    encoder.start(patches, *picture.grid)
    while not encoder.advance(rows):
        pass
    return encoder.features()


class Pair:
    """The kernels and the reference over the same codes."""

    def __init__(self, loaded: LoadedSpec, isa: str, threads: int = 2) -> None:
        require_cpu_library()
        assert loaded.encoder is not None
        self.packed = CpuWeights(loaded.program, isa=isa)
        weights = ReferenceWeights(loaded.program)
        load_weights(loaded, self.packed)
        load_weights(loaded, weights)
        for slot in loaded.program.slots:
            if slot.quant.bits:
                weights.put_packed(slot, self.packed.packed(slot))
        self.cpu = CpuEncoder(
            loaded.encoder, self.packed, MAX_PATCHES, threads, isa, KvDType.FLOAT32
        )
        self.reference = ReferenceEncoder(loaded.encoder, weights, MAX_PATCHES)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
def test_features_are_those_of_plain_torch(expected: ExpectedVision, isa: str, scheme: str) -> None:
    pair = Pair(load_model_spec(expected.path, quantize=scheme), isa)
    num_tied = 0
    for picture in expected.pictures:
        wanted = encode(pair.reference, picture)
        error = np.abs(encode(pair.cpu, picture) - wanted) / np.abs(wanted).max()
        print(f"{isa} {scheme}: largest {error.max():.1e}, mean {error.mean():.1e}")
        if error.max() > TOLERANCE:
            num_tied += 1
            assert error.max() <= TIED_LARGEST
            assert error.mean() <= TIED_MEAN
    assert num_tied <= (0 if scheme == "none" else len(expected.pictures) - 1)


@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_on_the_image_alone(expected: ExpectedVision, isa: str) -> None:
    loaded = load_model_spec(expected.path, quantize="int8")
    two, one = Pair(loaded, isa), Pair(loaded, isa, threads=1)
    for picture in expected.pictures:
        wanted = encode(two.cpu, picture)
        for rows in (1, 4, 20, 96):
            assert (encode(two.cpu, picture, rows) == wanted).all()
        assert (encode(one.cpu, picture) == wanted).all()


@pytest.mark.parametrize("activation", list(Activation))
def test_every_activation_of_a_plain_mlp_is_that_of_torch(
    expected: ExpectedVision, activation: Activation
) -> None:
    """The merger's activation, exchanged."""
    loaded = load_model_spec(expected.path)
    vision = loaded.spec.vision
    assert vision is not None
    merger = tuple(activation if isinstance(part, Activation) else part for part in vision.merger)
    spec = replace(loaded.spec, vision=replace(vision, merger=merger))
    pair = Pair(replace(loaded, spec=spec, encoder=lower_vision(spec)), "auto")
    wanted = encode(pair.reference, expected.pictures[0])
    error = np.abs(encode(pair.cpu, expected.pictures[0]) - wanted) / np.abs(wanted).max()
    assert error.max() <= TOLERANCE


def test_an_image_beyond_the_encoder_is_refused_and_the_next_one_goes_on(
    expected: ExpectedVision,
) -> None:
    pair = Pair(load_model_spec(expected.path), "auto")
    with pytest.raises(KernelError, match="room for 200"):
        pair.cpu.start(lambda first, count: np.zeros((count, 1), np.float32), 20, 22)
    with pytest.raises(KernelError, match="no multiples of 2"):
        pair.cpu.start(lambda first, count: np.zeros((count, 1), np.float32), 3, 4)
    assert np.isfinite(encode(pair.cpu, expected.pictures[0])).all()


def test_the_library_refuses_rows_outside_of_the_image(expected: ExpectedVision) -> None:
    pair = Pair(load_model_spec(expected.path), "auto")
    encode(pair.cpu, expected.pictures[0])
    image = pair.cpu._image
    assert image is not None
    program = pair.cpu._program
    chunk = EncoderWalk(program, 60).next_chunk(8)
    for broken in (
        {"image_rows": MAX_PATCHES + 4},
        {"image_rows": 4},
        {"num_windows": 1, "window_start": 0},
        {"num_tokens": 6},
        {"num_blocks": 0},
        {"patches": 0},
        {"grid_height": 0},
    ):
        plan, result = image.plan_of(chunk)
        for name, value in broken.items():
            setattr(plan, name, value)
        code = pair.cpu._library.hearth_run(
            pair.cpu._handle, 0, chunk.last_op, ctypes.byref(plan), ctypes.byref(result)
        )
        assert code != 0, broken


def test_patches_of_a_token_follow_each_other() -> None:
    places = patch_places(4, 6, MERGE)
    assert places[:, :5].T.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
    assert len({tuple(place) for place in places.T.tolist()}) == 24
