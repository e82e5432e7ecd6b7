"""Images and sounds that models are compared on: noise of the right shape, in batches of two sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pywebml.prepare.exporting.rows import Loaded
from pywebml.prepare.source import read_json_object

PREPROCESSOR = "preprocessor_config.json"

SIZES = ((64, 96), (128, 64))
"""Height and width of the images for models that take any."""


def noise(shape: tuple[int, ...]) -> list[Tensor]:
    """Two batches of normal noise, [2, *shape] and [3, *shape]; always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((size, *shape), generator=generator) for size in (2, 3)]


def images_of_any_size(channels: int) -> list[Tensor]:
    """Two batches of images, each with a size of its own; always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((2 + i, channels, *size), generator=generator) for i, size in enumerate(SIZES)]


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model was trained for; where it takes any size, some size."""
    size = getattr(config, "image_size", None) or SIZES[0]
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", None) or 3, height, width


def prepared_image_shape(loaded: Loaded) -> tuple[int, int, int]:
    """Channels, height and width of the images as the checkpoint's preprocessor gives them.

    Some models take other sizes than they were trained for, and their checkpoints have such a preprocessor.

    Raises:
        SourceError: `preprocessor_config.json` is not readable.
    """
    channels, height, width = image_shape(loaded.config)
    if (loaded.checkpoint.folder / PREPROCESSOR).is_file():
        settings = read_json_object(loaded.checkpoint.folder / PREPROCESSOR)
        size = settings.get("crop_size" if settings.get("do_center_crop") else "size")
        if isinstance(size, dict) and isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
            height, width = size["height"], size["width"]
    return channels, height, width
