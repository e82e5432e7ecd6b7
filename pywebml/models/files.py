"""The one list of model files: which `.onnx` and external data files make up (modules, dtype).

File names are those of Transformers.js, so that its models and ours are interchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pywebml.errors import OptionsError, UnsupportedModelError
from pywebml.models.config import ModelConfig

SUBFOLDER = "onnx"
MAX_EXTERNAL_DATA_FILES = 100
DEFAULT_DTYPE = "q8"

DTYPE_SUFFIXES = {
    "fp32": "",
    "fp16": "_fp16",
    "q8": "_quantized",
    "int8": "_int8",
    "uint8": "_uint8",
    "q4": "_q4",
    "q4f16": "_q4f16",
    "bnb4": "_bnb4",
    "q2": "_q2",
    "q2f16": "_q2f16",
    "q1": "_q1",
    "q1f16": "_q1f16",
}
"""dtype to the end of the file's name."""


@dataclass(frozen=True, slots=True)
class ModelModule:
    """One session's files.

    Attributes:
        name: Such as `model`, `encoder_model`, `decoder_model_merged`.
        path: Of the `.onnx` file in the model's repository.
        external_data: Name as it stands inside the `.onnx`, and path in the repository, of each data file.
    """

    name: str
    path: str
    external_data: tuple[tuple[str, str], ...] = ()


def model_modules(
    names: Sequence[str],
    dtype: str | Mapping[str, str],
    config: ModelConfig,
    use_external_data_format: bool | int | Mapping[str, bool | int] | None = None,
) -> list[ModelModule]:
    """The files of every module.

    Args:
        names: Modules that the task needs.
        dtype: A key of `DTYPE_SUFFIXES`, or one for each module by its name; a module that is not named has
            `DEFAULT_DTYPE`.
        config: May say that a module has external data.
        use_external_data_format: The caller's word on that, above the configuration's.

    Raises:
        OptionsError: A module that the task does not have is named.
        UnsupportedModelError: The configuration's word on external data makes no sense.
    """
    if isinstance(dtype, Mapping) and (unknown := [name for name in dtype if name not in names]):
        raise OptionsError(
            f"dtype names {unknown[0]!r}, which is no module of this task. Its modules: {', '.join(names)}.",
            field="dtype",
            value=unknown[0],
        )
    modules = []
    for name in names:
        own_dtype = dtype.get(name, DEFAULT_DTYPE) if isinstance(dtype, Mapping) else dtype
        stem = f"{name}{DTYPE_SUFFIXES[own_dtype]}"
        chosen = config.use_external_data_format if use_external_data_format is None else use_external_data_format
        if isinstance(chosen, Mapping):
            chosen = chosen.get(f"{stem}.onnx", chosen.get(name, False))
        if not isinstance(chosen, int) or not 0 <= chosen <= MAX_EXTERNAL_DATA_FILES:
            raise UnsupportedModelError(
                f"config.json says use_external_data_format={chosen!r} for {stem}.onnx: expected true, false or a "
                f"number of files up to {MAX_EXTERNAL_DATA_FILES}. Pass use_external_data_format to override it.",
                file=f"{stem}.onnx",
            )
        data_names = [f"{stem}.onnx_data{f'_{index}' if index else ''}" for index in range(int(chosen))]
        modules.append(
            ModelModule(
                name=name,
                path=f"{SUBFOLDER}/{stem}.onnx",
                external_data=tuple((data_name, f"{SUBFOLDER}/{data_name}") for data_name in data_names),
            )
        )
    return modules
