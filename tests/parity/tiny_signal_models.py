"""Checkpoints of encoder-decoders and of models of images and sound, small and with fixed random weights."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from pywebml.prepare.architectures import ARCHITECTURES, export_model
from pywebml.prepare.convert import MIN_OPSET
from pywebml.prepare.parts import ExportedModel, Part
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import Checkpoint
from tests.parity.tiny_models import session_of, tiny_tokenizer

TOLERANCE = 1e-5
EVERY = os.environ.get("PYWEBML_EVERY_ARCHITECTURE") == "1"

_BART: dict[str, Any] = {
    "vocab_size": 120,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5: dict[str, Any] = {
    "vocab_size": 120,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
_WHISPER: dict[str, Any] = {
    **_BART,
    "num_mel_bins": 80,
    "max_source_positions": 24,
    "max_target_positions": 24,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
}
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
_GPT2: dict[str, Any] = {
    "vocab_size": 120,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_DINO: dict[str, Any] = {**_VIT, "image_size": 28, "patch_size": 14}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
_TEXT_TOWER: dict[str, Any] = {
    **_VIT,
    "vocab_size": 120,
    "max_position_embeddings": 24,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 6,
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
}
_WAVE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    "apply_spec_augment": False,
    # Those with another normalisation may have padded sounds, so a mask matters to them.
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


def _config(model_type: str, **entries: Any) -> Any:
    return transformers.AutoConfig.for_model(model_type, **entries)


def _pair(encoder: Any, decoder: Any) -> Callable[[], Any]:
    def config() -> Any:
        joined = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        joined.decoder_start_token_id, joined.pad_token_id, joined.eos_token_id = 2, 0, 3
        return joined

    return config


def _detr(model_type: str) -> Callable[[], Any]:
    def config() -> Any:
        backbone = _config("resnet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"])
        return _config(model_type, backbone_config=backbone, **_DETR, num_labels=5)

    return config


def _rt_detr() -> Any:
    backbone = _config(
        "rt_detr_resnet", embedding_size=8, **_STAGES, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    return _config(
        "rt_detr",
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 16, 32],
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        d_model=32,
        num_queries=6,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_labels=5,
    )


Configs = Mapping[str, Mapping[str, Any] | Callable[[], Any]]
"""`model_type`, perhaps with `/` and a variant, to what its configuration is made of."""

SEQ2SEQ: Configs = {
    "t5": _T5,
    "bart": _BART,
    "marian": {**_BART, "decoder_layers": 1, "decoder_start_token_id": 0},
    "whisper": _WHISPER,
    "vision-encoder-decoder": _pair(
        _config("vit", **_VIT), _config("gpt2", **_GPT2, add_cross_attention=True, is_decoder=True)
    ),
    "vision-encoder-decoder/trocr": _pair(
        _config("deit", **_VIT),
        _config(
            "trocr",
            **{name: size for name, size in _BART.items() if not name.startswith(("encoder_", "forced"))},
            cross_attention_hidden_size=32,
        ),
    ),
    "mt5": _T5,
    "mbart": _BART,
    "m2m_100": _BART,
    "blenderbot": _BART,
}
IMAGES: Configs = {
    "vit": {**_VIT, "num_labels": 5},
    "deit": {**_VIT, "num_labels": 5},
    "beit": {**_VIT, "num_labels": 5, "use_relative_position_bias": True, "use_mask_token": False},
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 5,
    },
    "convnext": {**_STAGES, "num_labels": 5},
    "convnextv2": {**_STAGES, "num_labels": 5},
    "dinov2": {**_DINO, "num_labels": 5},
    "dinov2_with_registers": {**_DINO, "num_labels": 5},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "num_labels": 5},
    "mobilenet_v1": {"depth_multiplier": 0.1, "num_labels": 5},
    "mobilenet_v2": {"depth_multiplier": 0.1, "num_labels": 5},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
        "num_labels": 5,
    },
    "resnet": {"embedding_size": 8, **_STAGES, "num_labels": 5},
    "clip": {
        "text_config": {**_TEXT_TOWER, "projection_dim": 24},
        "vision_config": {**_VIT, "projection_dim": 24},
        "projection_dim": 24,
    },
    "siglip": {"text_config": _TEXT_TOWER, "vision_config": _VIT},
    "detr": _detr("detr"),
    "table-transformer": _detr("table-transformer"),
    "yolos": {**_VIT, "image_size": [64, 96], "patch_size": 16, "num_detection_tokens": 6, "num_labels": 5},
    "rt_detr": _rt_detr,
}
SOUNDS: Configs = {
    **dict.fromkeys(("wav2vec2", "hubert", "unispeech", "unispeech-sat", "wavlm"), _WAVE),
    "audio-spectrogram-transformer": {
        **_VIT,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
        "max_length": 48,
        "num_mel_bins": 16,
        "num_labels": 5,
    },
}


@dataclass(frozen=True)
class Written:
    """A tiny model and its files.

    Attributes:
        folder: In hub layout, the checkpoint's weights beside it.
        exported: What it was cut into.
        sessions: Name of a part to its session.
    """

    folder: Path
    exported: ExportedModel
    sessions: Mapping[str, onnxruntime.InferenceSession]

    def part(self, name: str) -> Part:
        return next(part for part in self.exported.parts if part.name == name)

    def path(self, name: str) -> Path:
        return self.folder / "onnx" / f"{name}.onnx"

    def model(self) -> Any:
        auto_class = ARCHITECTURES[self.exported.model_type][self.exported.task].auto_class
        with quiet():
            return getattr(transformers, auto_class).from_pretrained(self.folder)

    def run(self, name: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        answers = self.sessions[name].run(None, dict(feeds))
        return dict(zip(self.part(name).outputs, answers, strict=True))


def choices(configs: Configs, always: Sequence[tuple[str, str]]) -> list[Any]:
    """Every model with every task as parameters; those that are not for always are for PYWEBML_EVERY_ARCHITECTURE=1."""
    return [
        pytest.param(
            (name, task),
            id=f"{name}-{task}",
            marks=pytest.mark.skipif(
                not EVERY and (name, task) not in always, reason="PYWEBML_EVERY_ARCHITECTURE=1 runs it"
            ),
        )
        for name in configs
        for task, row in ARCHITECTURES[name.partition("/")[0]].items()
        # Several tasks of one row are one thing under several names.
        if next(it for it, other in ARCHITECTURES[name.partition("/")[0]].items() if other is row) == task
    ]


def write_checkpoint(folder: Path, configs: Configs, name: str, task: str, *, spread: float = 1.0) -> None:
    """Save a tiny model with its tokenizer and its image processor.

    Args:
        folder: Is made.
        configs: Has the model.
        name: Of it.
        task: Says which class.
        spread: Of the weights; with small ones layers do not make differences larger.
    """
    model_type, made_of = name.partition("/")[0], configs[name]
    with quiet():
        torch.manual_seed(7)
        config = made_of() if callable(made_of) else transformers.AutoConfig.for_model(model_type, **made_of)
        model = _from_config(config, ARCHITECTURES[model_type][task].auto_class)
        _make_uneven(model, spread)
        # Random models seldom end by themselves.
        if model.can_generate():
            model.generation_config.max_length = None
        model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 64, "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}),
        encoding="utf-8",
    )
    (folder / "preprocessor_config.json").write_text(
        '{"do_center_crop": true, "crop_size": {"height": 64, "width": 64}}', encoding="utf-8"
    )


def write_model(folder: Path, configs: Configs, name: str, task: str) -> Written:
    """Save the checkpoint and export all its parts."""
    write_checkpoint(folder, configs, name, task)
    exported = export_model(Checkpoint(folder, "a test", ""), task)
    (folder / "onnx").mkdir()
    sessions = {}
    for part in exported.parts:
        path = folder / "onnx" / f"{part.name}.onnx"
        part.write(path, MIN_OPSET)
        sessions[part.name] = session_of(path)
    return Written(folder, exported, sessions)


def _from_config(config: Any, auto_class: str) -> PreTrainedModel:
    if isinstance(config, transformers.VisionEncoderDecoderConfig):
        return transformers.VisionEncoderDecoderModel(config)
    model: PreTrainedModel = getattr(transformers, auto_class).from_config(config)
    return model


def _make_uneven(model: PreTrainedModel, spread: float) -> None:
    """Weights as large as trained ones, and nothing left at zero or one, which would hide what an export loses."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in tables:
            continue
        if weight.ndim == 1:
            # Some norms begin at zero, behind which there is nothing to compare.
            weight.data.uniform_(0.8, 1.2)
        else:
            # Long rows of convolutions would make PyTorch's own rounding as large as what the tests allow.
            gain = spread * (1.5 if weight.ndim == 2 else 1.2)
            weight.data.normal_(std=gain * (len(weight) / weight.numel()) ** 0.5)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data += 0.1 * torch.rand_like(tensor)
    if isinstance(model, transformers.CLIPModel):
        # Texts and images with nothing in common would have similarities of nothing but noise.
        model.text_projection.weight.data.copy_(model.visual_projection.weight)
        model.text_model.final_layer_norm.bias.data += 2
        model.vision_model.post_layernorm.bias.data += 2


def transformers_js(request: Mapping[str, Any]) -> Any:
    """What Transformers.js answers; see the script."""
    script = Path(__file__).with_name("transformers_js.mjs")
    done = subprocess.run(
        ["node", str(script)], input=json.dumps(request), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def js_tensor(array: Any) -> dict[str, Any]:
    """An array in the form of the script's requests."""
    array = np.asarray(array)
    return {"tensor": array.ravel().tolist(), "type": str(array.dtype), "dims": list(array.shape)}
