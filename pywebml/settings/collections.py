"""Which record of a collection is meant.

Source: Firefox, `toolkit/components/ml`: filters are strict equality, a missing field never matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pywebml.errors import NoMatchingRecordError
from pywebml.settings.versions import compare_versions

Record = Mapping[str, Any]


def select_runtime(records: Sequence[Record], *, name: str, version: str) -> Record:
    """The record of a runtime file that the shipped glue can drive: of several the one with the highest version.

    A record's `version` is of its own series, and only the one that begins with the runtime's major is looked at. Its
    `release` names the runtime's own version (`v1.30.0`) and must be exactly the glue's; where a record has none, its
    `version` must be.

    Args:
        records: Of `ml-onnx-runtime`.
        name: File name.
        version: Version of the glue.

    Raises:
        NoMatchingRecordError: None, or two of the same version, or one does not tell its version.
    """
    named = [record for record in records if record.get("name") == name]
    silent = [record for record in named if not isinstance(record.get("version"), str) or not record["version"]]
    if silent:
        raise _no_runtime(named, f"record {silent[0].get('id')} does not tell its version", name, version)
    major = int(version.partition(".")[0])
    fitting = [
        record
        for record in named
        # As Firefox has it: pre-releases of a major belong to it, those of the next one do not.
        if compare_versions(f"{major}.0a", record["version"]) <= 0
        and compare_versions(record["version"], f"{major + 1}.0a") < 0
        and str(record.get("release") or record["version"]).removeprefix("v") == version
    ]
    if not fitting:
        raise _no_runtime(records, "none of them is", name, version)
    best = fitting[0]
    for record in fitting[1:]:
        if compare_versions(record["version"], best["version"]) > 0:
            best = record
    equal = [record for record in fitting if compare_versions(record["version"], best["version"]) == 0]
    if len(equal) > 1:
        names = ", ".join(str(record.get("id")) for record in equal)
        raise _no_runtime(equal, f"the records {names} have the same version", name, version)
    return best


def _no_runtime(records: Sequence[Record], reason: str, name: str, version: str) -> NoMatchingRecordError:
    found = [f"{record.get('name')} {record.get('version')}" for record in records]
    return NoMatchingRecordError(
        f"ml-onnx-runtime must have one newest record for {name} {version}, which this build can drive, but {reason}. "
        f"It lists: {', '.join(found) or 'nothing'}. Sync the settings, or use the build of pywebml that belongs to "
        "this settings server.",
        collection="ml-onnx-runtime",
        found=found,
    )


def select_options(
    records: Sequence[Record],
    *,
    feature_id: str | None = None,
    task_name: str | None = None,
    model_id: str | None = None,
) -> Record | None:
    """The record with the options of a feature, else of a task.

    Args:
        records: Of `ml-inference-options`.
        feature_id: Looked up first.
        task_name: Looked up when there is no `feature_id`, or no record has it.
        model_id: Narrows both look-ups.

    Returns:
        The record, or None when nothing is listed.

    Raises:
        NoMatchingRecordError: More than one.
    """
    for field, value in (("featureId", feature_id), ("taskName", task_name)):
        if not value:
            continue
        wanted = {field: value} | ({"modelId": model_id} if model_id else {})
        fitting = [record for record in records if all(record.get(name) == v for name, v in wanted.items())]
        if len(fitting) > 1:
            found = [str(record.get("id")) for record in fitting]
            raise NoMatchingRecordError(
                f"ml-inference-options has {len(fitting)} records with {wanted}: {', '.join(found)}. Say more (a "
                "model id, a feature id), or remove all but one of them on the settings server.",
                collection="ml-inference-options",
                found=found,
            )
        if fitting:
            return fitting[0]
    return None
