"""Images and sounds that models are compared on: noise of the right shape, in batches of two sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SIZES = ((96, 128), (160, 96))
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
