"""ONNX models larger than memory: tensor data is read when it is wanted and written one tensor after the other.

    with open_graph(path) as graph:
        for tensor in graph.tensors():
            if graph.size(tensor) > 1000:
                array = graph.read(tensor)                 # now the bytes are read
                graph.replace(tensor, array.astype("float16"))
        graph.write(target)

`graph.model` is an ordinary `onnx.ModelProto` in which tensors of 1 KiB and more are placeholders, wherever the data
lies: in the file itself or in files beside it. Nodes, names and shapes may be changed there as one likes. Data that
replaces other data waits in a temporary file until it is written.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pywebml.errors import ConversionError, PrepareError, SourceError
from pywebml.models.files import MAX_EXTERNAL_DATA_FILES
from pywebml.prepare.wire import DELIMITED, VARINT, Pieces, Span, delimited, fields, rewrite, size_of

MAX_FILE_BYTES = 2_000_000_000
"""A file of protobuf ends at 2 GiB; a little less, so that other programs can add to it."""
INLINE_BYTES = 1024
"""Smaller tensors stay in the `.onnx` file."""
INLINE_SHAPE_BYTES = 65_536
"""So do lists of whole numbers up to this size: the runtime asks for their values while it infers shapes."""
LARGE_BYTES, LARGE_ALIGNMENT, SMALL_ALIGNMENT = 1 << 20, 4096, 64
"""Tensors from this size on begin at a page, so that they can be mapped into memory; others at a cache line."""

_BLOCK = 1 << 20
_FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 4, 9, 10, 13, 14
_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.FLOAT8E8M0: 8,
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
}


class Graph:
    """A model on disk. Made by `open_graph`, and used in a `with` block.

    Attributes:
        path: Of the `.onnx` file.
        model: The model with placeholders for large tensors.
    """

    def __init__(self, path: Path, scratch: Path | None) -> None:
        self.path = path
        self._scratch = scratch
        self._files: list[IO[bytes]] = []
        self._numbers: dict[Path, int] = {}
        self._spool: int | None = None
        self._stack = ExitStack()
        try:
            self.model = self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; placeholders cannot be read any more."""
        self._stack.close()

    def graphs(self) -> Iterator[onnx.GraphProto]:
        """The graph of the model and all graphs inside its nodes, outer ones first."""
        yield from subgraphs(self.model.graph)

    def tensors(self) -> Iterator[TensorProto]:
        """Every initializer and every tensor in an attribute, also in subgraphs and functions."""
        yield from tensors_of(self.model)

    def size(self, tensor: TensorProto) -> int:
        """In bytes, as raw data."""
        return byte_size(tensor.data_type, tensor.dims, tensor.name)

    def read(self, tensor: TensorProto) -> NDArray[Any]:
        """A tensor's values, which may be changed.

        Raises:
            SourceError: The file ends before the tensor does, or the data does not fit the shape.
        """
        if tensor.data_location == TensorProto.EXTERNAL:
            if _BITS[tensor.data_type] >= 8:
                return self._read(_span(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type), tensor.dims)
            whole = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
            whole.raw_data = b"".join(self.blocks(tensor))
            tensor = whole
        try:
            return np.array(numpy_helper.to_array(tensor))
        except (TypeError, ValueError) as error:
            raise SourceError(f"The tensor '{tensor.name}' has no data that fits its shape: {error}.") from error

    def blocks(self, tensor: TensorProto) -> Iterator[bytes]:
        """A tensor's raw data in order, a megabyte at a time."""
        if tensor.data_location == TensorProto.EXTERNAL:
            yield from self._blocks(_span(tensor))
        elif tensor.HasField("raw_data"):
            yield tensor.raw_data
        else:
            yield numpy_helper.tobytes_little_endian(numpy_helper.to_array(tensor))

    def make(
        self, name: str, array: NDArray[Any], *, data_type: int | None = None, dims: Iterable[int] | None = None
    ) -> TensorProto:
        """A tensor with these values, for `initializer` or an attribute.

        Args:
            name: Of the tensor.
            array: Values in the machine's own form; of packed types the bytes.
            data_type: When it is not the array's own.
            dims: When they are not the array's own.
        """
        chosen = helper.np_dtype_to_tensor_dtype(array.dtype) if data_type is None else data_type
        tensor = TensorProto(name=name, data_type=chosen, dims=array.shape if dims is None else dims)
        self._fill(tensor, array)
        return tensor

    def replace(self, tensor: TensorProto, array: NDArray[Any]) -> None:
        """Give a tensor other values; type and shape become the array's."""
        tensor.CopyFrom(self.make(tensor.name, array))

    def write(self, path: Path, *, shard_bytes: int | None = None) -> list[Path]:
        """Write the model, over what is there; the same model gives the same bytes.

        Args:
            path: Of the `.onnx` file. It may be the one that this graph was read from.
            shard_bytes: Size of one file with external data. None: one `.onnx` file, and when that would be larger
                than `MAX_FILE_BYTES` one file `{path.name}_data` beside it.

        Returns:
            The files: the `.onnx` first, then those with external data. Files with external data which an earlier
            model of the same name had beyond these are removed.

        Raises:
            ConversionError: More data files would be needed than a loader asks for, or the part of the model that
                is no tensor data is too large for a file.
            PrepareError: The disk does not allow it.
        """
        skeleton = memoryview(self.model.SerializeToString(deterministic=True))
        shards: list[list[Span | int]] = []
        pieces = rewrite(skeleton, _put_in)
        if shard_bytes is not None or size_of(pieces) > MAX_FILE_BYTES:
            layout = _Layout(path.name, shard_bytes)
            pieces = rewrite(skeleton, lambda message, start, end: layout.place(message, start, end))
            shards = layout.shards
        if size_of(pieces) > MAX_FILE_BYTES:
            raise ConversionError(
                f"{path.name} would take {size_of(pieces)} bytes without its external data; a file holds "
                f"{MAX_FILE_BYTES}.",
                size=size_of(pieces),
            )
        contents: list[tuple[Path, list[bytes | Span | int]]] = [
            (path.with_name(data_name(path.name, index)), list(shard)) for index, shard in enumerate(shards)
        ]
        # The model comes last: until then whoever reads it finds what it names.
        contents.append((path, list(pieces)))
        with disk_errors(path):
            self._write_all(contents)
            for index in range(len(shards), MAX_EXTERNAL_DATA_FILES):
                path.with_name(data_name(path.name, index)).unlink(missing_ok=True)
        return [path, *(target for target, _ in contents[:-1])]

    def _open(self) -> onnx.ModelProto:
        if self.path.is_dir() or not self.path.exists():
            raise SourceError(f"There is no ONNX file {self.path}.", path=str(self.path))
        number = self._add_file(self.path)
        file = self._files[number]
        if os.fstat(file.fileno()).st_size == 0:
            raise SourceError(f"{self.path} is no ONNX file: it is empty.", path=str(self.path))
        # Mapped only to find the tensors, and read by position afterwards: mapped pages would count as memory in use.
        with mmap(file.fileno(), 0, access=ACCESS_READ) as mapped, memoryview(mapped) as message:
            pieces = rewrite(message, lambda whole, start, end: self._take_out(whole, start, end, number))
        model = onnx.ModelProto()
        try:
            model.ParseFromString(b"".join(piece for piece in pieces if isinstance(piece, bytes)))
        except DecodeError as error:
            raise SourceError(f"{self.path} is no ONNX file: {error}.", path=str(self.path)) from error
        if not model.HasField("graph"):
            raise SourceError(f"{self.path} is no ONNX file: there is no graph in it.", path=str(self.path))
        return model

    def _take_out(self, message: memoryview, start: int, end: int, number: int) -> Pieces:
        """The message of a tensor with a placeholder instead of its data, when that is large or elsewhere."""
        if end - start < INLINE_BYTES and not any(
            field.number == _EXTERNAL_DATA for field in fields(message, start, end)
        ):
            return [bytes(message[start:end])]
        kept: list[bytes] = []
        data: list[Span] = []
        inner: list[tuple[int, bytes]] = []
        for field in fields(message, start, end):
            text = bytes(message[field.start : field.value])
            if field.number in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA) and field.wire_type == DELIMITED:
                data.append(Span(number, field.value, field.end - field.value))
                inner.append((field.number, text))
            else:
                kept.append(bytes(message[field.start : field.end]))
        tensor = TensorProto()
        try:
            tensor.ParseFromString(b"".join(kept))
        except DecodeError as error:
            raise SourceError(f"{self.path.name} holds a tensor that is damaged: {error}.") from error
        size = byte_size(tensor.data_type, tensor.dims, tensor.name)
        if tensor.data_location == TensorProto.EXTERNAL:
            _set_span(tensor, self._external_span(tensor, size))
            return [tensor.SerializeToString(deterministic=True)]
        fits = {_FLOAT_DATA: TensorProto.FLOAT, _DOUBLE_DATA: TensorProto.DOUBLE, _RAW_DATA: tensor.data_type}
        if len(data) != 1 or fits[inner[0][0]] != tensor.data_type or tensor.data_type == TensorProto.STRING:
            # Numbers one by one or of another width: small in practice, and protobuf's own business.
            return [bytes(message[start:end])]
        if data[0].length != size:
            raise SourceError(
                f"The tensor '{tensor.name}' of shape {list(tensor.dims)} needs {size} bytes, but {self.path.name} "
                f"holds {data[0].length} for it.",
                tensor=tensor.name,
            )
        _set_span(tensor, data[0])
        return [tensor.SerializeToString(deterministic=True)]

    def _external_span(self, tensor: TensorProto, size: int) -> Span:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        number = self._external_file(entries.get("location", ""), tensor.name)
        available = os.fstat(self._files[number].fileno()).st_size
        offset = _whole_number(entries.get("offset", "0"), "offset", tensor.name)
        length = _whole_number(entries.get("length", str(size)), "length", tensor.name)
        if length != size:
            raise SourceError(
                f"The tensor '{tensor.name}' of shape {list(tensor.dims)} needs {size} bytes, but its external data "
                f"is said to have {length}.",
                tensor=tensor.name,
            )
        if offset + length > available:
            raise SourceError(
                f"The tensor '{tensor.name}' reaches from byte {offset} to {offset + length} of "
                f"{entries['location']}, which has only {available} bytes. Get the complete file.",
                tensor=tensor.name,
            )
        return Span(number, offset, length)

    def _external_file(self, location: str, tensor: str) -> int:
        """The number of a data file; refused unless it is a plain file inside the model's folder."""
        path = PurePosixPath(location)
        unsafe = not location or path.is_absolute() or ".." in path.parts or any(mark in location for mark in "\\:\0")
        if unsafe:
            raise SourceError(
                f"The tensor '{tensor}' has its data at {location!r}; only names inside the model's folder are read.",
                tensor=tensor,
                location=location,
            )
        target = self.path.parent / path
        if target in self._numbers:
            return self._numbers[target]
        if not target.resolve().is_relative_to(self.path.parent.resolve()):
            raise SourceError(
                f"The tensor '{tensor}' has its data at {location!r}, which is a link out of the model's folder.",
                tensor=tensor,
                location=location,
            )
        if not target.is_file():
            raise SourceError(
                f"The tensor '{tensor}' has its data in {location!r}, and there is no such file beside "
                f"{self.path.name}. Get the complete model.",
                tensor=tensor,
                location=location,
            )
        return self._add_file(target)

    def _add_file(self, path: Path) -> int:
        try:
            file = self._stack.enter_context(path.open("rb"))
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}.", path=str(path)) from error
        self._files.append(file)
        self._numbers[path] = len(self._files) - 1
        return len(self._files) - 1

    def _fill(self, tensor: TensorProto, array: NDArray[Any]) -> None:
        size = byte_size(tensor.data_type, tensor.dims, tensor.name)
        contiguous = np.ascontiguousarray(array)
        if contiguous.dtype.byteorder == ">":
            contiguous = contiguous.astype(contiguous.dtype.newbyteorder("<"))
        if contiguous.nbytes != size:
            raise ValueError(f"'{tensor.name}' of shape {list(tensor.dims)} needs {size} bytes, got {array.nbytes}")
        if size < INLINE_BYTES:
            tensor.raw_data = contiguous.tobytes()
            return
        if self._spool is None:
            with disk_errors(self._scratch or Path(tempfile.gettempdir())):
                spool = self._stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115
            self._files.append(spool)
            self._spool = len(self._files) - 1
        file = self._files[self._spool]
        with disk_errors(self._scratch or Path(tempfile.gettempdir())):
            offset = file.seek(0, os.SEEK_END)
            file.write(contiguous.reshape(-1).view(np.uint8).data)
            # Read by position, around the buffer.
            file.flush()
        _set_span(tensor, Span(self._spool, offset, size))

    def _read(self, span: Span, dtype: np.dtype[Any], dims: Iterable[int]) -> NDArray[Any]:
        array = np.empty(tuple(dims), dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype)
        at = 0
        target = array.reshape(-1).view(np.uint8)
        for block in self._blocks(span):
            target[at : at + len(block)] = np.frombuffer(block, np.uint8)
            at += len(block)
        return array

    def _blocks(self, span: Span) -> Iterator[bytes]:
        descriptor = self._files[span.source].fileno()
        at, end = span.offset, span.offset + span.length
        while at < end:
            block = os.pread(descriptor, min(_BLOCK, end - at), at)
            if not block:
                raise SourceError(f"A file of {self.path.name} became shorter while it was read.", path=str(self.path))
            at += len(block)
            yield block

    def _write_all(self, contents: list[tuple[Path, list[bytes | Span | int]]]) -> None:
        """Write every file under another name and then rename all; whatever fails, the old ones are back."""
        with tempfile.TemporaryDirectory(prefix=".pywebml-", dir=contents[-1][0].parent) as name:
            work = Path(name)
            for index, (_, pieces) in enumerate(contents):
                with (work / f"new{index}").open("wb") as file:
                    for piece in pieces:
                        if isinstance(piece, int):
                            file.write(bytes(piece))
                        elif isinstance(piece, bytes):
                            file.write(piece)
                        else:
                            for block in self._blocks(piece):
                                file.write(block)
            moved: list[tuple[Path, Path]] = []
            try:
                for index, (target, _) in enumerate(contents):
                    old = work / f"old{index}"
                    with suppress(FileNotFoundError):
                        target.rename(old)
                    moved.append((target, old))
                    (work / f"new{index}").rename(target)
            except OSError:
                for target, old in moved:
                    if old.exists():
                        old.rename(target)
                raise


