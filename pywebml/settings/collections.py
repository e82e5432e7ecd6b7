"""Which record of a collection is meant.

Source: Firefox, `toolkit/components/ml`: filters are strict equality, a missing field never matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pywebml.errors import NoMatchingRecordError

Record = Mapping[str, Any]


def select_runtime(records: Sequence[Record], *, name: str, version: str) -> Record:
    """The record of a runtime file that the shipped glue can drive.

    Args:
        records: Of `ml-onnx-runtime`.
        name: File name.
        version: Version of the glue; only a record of exactly this one will do.

    Raises:
        NoMatchingRecordError: None, or more than one.
    """
    fitting = [record for record in records if record.get("name") == name and record.get("version") == version]
    if len(fitting) != 1:
        found = [f"{record.get('name')} {record.get('version')}" for record in fitting or records]
        raise NoMatchingRecordError(
            f"ml-onnx-runtime has {len(fitting)} records for {name} {version}, which this build can drive, but must "
            f"have one. It lists: {', '.join(found) or 'nothing'}. Sync the settings, or use the build of pywebml "
            "that belongs to this settings server.",
            collection="ml-onnx-runtime",
            found=found,
        )
    return fitting[0]


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
