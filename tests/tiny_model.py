"""A model of a few kilobytes in hub layout, whose output a test can work out by itself; the same bytes every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from tests.contract.make_models import model, value

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat", "##s", "forever")
"""The vocabulary: a word's place is its id."""
FOREVER = "forever"
"""A text with this word keeps an `endless` model computing until it is stopped."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SCALES = {"fp32": 1.0, "q8": 2.0}
"""What a dtype's vectors are multiplied by, so that a result tells which file was loaded."""
FILES = {"fp32": "onnx/model.onnx", "q8": "onnx/model_quantized.onnx"}
MASK_WEIGHT = 0.5
TYPE_WEIGHT = 0.25
_ROUNDS = 2**31

_INPUT_WEIGHTS = {"attention_mask": MASK_WEIGHT, "token_type_ids": TYPE_WEIGHT}


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """What to write.

    Attributes:
        inputs: Which of `INPUTS` (or others) the graph declares.
        output: Name of its output.
        hidden: Numbers per token.
        rank: 3: (batch, tokens, hidden); 2: (batch, hidden).
        output_type: ONNX element type of the output.
        endless: Whether the word `FOREVER` keeps it computing.
        external_data: Whether the weights lie in a file of their own, as `config.json` then says.
        corrupt: Whether the graphs are cut off in the middle.
        manifest: Whether `manifest.json` lists everything.
        config: Further entries of `config.json`.
        tokenizer_config: Further entries of `tokenizer_config.json`.
    """

    inputs: tuple[str, ...] = INPUTS
    output: str = "last_hidden_state"
    hidden: int = 8
    rank: int = 3
    output_type: int = TensorProto.FLOAT
    endless: bool = False
    external_data: bool = False
    corrupt: bool = False
    manifest: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write all files into `folder`, which is made."""
        for path, data in self.files().items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """Path to bytes."""
        config: dict[str, Any] = {"model_type": "bert", "max_position_embeddings": 16}
        if self.external_data:
            config["transformers.js_config"] = {"use_external_data_format": True}
        files = {
            "config.json": _json(config | dict(self.config)),
            "tokenizer.json": _json(_tokenizer()),
            "tokenizer_config.json": _json({"tokenizer_class": "BertTokenizer"} | dict(self.tokenizer_config)),
        }
        for dtype, path in FILES.items():
            graph, data = self._graph(SCALES[dtype], Path(path).name)
            files[path] = graph[: len(graph) // 2] if self.corrupt else graph
            if data is not None:
                files[f"{path}_data"] = data
        if self.manifest:
            entries = {path: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for path, d in files.items()}
            files["manifest.json"] = _json({"files": entries})
        return files

    def _graph(self, scale: float, name: str) -> tuple[bytes, bytes | None]:
        """The `.onnx` file, and the file of its weights if that is another one."""
        weights = table(self.hidden) * np.float32(scale)
        initializers = [numpy_helper.from_array(weights, "table")]
        nodes = [helper.make_node("Gather", ["table", "input_ids"], ["sum_0"])]
        total = "sum_0"
        for index, extra in enumerate((one for one in self.inputs if one in _INPUT_WEIGHTS), start=1):
            initializers.append(numpy_helper.from_array(np.array(_INPUT_WEIGHTS[extra], np.float32), f"weight_{index}"))
            nodes += [
                helper.make_node("Cast", [extra], [f"float_{index}"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"float_{index}", f"weight_{index}"], [f"part_{index}"]),
                helper.make_node("Unsqueeze", [f"part_{index}", "last_axis"], [f"column_{index}"]),
                helper.make_node("Add", [total, f"column_{index}"], [f"sum_{index}"]),
            ]
            total = f"sum_{index}"
        initializers.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
        if self.endless:
            nodes += _endless_nodes(total, initializers)
            total = "after_loop"
        if self.rank == 2:
            nodes.append(helper.make_node("ReduceMean", [total], ["flat"], axes=[1], keepdims=0))
            total = "flat"
        nodes.append(helper.make_node("Cast", [total], [self.output], to=self.output_type))
        shape = ("batch_size", "sequence_length", self.hidden)
        made = model(
            nodes,
            [value(name, TensorProto.INT64, "batch_size", "sequence_length") for name in self.inputs],
            [value(self.output, self.output_type, *(shape if self.rank == 3 else shape[::2]))],
            tuple(initializers),
        )
        data = None
        if self.external_data:
            data = weights.tobytes()
            stored = made.graph.initializer[0]
            set_external_data(stored, f"{name}_data", offset=0, length=len(data))
            stored.ClearField("raw_data")
        graph: bytes = made.SerializeToString(deterministic=True)
        return graph, data


def table(hidden: int = 8) -> NDArray[np.float32]:
    """The vector of every word."""
    return np.random.default_rng(3).standard_normal((len(WORDS), hidden)).astype(np.float32)


def expected_hidden(rows: list[list[str]], *, dtype: str = "fp32", hidden: int = 8) -> NDArray[np.float32]:
    """The output for rows of words, `[PAD]` included, with all three inputs and one text per row."""
    ids = np.array([[WORDS.index(word) for word in row] for row in rows])
    mask = (ids != 0).astype(np.float32)[..., np.newaxis]
    return np.asarray(table(hidden)[ids] * np.float32(SCALES[dtype]) + mask * np.float32(MASK_WEIGHT))


def _endless_nodes(total: str, initializers: list[Any]) -> list[Any]:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Add", ["state", "zero"], ["state_out"]),
        ],
        "body",
        [value("round", TensorProto.INT64), value("condition", TensorProto.BOOL), value("state", TensorProto.FLOAT)],
        [value("condition_out", TensorProto.BOOL), value("state_out", TensorProto.FLOAT)],
    )
    initializers += [
        numpy_helper.from_array(np.array(WORDS.index(FOREVER)), "forever"),
        numpy_helper.from_array(np.array(_ROUNDS), "rounds"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    return [
        helper.make_node("Equal", ["input_ids", "forever"], ["is_forever"]),
        helper.make_node("Cast", ["is_forever"], ["is_forever_int"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["is_forever_int"], ["any_forever"], keepdims=0),
        helper.make_node("Mul", ["any_forever", "rounds"], ["trips"]),
        helper.make_node("Loop", ["trips", "", "zero"], ["looped"], body=body),
        helper.make_node("Add", [total, "looped"], ["after_loop"]),
    ]


def _tokenizer() -> dict[str, Any]:
    special = [
        {
            "id": index,
            "content": WORDS[index],
            "special": True,
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for index in range(4)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: index for index, word in enumerate(WORDS)},
        },
    }


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()
