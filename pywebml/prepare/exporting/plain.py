"""Parts without a cache: named inputs in, named outputs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pywebml.prepare.exporting.torch_export import Dims, export_module
from pywebml.prepare.parts import Case, Part

Batch = Mapping[str, Tensor]
Kept = Callable[[Batch], Mapping[str, NDArray[np.bool_]]]


class ByPosition(nn.Module):
    """A model with its inputs by position and its outputs as a tuple.

    Args:
        model: Takes inputs by name, gives outputs by name.
        input_names: In the order of the file.
        output_names: In the order of the file.
        options: Further arguments that are always the same.
    """

    def __init__(
        self, model: nn.Module, input_names: Sequence[str], output_names: Sequence[str], **options: Any
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)
        self.options = options

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the model gives under the wanted names."""
        output = self.model(**dict(zip(self.input_names, inputs, strict=True)), **self.options)
        return tuple(output[name] for name in self.output_names)


def plain_part(
    name: str, module: ByPosition, dims: Dims, batches: Callable[[], Sequence[Batch]], kept: Kept | None = None
) -> Part:
    """A part that answers what its module answers.

    Args:
        name: Of the part.
        module: In evaluation mode.
        dims: Dimensions of inputs and outputs that vary.
        batches: Gives what the cases feed, at least two; the first is also what the exporter follows.
        kept: Gives what of the outputs counts for a batch; default everything.
    """

    def write(path: Path, opset: int) -> None:
        batch = batches()[0]
        examples = [batch[name] for name in module.input_names]
        export_module(module, examples, module.input_names, module.output_names, dims, path, opset)

    def cases() -> list[Case]:
        found = []
        for batch in batches():
            inputs = [batch[name] for name in module.input_names]
            with torch.no_grad():
                answers = module(*inputs)
            found.append(
                Case(
                    title_of(batch),
                    {name: it.numpy() for name, it in zip(module.input_names, inputs, strict=True)},
                    {name: it.numpy() for name, it in zip(module.output_names, answers, strict=True)},
                    kept(batch) if kept else {},
                )
            )
        return found

    return Part(name, module.input_names, module.output_names, write, cases)


def title_of(batch: Batch) -> str:
    """The shape of a batch's first input."""
    return "×".join(str(size) for size in next(iter(batch.values())).shape)
