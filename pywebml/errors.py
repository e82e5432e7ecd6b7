"""Every error that pywebml raises, as one tree.

    PywebmlError
    ├── AbortError                    the caller's signal stopped the work
    ├── OptionsError                  an option is unknown or has a value that is not allowed
    ├── SettingsError                 Remote Settings
    │   ├── SettingsNetworkError      the server could not be reached or answered with an error status
    │   │   └── SettingsBackoffError  the server has asked to be left alone for a while
    │   ├── SettingsResponseError     the server answered something that is not the protocol
    │   │   └── UnknownCollectionError  the server has no such collection
    │   ├── StaleSettingsError        the server answered an older state of a collection than the stored one
    │   ├── SignatureError            a collection's records could not be shown to be the signer's
    │   ├── AttachmentError           an attachment's bytes are not the ones its record describes
    │   └── NoMatchingRecordError     no record, or more than one, fits what was asked for
    ├── HubError                      the model hub
    │   ├── ForbiddenURLError         the allow and deny list does not let this address through
    │   ├── FileNotFoundOnHubError    the hub has no such file
    │   ├── DownloadError             the hub could not be reached, or stopped in the middle
    │   └── IntegrityError            size, hash or kind of the bytes is wrong
    ├── StoreError                    the blob store
    │   ├── StoreUnavailableError     storage is switched off or broken
    │   ├── DamagedFileError          the surroundings lost bytes of a stored file
    │   ├── ArchiveError              an archive or folder to import is not one of models, or not whole
    │   └── QuotaExceededError        no room left
    ├── SessionError                  ONNX Runtime
    │   ├── RuntimeStartError         the runtime could not be started
    │   ├── ModelLoadError            the model could not be loaded
    │   ├── InferenceError            a run failed, or its inputs do not fit the model
    │   └── SessionClosedError        the session or its worker is gone
    ├── TokenizerError                a tokenizer file is not usable
    ├── TaskError                     a task
    │   ├── UnknownTaskError          no such task
    │   ├── InputError                the task cannot work on this input
    │   └── UnsupportedModelError     the task cannot use this model
    ├── EngineError                   the engine
    │   └── EngineClosedError         the engine was terminated
    ├── InspectionError               a file to look into is not what it seems, damaged, or larger than models are
    └── PrepareError                  preparing models and mirrors, outside the browser
        ├── SourceError               the checkpoint is missing, not safe to read, or not the expected bytes
        ├── ConversionError           the model cannot be converted
        ├── ToleranceError            the converted model is too far from the original
        └── RecordError               a record cannot be published in a settings mirror

A message says what happened, with which values, and what to do about it. `details` carries the same values
for programs; they survive the way from Python to JavaScript.
"""

from __future__ import annotations

from typing import Any


class PywebmlError(Exception):
    """Base of every error of this package.

    Args:
        message: What happened, with which values, and what to do.
        **details: The values of the message, for programs. Plain data only.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class AbortError(PywebmlError):
    """The caller's signal stopped the work."""


class OptionsError(PywebmlError):
    """An option is unknown or has a value that is not allowed. Details: `field`, `value`."""


class SettingsError(PywebmlError):
    """Remote Settings: base class."""


class SettingsNetworkError(SettingsError):
    """The settings server could not be reached or answered with an error status. Details: `url`, `status`."""


class SettingsResponseError(SettingsError):
    """The settings server answered something that is not the protocol. Details: `url`."""


class SettingsBackoffError(SettingsNetworkError):
    """The settings server has asked to be left alone for a while. Details: `url`, `seconds`."""


class UnknownCollectionError(SettingsResponseError):
    """The settings server has no such collection. Details: `url`, `collection`."""


class StaleSettingsError(SettingsError):
    """The settings server answered an older state of a collection than the stored one, which was kept.

    Details: `collection`, `received` and `stored` (milliseconds since the epoch).
    """


class SignatureError(SettingsError):
    """A collection's records could not be shown to be the signer's. Details: `collection`, `reason`."""


class AttachmentError(SettingsError):
    """An attachment's bytes are not the ones that its record describes."""


class NoMatchingRecordError(SettingsError):
    """No record, or more than one, fits what was asked for. Details: `collection`."""


class HubError(PywebmlError):
    """Model hub: base class."""


class ForbiddenURLError(HubError):
    """The allow and deny list does not let this address through. Details: `url`, `reason`.

    The reason is Firefox's: `DENIED` when an entry forbids the address, `DISALLOWED` when no entry allows it.
    """


class FileNotFoundOnHubError(HubError):
    """The hub has no such file. Details: `url`, `status`."""


class DownloadError(HubError):
    """The hub could not be reached, or stopped in the middle. Details: `url`; `status` and `retryAfter` (seconds) where
    the hub gave them."""


class IntegrityError(HubError):
    """Size, hash or kind of the bytes is wrong. Details: `url`, `expected`, `received`."""


class StoreError(PywebmlError):
    """Blob store: base class."""


class StoreUnavailableError(StoreError):
    """Storage is switched off, blocked or broken."""


class DamagedFileError(StoreError):
    """The surroundings lost bytes of a stored file. It was removed; the next try downloads it. Details: `key`."""


class ArchiveError(StoreError):
    """An archive or folder to import is not one of models, or not whole. Details: `path`."""


class QuotaExceededError(StoreError):
    """There is no room left in storage. Details: `needed`, `available`, `limit` where they are known, in bytes."""


class SessionError(PywebmlError):
    """ONNX Runtime: base class."""


class RuntimeStartError(SessionError):
    """The runtime could not be started."""


class ModelLoadError(SessionError):
    """The model could not be loaded. The message carries the runtime's own words."""


class InferenceError(SessionError):
    """A run failed, or its inputs do not fit the model. The message carries the runtime's own words."""


class SessionClosedError(SessionError):
    """The session or its worker is gone."""


class TokenizerError(PywebmlError):
    """A tokenizer file is not usable."""


class TaskError(PywebmlError):
    """Task: base class."""


class UnknownTaskError(TaskError):
    """There is no such task. Details: `task`."""


class InputError(TaskError):
    """The task cannot work on this input."""


class UnsupportedModelError(TaskError):
    """The task cannot use this model."""


class EngineError(PywebmlError):
    """Engine: base class."""


class EngineClosedError(EngineError):
    """The engine was terminated."""


class InspectionError(PywebmlError):
    """A file to look into is not what it seems, is damaged, or is larger than models are.

    Details: `offset` (in bytes) where one is known, `size`, `path`.
    """


class PrepareError(PywebmlError):
    """Preparing models and mirrors, outside the browser: base class."""


class SourceError(PrepareError):
    """The checkpoint is missing, not safe to read, or not the expected bytes."""


class ConversionError(PrepareError):
    """The model cannot be converted. The message carries the exporter's own words where there are any."""


class ToleranceError(PrepareError):
    """The converted model is too far from the original. Details: `dtype`, `max_abs_error`, `worst_cosine`."""


class RecordError(PrepareError):
    """A record cannot be published in a settings mirror. Details: `collection`."""
