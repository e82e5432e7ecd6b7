"""What a task is, and the table of tasks."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pywebml.errors import TaskError, UnknownTaskError
from pywebml.models import ModelConfig
from pywebml.platform import Session
from pywebml.tokenization import Tokenizer


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What an engine gives its task.

    Attributes:
        model_id: For messages.
        config: The model's `config.json`; None for a task without a model.
        tokenizer: None when the task did not ask for one.
        sessions: By module name (`model`, `encoder_model`, …).
        files: Bytes of the optional files that the model has, by path.
    """

    model_id: str
    config: ModelConfig | None
    tokenizer: Tokenizer | None
    sessions: Mapping[str, Session]
    files: Mapping[str, bytes] = field(default_factory=dict)


class Task(Protocol):
    """A loaded task. Built once per engine, called for every run."""

    async def run(self, *args: Any, **options: Any) -> Any:
        """Work on one input. Arguments, options and result are those of the Hugging Face pipeline."""


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """A row of the table of tasks.

    Attributes:
        name: Hugging Face task name.
        build: Makes the task from what the engine loaded.
        modules: Model files it needs; none for a task that needs no model.
        tokenizer: Whether it needs a tokenizer.
        default_model: Used when neither settings nor caller name one.
        optional_files: Files of the model that it uses where there are any, such as `generation_config.json`.
    """

    name: str
    build: Callable[[TaskContext], Task]
    modules: tuple[str, ...]
    tokenizer: bool
    default_model: str | None
    optional_files: tuple[str, ...] = ()


_tasks: dict[str, TaskDefinition] = {}

Built = TypeVar("Built", bound=Callable[..., Any])


def task(
    name: str,
    *,
    modules: tuple[str, ...] = (),
    tokenizer: bool = False,
    default_model: str | None = None,
    optional_files: tuple[str, ...] = (),
) -> Callable[[Built], Built]:
    """Register a task: a class that is made from a `TaskContext` and has `async run`, or an async function whose
    first argument is the `TaskContext`.

    Args:
        name: What `task_name` will be. A later registration of the same name replaces the earlier one.
        modules: Model files that it needs, such as `("model",)`.
        tokenizer: Whether it needs the model's tokenizer.
        default_model: Used when neither settings nor caller name one.
        optional_files: Further files of the model that it uses where there are any; see `TaskContext.files`.

    Raises:
        TaskError: It is neither of these.
    """

    def register(builder: Built) -> Built:
        work = getattr(builder, "run", None) if isinstance(builder, type) else builder
        if not inspect.iscoroutinefunction(work):
            raise TaskError(
                f"The task '{name}' must be an async function, or a class with `async def run`, not {builder!r}.",
                task=name,
            )
        build: Callable[[TaskContext], Task] = builder if isinstance(builder, type) else _function_task(builder)
        _tasks[name] = TaskDefinition(name, build, modules, tokenizer, default_model, optional_files)
        return builder

    return register


def get_task(name: str) -> TaskDefinition:
    """The definition of a task.

    Raises:
        UnknownTaskError: There is none of this name.
    """
    if name not in _tasks:
        near = difflib.get_close_matches(name, _tasks, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known tasks: {', '.join(sorted(_tasks))}."
        raise UnknownTaskError(f"There is no task '{name}'. {hint}", task=name)
    return _tasks[name]


def task_names() -> list[str]:
    """All registered tasks, in alphabetical order."""
    return sorted(_tasks)


class _FunctionTask:
    def __init__(self, function: Callable[..., Coroutine[Any, Any, Any]], context: TaskContext) -> None:
        self._function = function
        self._context = context

    def run(self, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        # Not async itself: so the caller sees at once when the arguments do not fit.
        return self._function(self._context, *args, **options)


def _function_task(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[[TaskContext], Task]:
    return lambda context: _FunctionTask(function, context)
