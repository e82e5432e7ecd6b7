"""How rows of the table of architectures look, and the loading of the model that a row is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from pywebml.errors import ConversionError
from pywebml.prepare.parts import Part
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import CONFIG, Checkpoint, read_json_object


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint's model as parts are made of it.

    Attributes:
        model: In float32, in evaluation mode, with plain attention.
        checkpoint: Where it is from; its tokenizer gives the texts of the cases.
        task: What the parts are for.
        with_gqa: Whether parts for shared caches are wanted beside the plain ones.
    """

    model: PreTrainedModel
    checkpoint: Checkpoint
    task: str
    with_gqa: bool

    @property
    def config(self) -> PretrainedConfig:
        """The checkpoint's configuration."""
        return self.model.config


@dataclass(frozen=True, slots=True)
class Row:
    """How models of one type are converted for one task.

    Attributes:
        auto_class: The class of transformers that loads them, such as `AutoModelForCausalLM`.
        parts: Makes their parts.
        optional_weights: Fragments of names of weights that a checkpoint may lack, since no output depends on them.
        config_changes: What goes into the hub's `config.json` over the original.
    """

    auto_class: str
    parts: Callable[[Loaded], tuple[Part, ...]]
    optional_weights: tuple[str, ...] = ()
    config_changes: Callable[[Loaded], Mapping[str, Any]] | None = None


Table = Mapping[str, Mapping[str, Row]]
"""`model_type` to task to row. The first task of a type is the one meant where a checkpoint does not say."""


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """A checkpoint's configuration.

    Raises:
        ConversionError: transformers does not know it, or it is wrong.
    """
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    # Whatever transformers makes of a configuration that it does not know or that is wrong.
    except Exception as error:
        if not trust_remote_code and "auto_map" in read_json_object(folder / CONFIG):
            raise ConversionError(
                "This model is made by Python code that the checkpoint brings along. It can do whatever you can: read "
                "it, and if you trust it, give --trust-remote-code."
            ) from error
        raise ConversionError(f"transformers cannot use config.json: {error}") from error
    return config


def load_model(folder: Path, config: PretrainedConfig, row: Row, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A checkpoint's model in float32, ready for inference.

    Raises:
        ConversionError: The weights cannot be read, or do not fit the configuration.
    """
    try:
        with quiet():
            # Weights that no output depends on may be missing; a fixed seed keeps the model the same.
            torch.manual_seed(0)
            # Plain attention gives a smaller graph than the fused operator: no tests for NaN in every layer.
            model, loaded = getattr(transformers, row.auto_class).from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                # They are refused below, where the message can name them.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise ConversionError(f"transformers cannot load the weights: {error}") from error
    missing = sorted(
        key for key in loaded["missing_keys"] if not any(fragment in key for fragment in row.optional_weights)
    )
    mismatched = sorted(name for name, *_shapes in loaded["mismatched_keys"])
    if missing or mismatched:
        raise ConversionError(
            f"The weights do not fit config.json: {len(missing)} are missing and {len(mismatched)} have another shape, "
            f"such as {(missing + mismatched)[0]}. Give a complete checkpoint, or the task that it was trained for.",
            missing=missing,
            mismatched=mismatched,
        )
    loaded_model: PreTrainedModel = model.eval()
    return loaded_model
