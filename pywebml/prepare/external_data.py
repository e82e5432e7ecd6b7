"""External data: a model's tensors in files beside it, named and counted as Transformers.js asks for them."""

from __future__ import annotations

from pathlib import Path

from pywebml.errors import ConversionError
from pywebml.prepare.graph import open_graph

DEFAULT_LIMIT = 1_000_000_000
"""Bytes of one file; browsers hold the bytes of a file as one piece of memory while they hand it on."""


def split(path: Path, limit: int = DEFAULT_LIMIT) -> list[Path]:
    """Move a model's tensors into files beside it: `model.onnx_data`, `model.onnx_data_1`, …

    Every tensor is whole in one file and begins at a multiple of 4096 bytes (64 when it is smaller than 1 MiB); those
    below 1 KiB stay in the model. A model that is split already is split anew. Whatever fails, the old files remain.

    Args:
        path: Of the `.onnx` file, which is replaced.
        limit: Bytes of one file; a single larger tensor has a larger file of its own.

    Returns:
        The data files, in order. None when the model has no tensor that is worth it.

    Raises:
        ConversionError: The limit is no size, or so small that more than 100 files would be needed.
        SourceError: The model is damaged, or its data is not safe to read.
        PrepareError: The disk does not allow it.
    """
    if limit < 1:
        raise ConversionError(f"External data cannot be split at {limit} bytes: give a size from 1 on.", limit=limit)
    with open_graph(path) as graph:
        return graph.write(path, shard_bytes=limit)[1:]


def merge(path: Path, target: Path) -> list[Path]:
    """Write a model with external data as one file, or with one data file when that would be too large.

    Args:
        path: Of the `.onnx` file with external data.
        target: The file to write; it may be `path`, and then data files that are no longer needed are removed.

    Returns:
        The files that were written.

    Raises:
        SourceError: The model is damaged, or its data is missing or not safe to read.
        PrepareError: The disk does not allow it.
    """
    with open_graph(path) as graph:
        return graph.write(target)
