"""`pipeline(...)` and `AutoTokenizer`, for Hugging Face habits."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pywebml.abort import AbortSignal
from pywebml.engine import Engine, create_engine
from pywebml.loading import load_tokenizer
from pywebml.options import PipelineOptions
from pywebml.planning import DEFAULT_REVISION
from pywebml.platform import get_platform
from pywebml.progress import ProgressCallback, ignore_progress
from pywebml.sources import model_hub
from pywebml.tokenization import Tokenizer


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


class AutoTokenizer:
    """Tokenizers by model id."""

    @staticmethod
    async def from_pretrained(
        model: str,
        *,
        revision: str | None = None,
        on_progress: ProgressCallback = ignore_progress,
        **fields: Any,
    ) -> Tokenizer:
        """The tokenizer of a model, from the store or, the first time, from the hub.

        Args:
            model: `organisation/name`.
            revision: Branch, tag or commit; default `main`.
            on_progress: Gets a `ProgressEvent` for every step of every file.
            **fields: Fields of `PipelineOptions` that choose a hub, such as `model_hub`.

        Raises:
            OptionsError: A name is not allowed, or no hub is configured.
            HubError: The files could not be fetched.
            TokenizerError: They are not usable.
        """
        options = PipelineOptions.from_mapping({**fields, "model_id": model, "model_revision": revision})
        hub = model_hub(await get_platform(), options=options)
        return await load_tokenizer(hub, model, revision or DEFAULT_REVISION, on_progress=on_progress)
