"""What a conversion makes: parts, each one `.onnx` file, and the cases that every form of it has to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a part, and what PyTorch makes of it in float32.

    Attributes:
        title: Such as `two texts, padded` or `second cached step`.
        feeds: Every input of the part.
        expected: The outputs that are compared.
        kept: For outputs of which not all numbers count (padding): booleans that broadcast to the output's shape.
    """

    title: str
    feeds: Arrays
    expected: Arrays
    kept: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One module of a model.

    Attributes:
        name: As in the names of files: `model`, `encoder_model`, `decoder_model_merged`.
        inputs: Their names, in order.
        outputs: Their names, in order.
        write: Exports it in float32 to a path at an opset; weights beyond what one file holds go to `{name}_data`
            beside it. Raises ConversionError.
        cases: PyTorch's answers: two batch sizes with padding, and where there is a cache several steps that use it.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    write: Callable[[Path, int], None]
    cases: Callable[[], Sequence[Case]]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A checkpoint that is ready to be converted.

    Attributes:
        model_type: Of its configuration.
        task: What it is converted for.
        parts: Its modules.
        config_changes: What goes into the hub's `config.json` over the original, such as `transformers.js_config`.
    """

    model_type: str
    task: str
    parts: tuple[Part, ...]
    config_changes: Mapping[str, Any] = field(default_factory=dict)
