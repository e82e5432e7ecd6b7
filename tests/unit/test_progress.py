from __future__ import annotations

from pywebml.progress import ProgressEvent, TransferProgress


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
