"""The table of tasks."""

from __future__ import annotations

from typing import Any

import pytest

from pywebml.errors import TaskError, UnknownTaskError
from pywebml.tasks import TaskContext, base, get_task, task, task_names

CONTEXT = TaskContext("a/b", None, None, {})


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers goes with it."""
    monkeypatch.setattr(base, "_tasks", dict(base._tasks))


def test_feature_extraction_is_there_with_its_default_model() -> None:
    definition = get_task("feature-extraction")
    assert (definition.modules, definition.tokenizer) == (("model",), True)
    assert definition.default_model == "sentence-transformers/all-MiniLM-L6-v2"


async def test_class_is_registered_and_handed_back() -> None:
    class Echo:
        def __init__(self, context: TaskContext) -> None:
            self.context = context

        async def run(self, text: str) -> str:
            return text

    assert task("echo", modules=("model",), tokenizer=True, default_model="a/b")(Echo) is Echo
    definition = get_task("echo")
    assert (definition.modules, definition.tokenizer, definition.default_model) == (("model",), True, "a/b")
    built = definition.build(CONTEXT)
    assert isinstance(built, Echo)
    assert built.context is CONTEXT
    assert await built.run("x") == "x"


async def test_function_gets_the_context_first() -> None:
    async def echo(context: TaskContext, text: str, *, times: int = 1) -> tuple[TaskContext, str]:
        return context, text * times

    assert task("echo")(echo) is echo
    definition = get_task("echo")
    assert (definition.modules, definition.tokenizer, definition.default_model) == ((), False, None)
    assert await definition.build(CONTEXT).run("x", times=2) == (CONTEXT, "xx")


async def test_later_registration_replaces_the_earlier_one() -> None:
    @task("echo")
    async def first(_context: TaskContext) -> int:
        return 1

    @task("echo")
    async def second(_context: TaskContext) -> int:
        return 2

    assert await get_task("echo").build(CONTEXT).run() == 2
    assert task_names().count("echo") == 1


def test_names_are_in_alphabetical_order() -> None:
    async def nothing(_context: TaskContext) -> None: ...

    task("zebra")(nothing)
    task("ant")(nothing)
    assert task_names() == sorted(task_names())
    assert {"ant", "feature-extraction", "zebra"} <= set(task_names())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("feature_extraction", "Did you mean 'feature-extraction'"),
        ("chess", "Known tasks: .*feature-extraction"),
        ("", "Known tasks"),
    ],
)
def test_unknown_task_is_refused_with_what_there_is(name: str, words: str) -> None:
    with pytest.raises(UnknownTaskError, match=words) as caught:
        get_task(name)
    assert caught.value.details == {"task": name}


class Plain:
    def run(self) -> int:
        return 1


class Without:
    pass


def plain(_context: TaskContext) -> int:
    return 1


@pytest.mark.parametrize("builder", [Plain, Without, plain, "run", None])
def test_what_is_no_task_is_refused_when_it_is_registered(builder: Any) -> None:
    with pytest.raises(TaskError, match="async function"):
        task("odd")(builder)
    assert "odd" not in task_names()
