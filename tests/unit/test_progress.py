from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.progress import FileName, ProgressEvent, TotalProgress, TransferProgress


def transfer(events: list[ProgressEvent]) -> TransferProgress:
    return TransferProgress(events.append, "downloading", "https://hub.example/model.onnx", {"file": "model.onnx"})


def test_a_download_reports_the_sequence_of_firefox() -> None:
    events: list[ProgressEvent] = []
    progress = transfer(events)
    progress.initiate()
    progress.expect(100)
    for count in (20, 30, 50):
        progress.advance(count)
    progress.done()

    assert [event.status_text for event in events] == [
        "initiate",
        "size_estimate",
        "in_progress",
        "in_progress",
        "done",
    ]
    assert [event.progress for event in events] == [0, 20, 50, 100, 100]
    assert [event.total_loaded for event in events] == [0, 20, 50, 100, 100]
    assert [event.current_loaded for event in events] == [0, 20, 30, 50, 0]
    assert all(event.metadata == {"file": "model.onnx"} for event in events)


def test_a_body_longer_than_announced_never_passes_100() -> None:
    events: list[ProgressEvent] = []
    progress = transfer(events)
    progress.initiate()
    progress.expect(10)
    progress.advance(25)
    progress.done()

    assert max(event.progress for event in events) == 100
    assert events[-1].total == events[-1].total_loaded == 25


def test_a_failed_download_ends_with_done_that_is_not_ok() -> None:
    events: list[ProgressEvent] = []
    progress = transfer(events)
    progress.initiate()
    progress.expect(10)
    progress.advance(4)
    progress.done(ok=False)

    assert (events[-1].status_text, events[-1].ok, events[-1].progress) == ("done", False, 40)


def test_events_cross_under_the_names_of_firefox() -> None:
    event = ProgressEvent("downloading", "in_progress", "u", 50.0, 5, 2, 10)

    assert event.to_dict() == {
        "type": "downloading",
        "statusText": "in_progress",
        "id": "u",
        "progress": 50.0,
        "totalLoaded": 5,
        "currentLoaded": 2,
        "total": 10,
        "units": "bytes",
        "ok": True,
        "metadata": {},
    }


def test_what_is_there_already_is_reached_in_one_step_and_never_goes_back() -> None:
    events: list[ProgressEvent] = []
    progress = transfer(events)
    progress.initiate()
    progress.expect(100)
    for loaded in (40, 40, 10, 100):
        progress.reach(loaded)
    progress.done()

    assert [event.total_loaded for event in events] == [0, 40, 100, 100]
    assert [event.current_loaded for event in events] == [0, 40, 60, 0]


# All files of an engine together


def event(
    file: str,
    status: Literal["initiate", "size_estimate", "in_progress", "done"],
    loaded: int,
    total: int,
    *,
    ok: bool = True,
) -> ProgressEvent:
    metadata = {"model": "a/b", "revision": "main", "file": file}
    return ProgressEvent("downloading", status, file, 0.0, loaded, 0, total, ok=ok, metadata=metadata)


def name(file: str) -> FileName:
    return "a/b", "main", file


def totals(events: list[ProgressEvent]) -> list[tuple[str, int, int]]:
    return [(e.status_text, e.total_loaded, e.total) for e in events if e.type == "loading"]


def started(sizes: dict[str, int], *before: ProgressEvent) -> tuple[TotalProgress, list[ProgressEvent]]:
    events: list[ProgressEvent] = []
    progress = TotalProgress(events.append, "engine-1", {"taskName": "t"})
    for one in before:
        progress(one)
    progress.start({name(file): size for file, size in sizes.items()})
    return progress, events


def test_total_of_the_plan_comes_first_and_what_is_done_already_counts() -> None:
    early = [event("config.json", "initiate", 0, 0), event("config.json", "done", 10, 10)]
    progress, events = started({"config.json": 10, "model.onnx": 90}, *early)
    progress(event("model.onnx", "initiate", 0, 0))
    progress(event("model.onnx", "size_estimate", 45, 90))
    progress(event("model.onnx", "done", 90, 90))
    progress.done()

    assert events[:2] == early
    assert totals(events) == [
        ("initiate", 10, 100),
        ("in_progress", 55, 100),
        ("in_progress", 100, 100),
        ("done", 100, 100),
    ]
    together = [e for e in events if e.type == "loading"]
    assert [e.progress for e in together] == [10, 55, 100, 100]
    assert [e.current_loaded for e in together] == [0, 45, 45, 0]
    assert together[0].metadata == {"taskName": "t", "files": 2, "totalObjectsSeen": 1}
    assert together[-1].metadata["totalObjectsSeen"] == 2


