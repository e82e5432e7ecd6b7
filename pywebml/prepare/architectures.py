"""Which models can be converted for which task: the rows of every exporting module, looked up."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from transformers import PretrainedConfig

from pywebml.errors import ConversionError
from pywebml.prepare.exporting import audio, decoders, encoders, seq2seq, vision
from pywebml.prepare.exporting.rows import Loaded, Row, Table, load_config, load_model
from pywebml.prepare.parts import ExportedModel
from pywebml.prepare.source import Checkpoint

_MODULES = (encoders, decoders, seq2seq, vision, audio)
"""Those with a mapping `ROWS`."""


def _collected(tables: Iterable[Table]) -> Table:
    rows: dict[str, dict[str, Row]] = {}
    for table in tables:
        for model_type, tasks in table.items():
            twice = rows.setdefault(model_type, {}).keys() & tasks.keys()
            assert not twice, f"{model_type} has two rows for {twice}"
            rows[model_type].update(tasks)
    return rows


ARCHITECTURES: Table = _collected(module.ROWS for module in _MODULES)

_TASKS_OF_CLASSES: Mapping[str, tuple[str, ...]] = {
    "ForMaskedLM": ("fill-mask",),
    "ForPreTraining": ("fill-mask", "feature-extraction"),
    "ForSequenceClassification": ("text-classification", "audio-classification"),
    "ForTokenClassification": ("token-classification",),
    "ForQuestionAnswering": ("question-answering",),
    "ForQuestionAnsweringSimple": ("question-answering",),
    "ForCausalLM": ("text-generation",),
    "LMHeadModel": ("text-generation", "fill-mask"),
    "ForConditionalGeneration": ("text2text-generation", "automatic-speech-recognition", "image-to-text"),
    "MTModel": ("text2text-generation",),
    "ForCTC": ("automatic-speech-recognition",),
    "ForAudioClassification": ("audio-classification",),
    "ForAudioFrameClassification": ("audio-frame-classification",),
    "ForImageClassification": ("image-classification",),
    "ForImageClassificationWithTeacher": ("image-classification",),
    "ForObjectDetection": ("object-detection",),
    "ForSegmentation": ("image-segmentation",),
    "ForSemanticSegmentation": ("image-segmentation",),
    "ForDepthEstimation": ("depth-estimation",),
    "EncoderDecoderModel": ("image-to-text",),
    "Model": ("feature-extraction", "image-feature-extraction", "zero-shot-image-classification"),
}
"""End of a class name in `architectures` to what it is for; the first task counts that there is a row for. The first
entry that fits counts."""


def infer_task(config: PretrainedConfig) -> str:
    """The task that a checkpoint was trained for, by its `architectures`.

    Raises:
        ConversionError: The type is unknown, or the class is for something that is not converted.
    """
    tasks = _rows(config.model_type)
    for name in config.architectures or ():
        ending = next((ending for ending in _TASKS_OF_CLASSES if name.endswith(ending)), None)
        for task in _TASKS_OF_CLASSES.get(ending or "", ()):
            if task in tasks:
                return task
    raise ConversionError(
        f"config.json does not say what the model is for: its architectures are "
        f"{', '.join(config.architectures or ()) or 'not given'}. Choose with --task from {', '.join(tasks)}.",
        model_type=config.model_type,
        architectures=list(config.architectures or ()),
    )


def row_of(model_type: str, task: str) -> Row:
    """How models of a type are converted for a task.

    Raises:
        ConversionError: There is no such row. Details: `model_type`, `task`.
    """
    tasks = _rows(model_type)
    if task not in tasks:
        raise ConversionError(
            f"Models of type '{model_type}' cannot be converted for '{task}'{_nearest(task, tasks)}; possible: "
            f"{', '.join(tasks)}.",
            model_type=model_type,
            task=task,
        )
    return tasks[task]


def export_model(
    checkpoint: Checkpoint, task: str | None = None, *, trust_remote_code: bool = False, with_gqa: bool = True
) -> ExportedModel:
    """Load a checkpoint and cut it into the parts that are exported.

    Args:
        checkpoint: From `open_checkpoint` or `download_checkpoint`.
        task: What it is for; default what it was trained for.
        trust_remote_code: Run Python code that the checkpoint brings along. It can do what it wants.
        with_gqa: Also give the parts for caches shared between past and present, where the model can have one.

    Raises:
        ConversionError: The model cannot be converted.
    """
    config = load_config(checkpoint.folder, trust_remote_code=trust_remote_code)
    task = task or infer_task(config)
    row = row_of(config.model_type, task)
    model = load_model(checkpoint.folder, config, row, trust_remote_code=trust_remote_code)
    loaded = Loaded(model=model, checkpoint=checkpoint, task=task, with_gqa=with_gqa)
    return ExportedModel(
        model_type=config.model_type,
        task=task,
        parts=row.parts(loaded),
        config_changes=row.config_changes(loaded) if row.config_changes else {},
    )


def _rows(model_type: str) -> Mapping[str, Row]:
    if model_type not in ARCHITECTURES:
        raise ConversionError(
            f"Models of type '{model_type}' cannot be converted{_nearest(model_type, ARCHITECTURES)}; possible: "
            f"{', '.join(sorted(ARCHITECTURES))}.",
            model_type=model_type,
        )
    return ARCHITECTURES[model_type]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