def open_graph(path: Path, *, scratch: Path | None = None) -> Graph:
    """Open an ONNX file without reading its tensor data.

    Args:
        path: Of the `.onnx` file; its external data lies in the same folder.
        scratch: Folder for data that waits to be written; the system's own when None.

    Raises:
        SourceError: The file or one that it names is missing, damaged or cut off, or a name leads out of the folder.
    """
    return Graph(path, scratch)


def data_name(name: str, index: int) -> str:
    """The name of a file with external data, as Transformers.js asks for it: `model.onnx_data`, `model.onnx_data_1`."""
    return f"{name}_data{f'_{index}' if index else ''}"


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside its nodes, outer ones first."""
    yield graph
    for node in graph.node:
        for inner in graphs_of(node):
            yield from subgraphs(inner)


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: branches of If, bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every initializer and every tensor in an attribute, also in subgraphs and functions."""
    for graph in subgraphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)
            for inner in graphs_of(node):
                for graph in subgraphs(inner):
                    yield from graph.initializer
                    for deeper in graph.node:
                        yield from _attribute_tensors(deeper)


def byte_size(data_type: int, dims: Iterable[int], name: str = "") -> int:
    """What a tensor takes as raw data, in bytes; strings have no such size and count as 0.

    Raises:
        SourceError: The type is unknown or a dimension is negative.
    """
    if data_type == TensorProto.STRING:
        return 0
    sizes = list(dims)
    if data_type not in _BITS or any(size < 0 for size in sizes):
        raise SourceError(f"The tensor '{name}' has type {data_type} and shape {sizes}, which make no sense.")
    return -(-math.prod(sizes) * _BITS[data_type] // 8)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns errors of the disk into words.

    Raises:
        PrepareError: Instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise PrepareError(
            f"Cannot write {path}: {error.strerror or error}. Check the path, its permissions and the free space.",
            path=str(path),
        ) from error


class _Layout:
    """Which tensor goes where among the files with external data."""

    def __init__(self, name: str, shard_bytes: int | None) -> None:
        self._name = name
        self._limit = shard_bytes
        self._size = 0
        self.shards: list[list[Span | int]] = []

    def place(self, message: memoryview, start: int, end: int) -> Pieces:
        tensor = TensorProto.FromString(bytes(message[start:end]))
        if tensor.data_location != TensorProto.EXTERNAL:
            return [bytes(message[start:end])]
        span = _span(tensor)
        if _stays_inline(tensor, span.length):
            return _put_in(message, start, end)
        alignment = LARGE_ALIGNMENT if span.length >= LARGE_BYTES else SMALL_ALIGNMENT
        padding = -self._size % alignment
        full = self._limit is not None and self._size + padding + span.length > self._limit
        if not self.shards or (full and self._size > 0):
            if len(self.shards) == MAX_EXTERNAL_DATA_FILES:
                raise ConversionError(
                    f"{self._name} would need more than {MAX_EXTERNAL_DATA_FILES} files of {self._limit} bytes, which "
                    "is all that loaders ask for. Give a larger limit.",
                    limit=self._limit,
                )
            self.shards.append([])
            self._size = padding = 0
        if padding:
            self.shards[-1].append(padding)
        self.shards[-1].append(span)
        entries = {
            "location": data_name(self._name, len(self.shards) - 1),
            "offset": str(self._size + padding),
            "length": str(span.length),
        }
        self._size += padding + span.length
        _set_entries(tensor, entries)
        return [tensor.SerializeToString(deterministic=True)]


def _stays_inline(tensor: TensorProto, size: int) -> bool:
    whole = tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and len(tensor.dims) <= 1
    return size < INLINE_BYTES or (whole and size < INLINE_SHAPE_BYTES)


def _put_in(message: memoryview, start: int, end: int) -> Pieces:
    """The message of a tensor with its data where the placeholder was, fields in ascending order."""
    external = any(
        field.number == _DATA_LOCATION and field.wire_type == VARINT and field.integer == TensorProto.EXTERNAL
        for field in fields(message, start, end)
    )
    if not external:
        return [bytes(message[start:end])]
    tensor = TensorProto.FromString(bytes(message[start:end]))
    span = _span(tensor)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    data = memoryview(tensor.SerializeToString(deterministic=True))
    before = max((field.end for field in fields(data, 0, len(data)) if field.number < _RAW_DATA), default=0)
    return [bytes(data[:before]), *delimited(_RAW_DATA, [span]), bytes(data[before:])]


def _span(tensor: TensorProto) -> Span:
    entries = {entry.key: int(entry.value) for entry in tensor.external_data}
    return Span(entries["source"], entries["offset"], entries["length"])


def _set_span(tensor: TensorProto, span: Span) -> None:
    _set_entries(tensor, {"source": str(span.source), "offset": str(span.offset), "length": str(span.length)})


def _set_entries(tensor: TensorProto, entries: dict[str, str]) -> None:
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = TensorProto.EXTERNAL


def _whole_number(text: str, what: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise SourceError(f"The tensor '{name}' has external data with {what} {text!r}, which is no such number.")
    return int(text)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
