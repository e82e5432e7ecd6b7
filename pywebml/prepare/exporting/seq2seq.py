"""Encoder-decoders: `encoder_model`, and `decoder_model_merged` for the first step and the later ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pywebml.prepare.exporting.merge import HIDDEN, USE_CACHE, merge_decoder, past_names, present_names, save_merged
from pywebml.prepare.exporting.rows import Loaded, Row, Table
from pywebml.prepare.exporting.signals import image_shape, noise
from pywebml.prepare.exporting.texts import SENTENCES, padding_token, tokenize
from pywebml.prepare.exporting.torch_export import BATCH, Dims, data_path, export_module
from pywebml.prepare.parts import Case, Part
from pywebml.prepare.source import TOKENIZER

ENCODER, DECODER = "encoder_model", "decoder_model_merged"
ENCODER_SEQUENCE, DECODER_SEQUENCE = "encoder_sequence_length", "decoder_sequence_length"
PAST_SEQUENCE = "past_decoder_sequence_length"
ENCODER_MASK = "encoder_attention_mask"
CACHED_STEPS = 3
LONGEST = 48
"""Of the texts of cases, in tokens."""

Batches = Callable[[Loaded], Sequence[Mapping[str, Tensor]]]
"""Gives what the encoder is fed: two batches of different sizes, with padding where there is a mask."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells encoder-decoders apart.

    Attributes:
        batches: What the encoder is fed.
        encoder_dims: Dimensions of its inputs that vary.
    """

    batches: Batches
    encoder_dims: Dims


@dataclass(frozen=True, slots=True)
class Caches:
    """Shapes of a decoder's caches.

    Attributes:
        layers: How many there are.
        own: Heads of self attention, and their size.
        cross: The same of attention to the encoder; none where it has no cache.
        width: Size of the encoder's states.
    """

    layers: int
    own: tuple[int, int]
    cross: tuple[int, int] | None
    width: int

    def tensor(self, name: str, batch: int, length: int) -> Tensor:
        """A cache of zeros by its name."""
        heads, size = self.cross if self.cross and ".encoder." in name else self.own
        return torch.zeros((batch, heads, length, size))

    def past(self) -> list[str]:
        """Names of the caches that go in, in order."""
        if self.cross is None:
            return [f"past_key_values.{i}.{name}" for i in range(self.layers) for name in ("key", "value")]
        return [n for i in range(self.layers) for kind in ("decoder", "encoder") for n in past_names(i, kind)]

    def present(self) -> list[str]:
        """Names of the caches of self attention that come out, in order."""
        if self.cross is None:
            return [f"present.{i}.{name}" for i in range(self.layers) for name in ("key", "value")]
        return [n for i in range(self.layers) for n in present_names(i, "decoder")]

    def present_of_encoder(self) -> list[str]:
        """Names of the caches of attention to the encoder that come out, in order."""
        return [n for i in range(self.layers) for n in present_names(i, "encoder")] if self.cross else []


class Encoder(nn.Module):
    """A model's encoder with inputs by position."""

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.input_names = input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """The last hidden state, [batch, sequence, width]."""
        output = self.encoder(**dict(zip(self.input_names, inputs, strict=True)), return_dict=True)
        hidden: Tensor = output.last_hidden_state
        return hidden


class Decoder(nn.Module):
    """A model's decoder and head with inputs by position, the caches among them."""

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...], caches: Caches) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names
        self.caches = caches

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits [batch, sequence, vocabulary], then keys and values of self attention by layer."""
        by_name = dict(zip(self.input_names, inputs, strict=True))
        caches = EncoderDecoderCache(*(_filled(by_name, self.caches, kind) for kind in ("decoder", "encoder")))
        hidden = by_name.get(HIDDEN)
        if hidden is None:
            # Its keys and values are in the caches; only its shape is looked at.
            key = by_name[past_names(0, "encoder")[0]]
            hidden = torch.zeros((key.shape[0], key.shape[2], self.caches.width))
        return decode(self.model, by_name["input_ids"], hidden, by_name.get(ENCODER_MASK), caches)


class CrossAttention(nn.Module):
    """The keys and values that a decoder makes of an encoder's output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """[batch, sequence, width] to keys and values by layer, each [batch, heads, sequence, size]."""
        caches = EncoderDecoderCache(DynamicCache(), DynamicCache())
        decode(self.model, torch.zeros((hidden.shape[0], 1), dtype=torch.int64), hidden, None, caches)
        return tuple(_tensors(caches.cross_attention_cache))


