"""preprocessor_config.json: both names of each bound, the server's settings, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hearth.core.config import ImagesConfig
from hearth.core.errors import ConfigError, ModelError
from hearth.core.images import ImageProcessorSpec
from hearth.models.image_processor import read_image_processor
from hearth.models.image_sizes import CLIP_MEAN, CLIP_STD

GLM: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "image_processor_type": "Glm4vImageProcessor",
    "merge_size": 2,
    "patch_size": 14,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 9633792, "shortest_edge": 12544},
    "temporal_patch_size": 2,
}


def read(
    tmp_path: Path,
    values: dict[str, Any],
    images: ImagesConfig | None = None,
    *,
    frames: int = 2,
    nested: bool = False,
    defaults: ImageProcessorSpec | None = None,
) -> ImageProcessorSpec:
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"image_processor": values, "processor_class": "x"} if nested else values
    (tmp_path / name).write_text(json.dumps(content))
    found = images or ImagesConfig()
    return read_image_processor(tmp_path, found, frames=frames, defaults=defaults)


@pytest.mark.parametrize("nested", [False, True])
def test_the_file_of_a_model_is_read(tmp_path: Path, nested: bool) -> None:
    spec = read(tmp_path, GLM, nested=nested)
    assert spec == ImageProcessorSpec(
        min_pixels=12_544,
        max_pixels=9_633_792,
        frames=2,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        rescale=1 / 255,
    )
    assert spec.token_pixels == 28


def test_the_nested_part_wins_and_a_processor_file_without_one_says_nothing(
    tmp_path: Path,
) -> None:
    read(tmp_path, {**GLM, "patch_size": 16})
    assert read(tmp_path, GLM, nested=True).patch_size == 14
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Glm4vProcessor"}')
    spec = read_image_processor(tmp_path, ImagesConfig(), frames=2)
    assert spec.patch_size == 16


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ({}, (12_544, 11_760_000)),
        ({"size": {"shortest_edge": 20_000, "longest_edge": 30_000}}, (20_000, 30_000)),
        ({"size": {"min_pixels": 20_000, "max_pixels": 30_000}}, (20_000, 30_000)),
        ({"min_pixels": 20_000, "max_pixels": 30_000}, (20_000, 30_000)),
        ({**GLM, "max_pixels": 5_000_000}, (12_544, 5_000_000)),
        ({**GLM, "min_pixels": 100}, (100, 9_633_792)),
        ({"size": None, "max_pixels": None}, (12_544, 11_760_000)),
    ],
)
def test_each_bound_has_two_names(
    tmp_path: Path, values: dict[str, Any], bounds: tuple[int, int]
) -> None:
    spec = read(tmp_path, values)
    assert (spec.min_pixels, spec.max_pixels) == bounds


def test_a_model_that_counts_one_frame_has_the_other_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, {}, frames=1)
    assert (spec.min_pixels, spec.max_pixels) == (3_136, 1_003_520)


def test_settings_of_the_server_win(tmp_path: Path) -> None:
    values = {**GLM, "max_pixels": 7_000_000}
    spec = read(tmp_path, values, ImagesConfig(min_pixels=50_000, max_pixels=5_000_000))
    assert (spec.min_pixels, spec.max_pixels) == (50_000, 5_000_000)
    assert read(tmp_path, values, ImagesConfig(max_pixels=10_000)).min_pixels == 10_000


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (ImagesConfig(max_pixels=1000), "--max-pixels is 1,000; permitted: 1,568 to"),
        (ImagesConfig(min_pixels=0), "--min-pixels is 0; permitted: 1 to"),
        (ImagesConfig(min_pixels=10_000_000), "--min-pixels is 10,000,000 and images have 9,633"),
        (ImagesConfig(min_pixels=3000, max_pixels=2000), "--min-pixels is 3,000"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, images: ImagesConfig, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, GLM, images)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"do_resize": False}, "do_resize is false; permitted: true"),
        ({"do_center_crop": True}, "do_center_crop is true"),
        ({"do_pad": True}, "do_pad is true"),
        ({"resample": 2}, "resample is 2; permitted: 3"),
        ({"size": {"height": 336, "width": 336}}, "size is"),
        ({"size": 336}, "size is 336"),
        ({"size": {"shortest_edge": 0}}, "shortest_edge is 0"),
        ({"max_pixels": "many"}, 'max_pixels is "many"'),
        ({"min_pixels": 9, "max_pixels": 8}, "which no image has"),
        ({"min_pixels": 1, "max_pixels": 1500}, "a single token stands for 1,568"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"merge_size": 1.5}, "merge_size is 1.5"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_std": [0.5, 0, 0.5]}, "three numbers above 0"),
        ({"image_std": [0.5, "x", 0.5]}, "image_std is"),
        ({"rescale_factor": -1}, "rescale_factor is -1"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        read(tmp_path, values)


def test_steps_that_are_left_out_change_nothing(tmp_path: Path) -> None:
    spec = read(tmp_path, {**GLM, "do_rescale": False, "do_normalize": False})
    assert (spec.mean, spec.std, spec.rescale) == ((0.0,) * 3, (1.0,) * 3, 1.0)
    assert read(tmp_path, {**GLM, "image_mean": 0.5}).mean == (0.5, 0.5, 0.5)


def test_without_a_file_the_defaults_of_the_family_hold_or_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds neither preprocessor_config\.json nor"):
        read_image_processor(tmp_path, ImagesConfig(), frames=2)
    defaults = read(tmp_path, GLM)
    (tmp_path / "preprocessor_config.json").unlink()
    images = ImagesConfig(max_pixels=5_000_000)
    found = read_image_processor(tmp_path, images, frames=2, defaults=defaults)
    assert found.max_pixels == 5_000_000
    assert read(tmp_path, {}, defaults=defaults) == defaults


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config.json: is not valid JSON"):
        read_image_processor(tmp_path, ImagesConfig(), frames=2)
