"""`pipeline(...)`, for Hugging Face habits."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pywebml.abort import AbortSignal
from pywebml.engine import Engine, create_engine
from pywebml.progress import ProgressCallback


class Pipeline:
    """An engine that is called like a function."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def __call__(self, *args: Any, signal: AbortSignal | None = None, **options: Any) -> Any:
        """The same as `Engine.run`."""
        return await self.engine.run(*args, signal=signal, **options)

    async def terminate(self) -> None:
        """End the engine."""
        await self.engine.terminate()

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.terminate()


async def pipeline(
    task: str,
    model: str | None = None,
    *,
    revision: str | None = None,
    on_progress: ProgressCallback | None = None,
    signal: AbortSignal | None = None,
    **fields: Any,
) -> Pipeline:
    """Load a task, called as in transformers.

    Args:
        task: Hugging Face task name.
        model: `organisation/name`; default the task's own.
        revision: Branch, tag or commit.
        on_progress: See `create_engine`.
        signal: See `create_engine`.
        **fields: Further fields of `PipelineOptions`, such as `dtype`.

    Raises:
        PywebmlError: See `create_engine`.
    """
    engine = await create_engine(
        on_progress=on_progress, signal=signal, task_name=task, model_id=model, model_revision=revision, **fields
    )
    return Pipeline(engine)
