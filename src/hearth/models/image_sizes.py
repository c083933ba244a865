"""The image processor that belongs to an encoder, and whether another one fits it."""

from __future__ import annotations

from hearth.core.errors import ModelError
from hearth.core.images import ImageProcessorSpec
from hearth.core.spec import VisionSpec

# Of CLIP (arXiv 2103.00020), which all families here share.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def default_processor(vision: VisionSpec) -> ImageProcessorSpec:
    """For a model without preprocessor_config.json."""
    return ImageProcessorSpec(
        min_pixels=vision.min_pixels,
        max_pixels=vision.max_pixels,
        frames=vision.pixel_frames,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.merge_size,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def check_processor(processor: ImageProcessorSpec, vision: VisionSpec) -> None:
    """Raises ModelError when images would be cut into other patches than the encoder reads."""
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        found, wanted = getattr(processor, name), getattr(vision, name)
        if found != wanted:
            raise ModelError(
                f"preprocessor_config.json: {name} is {found}; config.json makes it {wanted}",
                hint="take both files from the same model",
                param=name,
            )