def test_file_of_unknown_size_makes_the_total_grow_when_it_is_known() -> None:
    progress, events = started({"known": 50, "unknown": 0})
    progress(event("known", "done", 50, 50))
    progress(event("unknown", "size_estimate", 20, 200))
    progress(event("unknown", "done", 200, 200))
    progress.done()

    assert totals(events) == [
        ("initiate", 0, 50),
        ("in_progress", 50, 50),
        ("in_progress", 70, 250),
        ("in_progress", 250, 250),
        ("done", 250, 250),
    ]


def test_start_from_scratch_is_no_step_back() -> None:
    progress, events = started({"a": 100})
    for loaded in (60, 0, 30, 80):
        progress(event("a", "in_progress", loaded, 100))
    progress.done()

    assert [loaded for _, loaded, _ in totals(events)] == [0, 60, 80, 100]


def test_file_that_is_smaller_or_larger_than_planned_ends_at_100() -> None:
    for size in (40, 160):
        progress, events = started({"a": 100})
        progress(event("a", "done", size, size))
        progress.done()
        assert totals(events)[-1] == ("done", max(100, size), max(100, size))
        assert events[-1].progress == 100


def test_files_that_are_not_planned_pass_and_do_not_count() -> None:
    progress, events = started({"a": 100})
    stranger = event("b", "in_progress", 50, 100)
    progress(stranger)

    assert events[-1] == stranger
    assert totals(events) == [("initiate", 0, 100)]


def test_failure_ends_with_done_that_is_not_ok() -> None:
    progress, events = started({"a": 100})
    progress(event("a", "in_progress", 30, 100))
    progress(event("a", "done", 30, 100, ok=False))
    progress.done(ok=False)

    assert totals(events)[-1] == ("done", 30, 100)
    assert (events[-1].ok, events[-1].progress) == (False, 30)


def test_without_a_plan_there_is_nothing_to_end() -> None:
    events: list[ProgressEvent] = []
    TotalProgress(events.append, "engine-1", {}).done(ok=False)
    assert events == []


def test_engine_whose_files_have_no_bytes_to_load_ends_at_100() -> None:
    progress, events = started({})
    progress.done()
    assert (events[-1].progress, events[-1].total) == (100, 0)


EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from(["a", "b", "c", "stranger"]),
        st.sampled_from(["initiate", "size_estimate", "in_progress", "done"]),
        st.integers(0, 200),
        st.integers(0, 200),
        ok=st.booleans(),
    ),
    max_size=20,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 150)), EVENTS, EVENTS, st.booleans())
def test_whatever_files_tell_totals_never_shrink_and_a_success_ends_at_100(
    sizes: dict[str, int], before: list[ProgressEvent], after: list[ProgressEvent], ok: bool
) -> None:
    progress, events = started(sizes, *before)
    for one in after:
        progress(one)
    progress.done(ok=ok)

    assert [one for one in events if one.type != "loading"] == before + after
    together = [one for one in events if one.type == "loading"]
    assert together[0].total == sum(sizes.values())
    assert [one.status_text for one in together] == ["initiate", *["in_progress"] * (len(together) - 2), "done"]
    loaded, total = 0, 0
    for one in together:
        assert loaded <= one.total_loaded <= one.total
        assert total <= one.total
        assert one.current_loaded == (one.total_loaded - loaded if one is not together[0] else 0)
        assert 0 <= one.progress <= 100
        loaded, total = one.total_loaded, one.total
    assert together[-1].ok is ok
    if ok:
        assert (together[-1].progress, loaded) == (100, total)


def test_metadata_of_any_kind_is_no_accident() -> None:
    metadata: list[Any] = [{}, {"file": None}, {"model": 5, "revision": [], "file": {}}]
    progress, events = started({"a": 1})
    for one in metadata:
        progress(ProgressEvent("importing", "in_progress", "x", metadata=one))
    assert len(events) == 1 + len(metadata)


@pytest.mark.parametrize("kind", ["loading", "importing"])
def test_our_own_kinds_cross_as_they_are(kind: Literal["loading", "importing"]) -> None:
    assert ProgressEvent(kind, "initiate", "x").to_dict()["type"] == kind
