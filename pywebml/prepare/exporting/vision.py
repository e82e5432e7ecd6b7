"""Models of images, and of images with texts: classes, hidden states, boxes, embeddings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pywebml.prepare.exporting.plain import Batch, ByPosition, plain_part
from pywebml.prepare.exporting.rows import Loaded, Row, Table
from pywebml.prepare.exporting.signals import image_shape, images_of_any_size, noise, prepared_image_shape
from pywebml.prepare.exporting.texts import SENTENCES, padding_token, tokenize
from pywebml.prepare.exporting.torch_export import BATCH, SEQUENCE, Dims
from pywebml.prepare.parts import Part
from pywebml.prepare.source import TOKENIZER

PIXELS, PIXEL_MASK = "pixel_values", "pixel_mask"
TEXT_BATCH, IMAGE_BATCH = "text_batch_size", "image_batch_size"
HIDDEN, POOLED = "last_hidden_state", "pooler_output"
LONGEST = 16
"""Of the texts beside images, in tokens."""


class Sizes(Enum):
    """Which heights and widths of images a file takes."""

    ANY = "any"
    TRAINED = "the one in the configuration"
    PREPARED = "the one that the checkpoint's preprocessor gives"


class BySymbolicLength(ByPosition):
    """A model that takes `len()` of a tensor for the batch size, which would make the exporter fix it."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the base."""
        names = vars(sys.modules[type(self.model).__module__])
        names["len"] = _length
        try:
            return super().forward(*inputs)
        finally:
            del names["len"]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) else len(value)


def image_parts(
    loaded: Loaded, outputs: Sequence[str], *, sizes: Sizes, by: type[ByPosition] = ByPosition
) -> tuple[Part, ...]:
    """The one part of a model of images, named `model`: `pixel_values` to what is wanted.

    Args:
        loaded: The model.
        outputs: Their names.
        sizes: Which images the file takes.
        by: How the model is called.
    """
    module = by(loaded.model, [PIXELS], outputs).eval()
    dims: Dims = {PIXELS: {0: BATCH, 2: "height", 3: "width"}} if sizes is Sizes.ANY else {PIXELS: {0: BATCH}}
    varying = _varying_axes(loaded, module, sizes=sizes)
    dims = {**dims, **{name: {0: BATCH, **axes} for name, axes in varying.items()}}
    return (plain_part("model", module, dims, partial(_images, loaded, sizes=sizes)),)


def _images(loaded: Loaded, *, sizes: Sizes) -> list[Batch]:
    shape = image_shape(loaded.config)
    if sizes is Sizes.PREPARED:
        shape = prepared_image_shape(loaded)
    found = images_of_any_size(shape[0]) if sizes is Sizes.ANY else noise(shape)
    return [{PIXELS: it} for it in found]


def _varying_axes(loaded: Loaded, module: ByPosition, *, sizes: Sizes) -> dict[str, dict[int, str]]:
    """Axes of the outputs that depend on the size of the images, with names for them."""
    if sizes is not Sizes.ANY:
        return {name: {} for name in module.output_names}
    shapes = []
    for batch in _images(loaded, sizes=Sizes.ANY):
        with torch.no_grad():
            shapes.append([it.shape for it in module(batch[PIXELS])])
    return {
        name: {axis: f"{name}_dim_{axis}" for axis in range(1, len(first)) if first[axis] != second[axis]}
        for name, first, second in zip(module.output_names, *shapes, strict=True)
    }


def detection_parts(loaded: Loaded, *, with_mask: bool, sizes: Sizes) -> tuple[Part, ...]:
    """The one part of a detector, named `model`: images to `logits` and `pred_boxes`.

    The mask may have another size than the images: Transformers.js gives 64 by 64 ones whatever they are.
    """
    if not with_mask:
        return image_parts(loaded, ("logits", "pred_boxes"), sizes=sizes, by=BySymbolicLength)
    module = ByPosition(loaded.model, [PIXELS, PIXEL_MASK], ["logits", "pred_boxes"]).eval()
    dims: Dims = {
        PIXELS: {0: BATCH, 2: "height", 3: "width"},
        PIXEL_MASK: {0: BATCH, 1: "mask_height", 2: "mask_width"},
        "logits": {0: BATCH},
        "pred_boxes": {0: BATCH},
    }
    return (plain_part("model", module, dims, partial(_masked_images, loaded)),)


