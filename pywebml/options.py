"""What can be chosen: `PipelineOptions` for one engine, `Configuration` for where things come from.

Field names are Firefox's (`ML/docs/models.rst`, `PipelineOptions`), in snake_case for Python and in camelCase for
JavaScript and for settings records. Unlike Firefox, unknown names are refused, with the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pywebml.errors import OptionsError

DTYPES = (
    "fp32",
    "fp16",
    "q8",
    "int8",
    "uint8",
    "q4",
    "q4f16",
    "bnb4",
    "q2",
    "q2f16",
    "q1",
    "q1f16",
)
DEVICES = ("wasm", "cpu")
BACKENDS = ("onnx",)
MODEL_HUBS = ("huggingface", "mozilla")
MAX_THREADS = 100
MAX_TIMEOUT_MS = 36_000_000

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_MODEL_ID = re.compile(r"(?:[A-Za-z0-9_\-.]+/)?[A-Za-z0-9_\-.:]+")
_REVISION = re.compile(r"[A-Za-z0-9_.\-]+(?:/[A-Za-z0-9_.\-]+)*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.\-]+")

_Check = Callable[[str, Any], None]


def _refuse(field: str, value: object, wanted: str) -> OptionsError:
    return OptionsError(f"Option {field}={value!r} is not valid: {wanted}.", field=field, value=_plain(value))


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _text(field: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise _refuse(field, value, "give a text that is not empty")


def _matching(pattern: re.Pattern[str], wanted: str) -> _Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value:
            raise _refuse(field, value, wanted)

    return check


def _one_of(allowed: tuple[str, ...]) -> _Check:
    def check(field: str, value: Any) -> None:
        if value not in allowed:
            raise _refuse(field, value, f"give one of {', '.join(allowed)}")

    return check


def _whole_number(low: int, high: int) -> _Check:
    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refuse(field, value, f"give a whole number from {low} to {high}")

    return check


def _boolean(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _refuse(field, value, "give true or false")


def _chunks(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        _whole_number(0, 100)(field, value)


def _device(field: str, value: Any) -> None:
    if value in ("gpu", "webgpu"):
        raise _refuse(field, value, "this version computes on the processor only; give wasm")
    _one_of(DEVICES)(field, value)


_model_id = _matching(_MODEL_ID, "give 'name' or 'organisation/name' of letters, digits, '_', '-' and '.'")
_revision = _matching(_REVISION, "give a branch, a tag such as v1.0.0, or a commit hash")

_CHECKS: Mapping[str, _Check] = {
    "engine_id": _text,
    "feature_id": _text,
    "task_name": _matching(_NAME, "give letters, digits, '_' and '-'"),
    "timeout_ms": _whole_number(-1, MAX_TIMEOUT_MS),
    "model_hub": _one_of(MODEL_HUBS),
    "model_hub_root_url": _text,
    "model_hub_url_template": _text,
    "model_id": _model_id,
    "model_revision": _revision,
    "tokenizer_id": _model_id,
    "tokenizer_revision": _revision,
    "dtype": _one_of(DTYPES),
    "device": _device,
    "num_threads": _whole_number(0, MAX_THREADS),
    "use_external_data_format": _chunks,
    "backend": _one_of(BACKENDS),
    "runtime_filename": _matching(_FILE_NAME, "give a file name"),
}


_CONFIGURATION_CHECKS: Mapping[str, _Check] = {
    "settings_root_hash": _matching(
        re.compile(r"[0-9A-Fa-f]{64}|(?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}"),
        "give the SHA-256 of a root certificate, 64 hexadecimal digits",
    ),
    "allow_unsigned_settings": _boolean,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What one engine is made of. None means: not chosen here.

    Attributes:
        engine_id: Key of the engine's life: at most one live engine has it. Made up when not given.
        feature_id: Looks the other options up in the collection `ml-inference-options`.
        task_name: Hugging Face task, such as `feature-extraction`, or the name of a registered task.
        timeout_ms: The engine ends itself after so many milliseconds without a run; -1 (default) never.
        model_hub: `huggingface` or `mozilla`, instead of the configured hub.
        model_hub_root_url: Root of another hub.
        model_hub_url_template: Path below the root, with `{model}` and `{revision}`.
        model_id: `organisation/name`.
        model_revision: Branch, tag or commit; default `main`.
        tokenizer_id: Where the tokenizer comes from; default the model.
        tokenizer_revision: Its revision; default the model's.
        dtype: Precision of the weights, which picks the file; default `q8`.
        device: `wasm` (default); `cpu` means the same.
        num_threads: 0 (default) lets the runtime choose.
        use_external_data_format: Whether weights lie in files beside the `.onnx`, or how many such files; default
            what the model's `config.json` says.
        backend: `onnx`.
        runtime_filename: Name in `ml-onnx-runtime`; default the plain CPU build.

    Raises:
        OptionsError: A value is not allowed.
    """

    engine_id: str | None = None
    feature_id: str | None = None
    task_name: str | None = None
    timeout_ms: int | None = None
    model_hub: str | None = None
    model_hub_root_url: str | None = None
    model_hub_url_template: str | None = None
    model_id: str | None = None
    model_revision: str | None = None
    tokenizer_id: str | None = None
    tokenizer_revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    num_threads: int | None = None
    use_external_data_format: bool | int | None = None
    backend: str | None = None
    runtime_filename: str | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                check(name, value)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PipelineOptions:
        """Options from names in snake_case or camelCase. None values count as not given.

        Raises:
            OptionsError: A name is unknown, or a value is not allowed.
        """
        return cls(**_named_fields(cls, values, "option"))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PipelineOptions:
        """Options from a record of `ml-inference-options`; what other runtimes need besides is passed over.

        Raises:
            OptionsError: A value is not allowed.
        """
        names = _field_names(cls)
        return cls(**{names[key]: value for key, value in record.items() if key in names and value is not None})

    def overlaid_by(self, other: PipelineOptions) -> PipelineOptions:
        """These options, with everything that `other` chose put on top."""
        chosen = {field.name: getattr(other, field.name) for field in fields(other)}
        return replace(self, **{name: value for name, value in chosen.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """What was chosen, under camelCase names."""
        values = {_camel_case(field.name): getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def same_engine(self, other: PipelineOptions) -> bool:
        """Whether an engine with these options can serve for `other` (as Firefox compares them)."""
        ignored = {"engine_id": None, "feature_id": None, "timeout_ms": None}
        return replace(self, **ignored) == replace(other, **ignored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Where everything comes from. Every address may be relative to the page.

    Attributes:
        assets_base: Folder that holds `session.mjs` and the other built files. Default in the browser: the files
            inside the installed package.
        settings_server: Remote Settings server or static mirror. Default: `v1/` below `assets_base`.
        settings_root_hash: SHA-256 of the root certificate under which the settings server signs, hexadecimal. Default:
            that of the build's own mirror, for a server on the page's own origin; else that of Mozilla's server.
        allow_unsigned_settings: Whether to believe a settings server without signatures. Only for one on the page's own
            origin; outside browsers, only on this machine.
        hub_root_url: Root of the model hub. Default: `hub/` below `assets_base`.
        hub_url_template: Path of a model below the root, with `{model}` and `{revision}`.

    Raises:
        OptionsError: A value is not allowed.
    """

    assets_base: str | None = None
    settings_server: str | None = None
    settings_root_hash: str | None = None
    allow_unsigned_settings: bool = False
    hub_root_url: str | None = None
    hub_url_template: str = "{model}/{revision}"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _CONFIGURATION_CHECKS.get(field.name, _text)(field.name, value)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Configuration:
        """Configuration from names in snake_case or camelCase. None values count as not given.

        Raises:
            OptionsError: A name is unknown, or a value is not allowed.
        """
        return cls(**_named_fields(cls, values, "configuration entry"))


_configuration = Configuration()


def configure(**values: Any) -> Configuration:
    """Say where things come from. Engines that already exist keep what they were made with.

    Args:
        **values: Fields of `Configuration`; what is not named keeps its value.

    Raises:
        OptionsError: A name is unknown, or a value is not allowed.
    """
    global _configuration
    _configuration = replace(_configuration, **_named_fields(Configuration, values, "configuration entry"))
    return _configuration


def get_configuration() -> Configuration:
    """What `configure` left."""
    return _configuration


def _camel_case(name: str) -> str:
    if name == "timeout_ms":
        return "timeoutMS"
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _field_names(cls: type[PipelineOptions] | type[Configuration]) -> dict[str, str]:
    names = [field.name for field in fields(cls)]
    return {name: name for name in names} | {_camel_case(name): name for name in names}


def _named_fields(
    cls: type[PipelineOptions] | type[Configuration], values: Mapping[str, Any], what: str
) -> dict[str, Any]:
    names = _field_names(cls)
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(sorted(set(names.values())))}."
            raise OptionsError(f"There is no {what} '{key}'. {hint}", field=key, value=_plain(value))
        if value is not None:
            chosen[names[key]] = value
    return chosen
