"""Checkpoints of every text architecture, small and with fixed random weights, and what runs their exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedModel

from pywebml.prepare.exporting.texts import SENTENCES
from pywebml.prepare.parts import Case
from pywebml.prepare.quiet import quiet

_ENCODER = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "embedding_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}
_LLAMA = {**_ENCODER, "num_hidden_layers": 2, "num_key_value_heads": 2}
# Prompts of the tests are longer than this.
_SLIDING = {"sliding_window": 6}
_GPT = {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}

ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "albert": _ENCODER,
    "bert": _ENCODER,
    "camembert": {**_ENCODER, **_ROBERTA},
    "convbert": _ENCODER,
    "deberta": {**_ENCODER, **_DISENTANGLED},
    "deberta-v2": {
        **_ENCODER,
        **_DISENTANGLED,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "type_vocab_size": 0,
    },
    "distilbert": {"vocab_size": 120, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4, **_ENCODER},
    "electra": _ENCODER,
    "mobilebert": {**_ENCODER, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert": {
        **_ENCODER,
        "num_hidden_layers": 2,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "mpnet": {**_ENCODER, "pad_token_id": 1},
    "roberta": {**_ENCODER, **_ROBERTA},
    "roformer": _ENCODER,
    "squeezebert": _ENCODER,
    "xlm": {**_ENCODER, "emb_dim": 32, "n_layers": 1, "n_heads": 4},
    "xlm-roberta": {**_ENCODER, **_ROBERTA},
}
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "bloom": {"vocab_size": 120, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**_GPT, "rotary_dim": 8},
    "cohere": _LLAMA,
    "falcon": {**_ENCODER, "num_hidden_layers": 2},
    "gemma": {**_LLAMA, "num_hidden_layers": 1, "head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {**_LLAMA, **_SLIDING, "head_dim": 8},
    "gemma3_text": {**_LLAMA, **_SLIDING, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "glm": {**_LLAMA, "head_dim": 8},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        **_ENCODER,
        "num_hidden_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
    },
    "gpt_neox": {**_ENCODER, "num_hidden_layers": 2},
    "gptj": {**_GPT, "rotary_dim": 8},
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": {**_LLAMA, **_SLIDING},
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "opt": {**_ENCODER, "num_hidden_layers": 2, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {**_LLAMA, "num_hidden_layers": 1, "num_key_value_heads": 4},
    "phi3": {
        **_LLAMA,
        "num_hidden_layers": 1,
        # Prompts of the tests are shorter and longer than the original length, which changes all frequencies.
        "original_max_position_embeddings": 12,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 12,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
        },
    },
    "qwen2": {**_LLAMA, **_SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_LLAMA, "num_hidden_layers": 1, "head_dim": 16},
    "smollm3": {**_LLAMA, "no_rope_layers": [1, 0]},
    "stablelm": _LLAMA,
    "starcoder2": {**_LLAMA, **_SLIDING},
}


def tiny_tokenizer() -> Tokenizer:
    """Whole words of the sentences that conversions compare with."""
    pieces = {piece for sentence in SENTENCES for piece in sentence.lower().replace(".", " .").split()}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(pieces)]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(words[:4])
    return tokenizer


def write_tiny_checkpoint(
    folder: Path, model_type: str, auto_class: str, config: Mapping[str, Any], *, spread: float = 1.0
) -> None:
    """A checkpoint with the tokenizer from above.

    Args:
        folder: Is made.
        model_type: Of the configuration.
        auto_class: Of transformers.
        config: Its entries.
        spread: Of the weights; with small ones layers do not make differences larger.
    """
    with quiet():
        torch.manual_seed(7)
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(
            AutoConfig.for_model(model_type, **config)
        )
        # Biases and norms begin as zeros and ones, which would hide that an export loses them.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
            else:
                parameter.data *= spread
        model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"model_max_length": 64, "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}', encoding="utf-8"
    )


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """With one thread, since the tests share the machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def relative_error(session: onnxruntime.InferenceSession, case: Case) -> float:
    """Of all outputs of a case the largest difference, over the largest number of that output, where it counts."""
    names = list(case.expected)
    errors = []
    for name, answer in zip(names, session.run(names, dict(case.feeds)), strict=True):
        expected = case.expected[name]
        assert answer.shape == expected.shape, name
        kept = np.broadcast_to(case.kept.get(name, np.ones(1, bool)), expected.shape)
        assert np.isfinite(answer[kept]).all(), name
        errors.append(float(np.abs(answer - expected)[kept].max() / np.abs(expected[kept]).max()))
    return max(errors)


def left_padded(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and mask, both [batch, sequence]."""
    longest = max(len(row) for row in rows)
    ids = np.array([[pad] * (longest - len(row)) + list(row) for row in rows], np.int64)
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows], np.int64)
    return ids, mask