def _masked_images(loaded: Loaded) -> list[Batch]:
    found: list[Batch] = []
    for pixels in images_of_any_size(image_shape(loaded.config)[0]):
        mask = torch.ones((len(pixels), 64, 64), dtype=torch.int64)
        found.append({PIXELS: pixels, PIXEL_MASK: mask})
    # And one as Hugging Face's processor pads it: the mask as large as the images, the second one narrower.
    pixels = images_of_any_size(image_shape(loaded.config)[0])[0]
    mask = torch.ones((len(pixels), *pixels.shape[2:]), dtype=torch.int64)
    mask[1, :, pixels.shape[3] // 2 :] = 0
    return [*found, {PIXELS: pixels * mask[:, None], PIXEL_MASK: mask}]


class TextTower(nn.Module):
    """The half for texts of a model that embeds texts and images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model
        self.projection = getattr(model, "text_projection", None)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """`text_embeds` where there is a projection, `pooler_output` and `last_hidden_state`."""
        return _tower_outputs(self.tower(**inputs), self.projection, "text_embeds")


class VisionTower(nn.Module):
    """The half for images of a model that embeds texts and images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = getattr(model, "visual_projection", None)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """`image_embeds` where there is a projection, `pooler_output` and `last_hidden_state`."""
        return _tower_outputs(self.tower(**inputs), self.projection, "image_embeds")


def _tower_outputs(output: Any, projection: nn.Module | None, name: str) -> dict[str, Tensor]:
    embeds = {} if projection is None else {name: projection(output.pooler_output)}
    return {**embeds, POOLED: output.pooler_output, HIDDEN: output.last_hidden_state}


def text_and_image_parts(
    loaded: Loaded, *, text_inputs: Sequence[str], text_outputs: Sequence[str], image_outputs: Sequence[str]
) -> tuple[Part, ...]:
    """`model` for texts and images together, `text_model` and `vision_model` for each alone."""
    model = loaded.model
    # The order of optimum's files: the mask, where there is one, comes last.
    inputs = [text_inputs[0], PIXELS, *text_inputs[1:]]
    outputs = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    both = ByPosition(model, inputs, outputs).eval()
    texts, images = partial(_texts, loaded, text_inputs), partial(_images_beside_texts, loaded)
    dims: Dims = {
        **{name: {0: TEXT_BATCH, 1: SEQUENCE} for name in text_inputs},
        PIXELS: {0: IMAGE_BATCH},
        "logits_per_image": {0: IMAGE_BATCH, 1: TEXT_BATCH},
        "logits_per_text": {0: TEXT_BATCH, 1: IMAGE_BATCH},
        "text_embeds": {0: TEXT_BATCH},
        "image_embeds": {0: IMAGE_BATCH},
    }
    text_tower = ByPosition(TextTower(model), text_inputs, text_outputs).eval()
    image_tower = ByPosition(VisionTower(model), [PIXELS], image_outputs).eval()
    alone: Dims = {
        **{name: {0: BATCH, 1: SEQUENCE} for name in text_inputs},
        PIXELS: {0: BATCH},
        **{name: {0: BATCH} for name in (*text_outputs, *image_outputs)},
    }

    def pairs() -> list[Batch]:
        # Different numbers of texts and images.
        return [{**text, **image} for text, image in zip(texts(), reversed(images()), strict=True)]

    def counted(batch: Batch) -> dict[str, Any]:
        mask = batch.get("attention_mask")
        return {} if mask is None or HIDDEN not in text_outputs else {HIDDEN: mask.numpy()[..., None] == 1}

    return (
        plain_part("model", both, dims, pairs),
        plain_part("text_model", text_tower, {**alone, HIDDEN: {0: BATCH, 1: SEQUENCE}}, texts, counted),
        plain_part("vision_model", image_tower, alone, images),
    )


def _images_beside_texts(loaded: Loaded) -> list[Batch]:
    return [{PIXELS: it} for it in noise(image_shape(loaded.config.vision_config))]


def _texts(loaded: Loaded, names: Sequence[str]) -> list[Batch]:
    text_model: Any = loaded.model.text_model
    loaded = replace(loaded, model=text_model)
    config = loaded.config
    longest = min(LONGEST, config.max_position_embeddings)
    if (loaded.checkpoint.folder / TOKENIZER).is_file():
        batches = [tokenize(loaded, texts, longest=longest) for texts in (SENTENCES[:2], SENTENCES[2:5])]
        return [{name: torch.from_numpy(getattr(it, name)) for name in names} for it in batches]
    generator = torch.Generator().manual_seed(0)
    found: list[Batch] = []
    for lengths in ((longest, 4), (longest - 2, 2, 3)):
        positions, last = torch.arange(max(lengths)), torch.tensor(lengths)[:, None] - 1
        ids = torch.randint(3, config.vocab_size - 3, (len(lengths), max(lengths)), generator=generator)
        # The end is where such models read what they made of the text.
        ids = torch.where(positions == last, config.eos_token_id, ids)
        ids = torch.where(positions > last, padding_token(config), ids)
        both = {"input_ids": ids, "attention_mask": (positions <= last).to(torch.int64)}
        found.append({name: both[name] for name in names})
    return found


def _classes(*, sizes: Sizes) -> Row:
    return Row("AutoModelForImageClassification", partial(image_parts, outputs=("logits",), sizes=sizes))


def _states(*outputs: str, sizes: Sizes) -> Row:
    # A pooling layer that is not used may be missing.
    unused = () if POOLED in outputs else ("pooler",)
    return Row("AutoModel", partial(image_parts, outputs=outputs, sizes=sizes), optional_weights=unused)


def _boxes(*, with_mask: bool, sizes: Sizes) -> Row:
    return Row("AutoModelForObjectDetection", partial(detection_parts, with_mask=with_mask, sizes=sizes))


CLASSES, STATES, BOXES = "image-classification", "image-feature-extraction", "object-detection"
MATCHES = "zero-shot-image-classification"

_CLIP = Row(
    "AutoModel",
    partial(
        text_and_image_parts,
        text_inputs=("input_ids", "attention_mask"),
        text_outputs=("text_embeds", HIDDEN),
        image_outputs=("image_embeds", HIDDEN),
    ),
)
# Trained on texts padded to one length without a mask.
_SIGLIP = Row(
    "AutoModel",
    partial(
        text_and_image_parts,
        text_inputs=("input_ids",),
        text_outputs=(HIDDEN, POOLED),
        image_outputs=(HIDDEN, POOLED),
    ),
)

ROWS: Table = {
    **{
        model_type: {CLASSES: _classes(sizes=Sizes.TRAINED), STATES: _states(HIDDEN, sizes=Sizes.TRAINED)}
        for model_type in ("vit", "deit", "beit", "swin")
    },
    **{
        model_type: {CLASSES: _classes(sizes=Sizes.ANY), STATES: _states(HIDDEN, POOLED, sizes=Sizes.ANY)}
        for model_type in (
            "convnext",
            "convnextv2",
            "dinov2",
            "efficientnet",
            "mobilenet_v1",
            "mobilenet_v2",
            "resnet",
        )
    },
    # Its positions are scaled with smoothing, which the exporter does for one size only.
    "dinov2_with_registers": {
        CLASSES: _classes(sizes=Sizes.PREPARED),
        STATES: _states(HIDDEN, POOLED, sizes=Sizes.PREPARED),
    },
    "mobilevit": {CLASSES: _classes(sizes=Sizes.TRAINED)},
    "clip": {MATCHES: _CLIP},
    "siglip": {MATCHES: _SIGLIP},
    "detr": {BOXES: _boxes(with_mask=True, sizes=Sizes.ANY)},
    "table-transformer": {BOXES: _boxes(with_mask=True, sizes=Sizes.ANY)},
    "yolos": {BOXES: _boxes(with_mask=False, sizes=Sizes.ANY)},
    "rt_detr": {BOXES: _boxes(with_mask=False, sizes=Sizes.PREPARED)},
}
