"""`config.json` of a model: the few entries that matter for running it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pywebml.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration.

    Attributes:
        model_type: Architecture family, such as `bert`; empty when not given.
        values: Everything in the file.
    """

    model_type: str
    values: Mapping[str, Any]

    @classmethod
    def from_json(cls, data: bytes, model_id: str) -> ModelConfig:
        """Read the file.

        Raises:
            UnsupportedModelError: It is not a JSON object, or `model_type` is not a text.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UnsupportedModelError(
                f"config.json of {model_id} is not valid JSON ({error}). Delete the model and load it again; "
                "if that does not help, its hub holds a broken file.",
                model=model_id,
            ) from None
        model_type = values.get("model_type", "") if isinstance(values, dict) else None
        if not isinstance(model_type, str):
            raise UnsupportedModelError(
                f"config.json of {model_id} is not a model configuration: expected an object with a text 'model_type'.",
                model=model_id,
            )
        return cls(model_type=model_type, values=values)

    def positive_int(self, name: str) -> int | None:
        """An entry that is a whole number above 0; None when it is absent or anything else."""
        value = self.values.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def use_external_data_format(self) -> Any:
        """`transformers.js_config.use_external_data_format`: false, true, a number, or an object by file name."""
        section = self.values.get("transformers.js_config")
        return section.get("use_external_data_format", False) if isinstance(section, dict) else False