def decode(
    model: PreTrainedModel, input_ids: Tensor, hidden: Tensor, mask: Tensor | None, caches: EncoderDecoderCache
) -> tuple[Tensor, ...]:
    """One step; the caches grow by it.

    Returns:
        Logits, then keys and values of self attention by layer.
    """
    masks = {} if mask is None else {"attention_mask": mask}
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        decoder_input_ids=input_ids,
        past_key_values=caches,
        use_cache=True,
        return_dict=True,
        **masks,
    )
    return (output.logits, *_tensors(output.past_key_values.self_attention_cache))


def _tensors(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        yield from (layer.keys, layer.values)


def _filled(by_name: Mapping[str, Tensor], caches: Caches, attention: str) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(caches.layers):
        names = past_names(layer, attention)
        if caches.cross is None:
            names = (names[0].replace(".decoder", ""), names[1].replace(".decoder", ""))
        if names[0] in by_name:
            cache.update(by_name[names[0]], by_name[names[1]], layer)
    return cache


def parts(loaded: Loaded, kind: Kind) -> tuple[Part, ...]:
    """The two parts of an encoder-decoder."""
    return encoder_part(loaded, kind), decoder_part(loaded, kind)


def encoder_part(loaded: Loaded, kind: Kind) -> Part:
    """The encoder: its inputs to `last_hidden_state`."""
    names, output = tuple(kind.encoder_dims), "last_hidden_state"
    module = Encoder(loaded.model, names).eval()

    def write(path: Path, opset: int) -> None:
        examples = [kind.batches(loaded)[0][name] for name in names]
        # The output is as long as the input, or of one length.
        dims = {**kind.encoder_dims, output: kind.encoder_dims[names[0]]}
        export_module(module, examples, names, (output,), dims, path, opset)

    def cases() -> list[Case]:
        found = []
        for batch in kind.batches(loaded):
            with torch.no_grad():
                hidden = module(*(batch[name] for name in names))
            kept = {output: batch["attention_mask"].numpy()[..., np.newaxis] == 1} if "attention_mask" in batch else {}
            found.append(Case(_title(batch), _arrays(batch), {output: hidden.numpy()}, kept))
        return found

    return Part(ENCODER, names, (output,), write, cases)


def decoder_part(loaded: Loaded, kind: Kind) -> Part:
    """The decoder: tokens, the encoder's output and caches to `logits` and caches."""
    model, caches = loaded.model, caches_of(loaded, kind)
    has_mask = "attention_mask" in kind.encoder_dims
    fed = [*([ENCODER_MASK] if has_mask else []), "input_ids"]
    inputs = (*fed, HIDDEN, *caches.past(), *([USE_CACHE] if caches.cross else []))
    outputs = ("logits", *caches.present())
    if caches.cross:
        outputs = ("logits", *(name.replace("past_key_values", "present") for name in caches.past()))

    def write(path: Path, opset: int) -> None:
        _write_decoder(model, caches, fed, path, opset)

    def cases() -> list[Case]:
        return [case for batch in kind.batches(loaded) for case in _decoder_cases(model, kind, caches, batch)]

    return Part(DECODER, inputs, outputs, write, cases)


def caches_of(loaded: Loaded, kind: Kind) -> Caches:
    """What the caches look like, by running the model."""
    model = loaded.model
    batch = kind.batches(loaded)[0]
    found = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        hidden = Encoder(model, tuple(kind.encoder_dims)).eval()(*(batch[name] for name in kind.encoder_dims))
        decode(model, torch.zeros((len(hidden), 1), dtype=torch.int64), hidden, None, found)
    own, cross = (next(_tensors(it)).shape for it in (found.self_attention_cache, found.cross_attention_cache))
    # Transformers.js gives decoders of this kind no cache of attention to the encoder, as optimum does.
    decoder_type = getattr(getattr(model.config, "decoder", None), "model_type", None)
    return Caches(
        layers=len(found.self_attention_cache),
        own=(own[1], own[3]),
        cross=None if decoder_type == "gpt2" else (cross[1], cross[3]),
        width=hidden.shape[-1],
    )


def _write_decoder(model: PreTrainedModel, caches: Caches, fed: Sequence[str], path: Path, opset: int) -> None:
    names = [*fed, *([] if caches.cross else [HIDDEN]), *caches.past()]
    outputs = ["logits", *caches.present()]
    dims = _decoder_dims(caches)
    examples = _examples(caches)
    decoder = Decoder(model, tuple(names), caches).eval()
    export_module(decoder, [examples[name] for name in names], names, outputs, dims, path, opset)
    if caches.cross is None:
        return
    try:
        with TemporaryDirectory(dir=path.parent) as folder:
            cross_file = Path(folder) / "cross.onnx"
            cross_outputs = caches.present_of_encoder()
            cross = CrossAttention(model).eval()
            export_module(cross, [examples[HIDDEN]], [HIDDEN], cross_outputs, dims, cross_file, opset)
            save_merged(merge_decoder(path, cross_file, caches.layers), path)
    except BaseException:
        path.unlink(missing_ok=True)
        data_path(path).unlink(missing_ok=True)
        raise


def _decoder_dims(caches: Caches) -> Dims:
    of_encoder = {0: BATCH, 2: ENCODER_SEQUENCE}
    return {
        ENCODER_MASK: {0: BATCH, 1: ENCODER_SEQUENCE},
        "input_ids": {0: BATCH, 1: DECODER_SEQUENCE},
        HIDDEN: {0: BATCH, 1: ENCODER_SEQUENCE},
        **{name: of_encoder if ".encoder." in name else {0: BATCH, 2: PAST_SEQUENCE} for name in caches.past()},
        "logits": {0: BATCH, 1: DECODER_SEQUENCE},
        **{name: {0: BATCH, 2: f"{PAST_SEQUENCE} + {DECODER_SEQUENCE}"} for name in caches.present()},
        **dict.fromkeys(caches.present_of_encoder(), of_encoder),
    }


def _examples(caches: Caches) -> dict[str, Tensor]:
    batch, encoder_length, length, past_length = 2, 5, 3, 4
    found = {
        ENCODER_MASK: torch.ones((batch, encoder_length), dtype=torch.int64),
        "input_ids": torch.ones((batch, length), dtype=torch.int64),
        HIDDEN: torch.zeros((batch, encoder_length, caches.width)),
    }
    for name in caches.past():
        found[name] = caches.tensor(name, batch, encoder_length if ".encoder." in name else past_length)
    return found


def _decoder_cases(model: PreTrainedModel, kind: Kind, caches: Caches, batch: Mapping[str, Tensor]) -> Iterator[Case]:
    """A first step and cached ones, each on the caches that PyTorch has at that point."""
    encoder = Encoder(model, tuple(kind.encoder_dims)).eval()
    mask = batch.get("attention_mask")
    found = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        hidden = encoder(*(batch[name] for name in kind.encoder_dims))
        size = len(hidden)
        # As Transformers.js makes empty caches: every length is 0.
        past = {name: caches.tensor(name, size, 0).numpy() for name in caches.past()}
        tokens = torch.randint(1, _vocabulary(model), (size, size), generator=torch.Generator().manual_seed(size))
        for step in range(CACHED_STEPS + 1):
            feeds = {**_arrays({"input_ids": tokens, HIDDEN: hidden}), **past}
            if mask is not None:
                feeds[ENCODER_MASK] = mask.numpy()
            if caches.cross:
                feeds[USE_CACHE] = np.array([step > 0])
            logits, *own = (it.numpy() for it in decode(model, tokens, hidden, mask, found))
            expected = {"logits": logits, **dict(zip(caches.present(), own, strict=True))}
            kept = {}
            if step == 0 and caches.cross:
                of_encoder = [it.numpy() for it in _tensors(found.cross_attention_cache)]
                expected |= zip(caches.present_of_encoder(), of_encoder, strict=True)
                if mask is not None:
                    kept = dict.fromkeys(caches.present_of_encoder(), mask.numpy()[:, np.newaxis, :, np.newaxis] == 1)
            name = f"cached step {step}" if step else f"first step, {tokens.shape[1]} tokens"
            yield Case(f"{_title(batch)}: {name}", feeds, expected, kept)
            past = {name.replace("present", "past_key_values"): value for name, value in expected.items()} | {
                name: value for name, value in past.items() if step > 0 and ".encoder." in name
            }
            del past["logits"]
            tokens = torch.from_numpy(logits[:, -1:].argmax(-1))


def _vocabulary(model: PreTrainedModel) -> int:
    size: int = model.get_output_embeddings().weight.shape[0]  # type: ignore[no-untyped-call]
    return size


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _title(batch: Mapping[str, Tensor]) -> str:
    return "×".join(str(size) for size in next(iter(batch.values())).shape)


def token_batches(loaded: Loaded) -> list[dict[str, Tensor]]:
    """Sentences, padded; tokens by chance where the checkpoint has no tokenizer in its fast form."""
    if (loaded.checkpoint.folder / TOKENIZER).is_file():
        batches = [tokenize(loaded, texts, longest=LONGEST) for texts in (SENTENCES[:2], SENTENCES[2:5])]
        return [
            {"input_ids": torch.from_numpy(it.input_ids), "attention_mask": torch.from_numpy(it.attention_mask)}
            for it in batches
        ]
    generator = torch.Generator().manual_seed(0)
    found = []
    for lengths in ((7, 4), (5, 2, 3)):
        ids = torch.randint(3, _vocabulary(loaded.model), (len(lengths), max(lengths)), generator=generator)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(torch.int64)
        found.append({"input_ids": torch.where(mask == 1, ids, padding_token(loaded.config)), "attention_mask": mask})
    return found


def feature_batches(loaded: Loaded) -> list[dict[str, Tensor]]:
    """Spectrograms of the one length that Whisper takes."""
    shape = (loaded.config.num_mel_bins, 2 * loaded.config.max_source_positions)
    return [{"input_features": it} for it in noise(shape)]


def image_batches(loaded: Loaded) -> list[dict[str, Tensor]]:
    """Images of the size that the encoder was trained for."""
    return [{"pixel_values": it} for it in noise(image_shape(loaded.config.encoder))]


_TOKENS: Dims = {name: {0: BATCH, 1: ENCODER_SEQUENCE} for name in ("input_ids", "attention_mask")}
_TEXT = partial(parts, kind=Kind(token_batches, _TOKENS))
_SPEECH = partial(parts, kind=Kind(feature_batches, {"input_features": {0: BATCH}}))
_IMAGE = partial(parts, kind=Kind(image_batches, {"pixel_values": {0: BATCH}}))

_TEXT_ROW = Row("AutoModelForSeq2SeqLM", _TEXT)
_TEXT_ROWS = dict.fromkeys(("text2text-generation", "summarization", "translation"), _TEXT_ROW)
_IMAGE_ROW = Row("AutoModelForImageTextToText", _IMAGE)

ROWS: Table = {
    **dict.fromkeys(("bart", "blenderbot", "m2m_100", "marian", "mbart", "mt5", "t5"), _TEXT_ROWS),
    "whisper": {"automatic-speech-recognition": Row("AutoModelForSpeechSeq2Seq", _SPEECH)},
    "vision-encoder-decoder": {"image-to-text": _IMAGE_ROW, "document-question-answering": _IMAGE_ROW},
}
