"""feature-extraction: texts to vectors.

Options and results follow the Transformers.js pipeline of the same name; binary precisions follow
sentence-transformers (`quantize_embeddings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pywebml.errors import InferenceError, InputError, UnsupportedModelError
from pywebml.platform import Array, Session
from pywebml.tasks.base import TaskContext, task

Floats: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.int64]

OUTPUT_NAMES = ("last_hidden_state", "logits", "token_embeddings")
"""Names under which models give their token vectors, in the order in which they are looked for."""

DEFAULT_BATCH_SIZE = 32
_SMALLEST_COUNT = 1e-9
_SMALLEST_NORM = 1e-12


def _mean(hidden: Floats, mask: Mask) -> Floats:
    # A product of matrices sums the tokens without a temporary array of the size of `hidden`.
    weights = mask.astype(hidden.dtype)
    sums = np.matmul(weights[:, np.newaxis, :], hidden)[:, 0]
    counts = np.add.reduce(weights, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(counts, _SMALLEST_COUNT))


def _first_token(hidden: Floats, mask: Mask) -> Floats:
    first = mask.argmax(axis=1)
    return np.asarray(hidden[np.arange(len(hidden)), first])


def _last_token(hidden: Floats, mask: Mask) -> Floats:
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    return np.asarray(hidden[np.arange(len(hidden)), last])


POOLINGS: Mapping[str, Callable[[Floats, Mask], Floats]] = {
    "mean": _mean,
    "cls": _first_token,
    "first_token": _first_token,
    "last_token": _last_token,
    "eos": _last_token,
}
"""(batch, length, hidden) and mask (batch, length) to (batch, hidden). Both follow the mask, so padding on either
side is left out."""

PRECISIONS = ("binary", "ubinary")


@task(
    "feature-extraction",
    modules=("model",),
    tokenizer=True,
    default_model="sentence-transformers/all-MiniLM-L6-v2",
)
class FeatureExtraction:
    """Texts to vectors with an encoder model."""

    def __init__(self, context: TaskContext) -> None:
        if context.tokenizer is None or context.config is None:
            raise UnsupportedModelError(f"{context.model_id} has no tokenizer.", model=context.model_id)
        self._tokenizer = context.tokenizer
        self._session: Session = context.sessions["model"]
        self._inputs = [info.name for info in self._session.inputs]
        self._output = _token_output(context.model_id, self._session)
        positions = context.config.positive_int("max_position_embeddings")
        self._max_length = min(self._tokenizer.model_max_length, positions or self._tokenizer.model_max_length)
        self._model_id = context.model_id

    async def run(
        self,
        texts: str | Sequence[str],
        *,
        pooling: str = "none",
        normalize: bool = False,
        quantize: bool = False,
        precision: str = "binary",
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Array:
        """Embed one text or several.

        Args:
            texts: A text, or texts. Longer than the model can take, they are cut at the end.
            pooling: `none`, `mean`, `cls` (or `first_token`), `last_token` (or `eos`).
            normalize: Divide every vector by its Euclidean length.
            quantize: Keep one bit per number.
            precision: `binary` (int8) or `ubinary` (uint8), used with `quantize`.
            batch_size: Texts per run of the model, when there is pooling.

        Returns:
            float32 of shape (texts, hidden), or (texts, tokens, hidden) without pooling; one text counts as a list
            of one. Quantized: int8 or uint8 of shape (texts, hidden / 8), the first number in the highest bit.

        Raises:
            InputError: Not texts, none at all, or options that do not go together.
            InferenceError: The model failed.
        """
        batch = _checked_texts(texts)
        _check_options(pooling, quantize, precision, batch_size)

        # Without pooling all texts share one length, so they go through the model together.
        step = batch_size if pooling != "none" else len(batch)
        pieces = [await self._embed(batch[start : start + step], pooling) for start in range(0, len(batch), step)]
        vectors = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        if normalize:
            lengths = np.sqrt(np.vecdot(vectors, vectors))
            vectors = vectors / np.maximum(lengths, _SMALLEST_NORM)[..., np.newaxis]
        return _to_bits(vectors, precision) if quantize else vectors

    async def _embed(self, texts: Sequence[str], pooling: str) -> Floats:
        encoded = self._tokenizer(texts, max_length=self._max_length)
        # An export may leave out inputs that its model never reads, and no model gets more than it declares.
        missing = [name for name in self._inputs if name not in encoded]
        if missing:
            raise UnsupportedModelError(
                f"{self._model_id} asks for the inputs {', '.join(missing)}, which its tokenizer does not make "
                f"({', '.join(encoded)}). Use an encoder model exported for feature-extraction.",
                model=self._model_id,
            )
        results = await self._session.run({name: encoded[name] for name in self._inputs}, outputs=[self._output])
        hidden = results[self._output]
        if not isinstance(hidden, np.ndarray) or hidden.ndim != 3 or hidden.dtype.kind != "f":
            shape, dtype = getattr(hidden, "shape", None), getattr(hidden, "dtype", None)
            raise InferenceError(
                f"{self._model_id} gave '{self._output}' of shape {shape} and type {dtype}; expected floats of shape "
                "(texts, tokens, hidden). Use an encoder model exported for feature-extraction.",
                model=self._model_id,
            )
        # Models in half precision may give float16, in which sums would lose too much.
        hidden = hidden.astype(np.float32, copy=False)
        return hidden if pooling == "none" else POOLINGS[pooling](hidden, encoded["attention_mask"])


def _token_output(model_id: str, session: Session) -> str:
    names = [info.name for info in session.outputs]
    for name in OUTPUT_NAMES:
        if name in names:
            return name
    raise UnsupportedModelError(
        f"{model_id} has the outputs {', '.join(names)}; feature-extraction needs one of {', '.join(OUTPUT_NAMES)}.",
        model=model_id,
    )


def _checked_texts(texts: object) -> list[str]:
    batch = [texts] if isinstance(texts, str) else texts
    if not isinstance(batch, list | tuple) or not all(isinstance(text, str) for text in batch):
        raise InputError(
            f"feature-extraction takes a text or a list of texts, not {_describe(texts)}.",
            task="feature-extraction",
        )
    if not batch:
        raise InputError("The list of texts is empty; give at least one text.", task="feature-extraction")
    return list(batch)


def _describe(value: object) -> str:
    if isinstance(value, list | tuple):
        wrong = next(item for item in value if not isinstance(item, str))
        return f"a list with {type(wrong).__name__} in it"
    return type(value).__name__


def _check_options(pooling: str, quantize: bool, precision: str, batch_size: int) -> None:
    if not isinstance(pooling, str) or (pooling != "none" and pooling not in POOLINGS):
        raise InputError(f"pooling={pooling!r} is not one of none, {', '.join(POOLINGS)}.", pooling=str(pooling))
    if quantize and pooling == "none":
        raise InputError("quantize needs one vector per text: choose a pooling, such as mean.", pooling="none")
    if quantize and precision not in PRECISIONS:
        raise InputError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}.", precision=str(precision))
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r} is not a whole number above 0.", batch_size=str(batch_size))


def _to_bits(vectors: Floats, precision: str) -> Array:
    if vectors.shape[-1] % 8:
        raise InputError(
            f"quantize packs eight numbers into a byte; this model's vectors have {vectors.shape[-1]}.",
            hidden=vectors.shape[-1],
        )
    packed = np.packbits(vectors > 0, axis=-1)
    # The signed form is the unsigned one moved down by 128, as sentence-transformers stores it.
    return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
