"""What can be chosen: `PipelineOptions` for one engine, `Configuration` for where things come from.

Field names are Firefox's (`ML/docs/models.rst`, `PipelineOptions`), in snake_case for Python and in camelCase for
JavaScript and for settings records. Unlike Firefox, unknown names are refused, with the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

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
_ORIGIN = re.compile(r"https?://[^/?#@\s]+")
# What HTTP allows in a bearer token (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")

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
    if isinstance(value, Mapping):
        _by_file_name(_chunks)(field, value)
    elif not isinstance(value, bool):
        _whole_number(0, 100)(field, value)


def _by_file_name(check: _Check) -> _Check:
    """A mapping from names of files, such as `decoder_model_merged`, to values of their own."""

    def check_each(field: str, value: Any) -> None:
        for name, item in value.items():
            if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or isinstance(item, Mapping):
                raise _refuse(field, value, "give one value, or one for each file name, such as {'encoder_model': …}")
            check(f"{field}[{name!r}]", item)

    return check_each


def _dtype(field: str, value: Any) -> None:
    if isinstance(value, Mapping):
        _by_file_name(_dtype)(field, value)
    else:
        _one_of(DTYPES)(field, value)


def _is_origin(value: Any) -> bool:
    try:
        return isinstance(value, str) and _ORIGIN.fullmatch(value) is not None and urlsplit(value).port != 0
    except ValueError:
        return False


def _access_tokens(field: str, value: Any) -> None:
    # The refused value is not repeated: it may be a secret.
    if not isinstance(value, Mapping):
        raise OptionsError(
            f"Option {field} is not valid: give an object from origin to token.", field=field, value=None
        )
    for origin, token in value.items():
        if not _is_origin(origin):
            raise OptionsError(
                f"Option {field} is not valid: one of its names is no origin. Give names like "
                "'https://huggingface.co', with no path.",
                field=field,
                value=None,
            )
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise OptionsError(
                f"Option {field} is not valid: the token for {origin} must be a text without spaces.",
                field=field,
                value=None,
            )


def _entries(field: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or any(not isinstance(e, Mapping) for e in value):
        raise _refuse(field, value, "give a list of objects with 'filter' and 'urlPrefix'")


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
    "dtype": _dtype,
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
    "hub_access_tokens": _access_tokens,
    "allow_deny_list": _entries,
    "max_cache_bytes": _whole_number(0, 2**53),
    "stall_timeout_ms": _whole_number(1, MAX_TIMEOUT_MS),
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
        dtype: Precision of the weights, which picks the file; default `q8`. For models of several files also by file
            name: `{"encoder_model": "fp32", "decoder_model_merged": "q4"}`.
        device: `wasm` (default); `cpu` means the same.
        num_threads: 0 (default) lets the runtime choose.
        use_external_data_format: Whether weights lie in files beside the `.onnx`, or how many such files; also by file
            name. Default: what the model's `config.json` says.
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
    dtype: str | Mapping[str, str] | None = None
    device: str | None = None
    num_threads: int | None = None
    use_external_data_format: bool | int | Mapping[str, bool | int] | None = None
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
        chosen = {option.name: getattr(other, option.name) for option in fields(other)}
        return replace(self, **{name: value for name, value in chosen.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """What was chosen, under camelCase names."""
        values = {_camel_case(option.name): getattr(self, option.name) for option in fields(self)}
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
        hub_access_tokens: Tokens for private hubs, by origin: `{"https://huggingface.co": "hf_…"}`. A token goes to its
            origin and nowhere else, and is stored nowhere.
        allow_deny_list: Entries for `ml-model-allow-deny-list`, besides those of the settings server.
        max_cache_bytes: When stored models would take more, those that were not used for the longest time make room.
            Default: nothing that is stored is ever deleted to make room.
        stall_timeout_ms: How long a download may stay silent before it is tried again.

    Raises:
        OptionsError: A value is not allowed.
    """

    assets_base: str | None = None
    settings_server: str | None = None
    settings_root_hash: str | None = None
    allow_unsigned_settings: bool = False
    hub_root_url: str | None = None
    hub_url_template: str = "{model}/{revision}"
    hub_access_tokens: Mapping[str, str] | None = field(default=None, repr=False)
    allow_deny_list: Sequence[Mapping[str, Any]] | None = None
    max_cache_bytes: int | None = None
    stall_timeout_ms: int = 60_000

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None:
                _CONFIGURATION_CHECKS.get(entry.name, _text)(entry.name, value)

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
    first, *rest = name.split("_")
    return first + "".join("MS" if part == "ms" else part.capitalize() for part in rest)


def _field_names(cls: type[PipelineOptions] | type[Configuration]) -> dict[str, str]:
    names = [entry.name for entry in fields(cls)]
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
            # The value is not repeated: under its right name it may be a secret.
            raise OptionsError(f"There is no {what} '{key}'. {hint}", field=key, value=None)
        if value is not None:
            chosen[names[key]] = value
    return chosen
