"""ONNX files: what they take and give, what they are made of, and where their weights lie.

A reader of protobuf's wire format that knows the fields it needs and steps over the rest; the weights themselves are
never read. Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pywebml.errors import InspectionError
from pywebml.inspecting.window import Parser, Window

MAX_NAME_BYTES = 64 * 1024
MAX_FIELDS = 20_000_000
MAX_NAMES = 2_000_000
"""Of tensors, and of values that nodes take: what is kept in memory."""
MAX_OPERATORS = 10_000
"""Different ones."""
MAX_DEPTH = 32
"""Of graphs within graphs."""
MAX_DIMENSIONS = 64
MAX_NUMBERS = 1 << 62
"""Of one tensor; sizes are signed, so a negative one is larger."""

DTYPES = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
    24: ("float8e8m0", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
}
"""Element type to its name and the bits of one number."""

FLOAT_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})
PACKED_OPERATORS = frozenset({"MatMulNBits", "MatMulBnb4"})
"""Their weights are bytes that hold several numbers each; attributes tell how many."""

INTEGER_OPERATORS = frozenset({"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeLSTM"})
"""They compute with weights of 8 bits."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output.

    Attributes:
        name: In the graph.
        dtype: Of its numbers; of what is no tensor its kind.
        dims: Sizes, names of free dimensions, or None for what is not known; None when even the rank is not.
    """

    name: str
    dtype: str
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant.

    Attributes:
        name: In its graph; of a constant inside a node the node's first output.
        dtype: Of its numbers.
        dims: Sizes.
        size: Of its bytes.
        operator: That takes it, empty when none does.
        file: Where its bytes are, when they are in a file of their own.
        offset: In that file.
        parameters: Numbers of the original that it holds; 0 for scales, positions and the like.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    size: int
    operator: str = ""
    file: str | None = None
    offset: int = 0
    parameters: int = 0


@dataclass(slots=True)
class OnnxFile:
    """What an ONNX file says.

    Attributes:
        size: In bytes, without external data.
        ir_version: Of the file format.
        opsets: Domain (empty: the standard operators) to version.
        producer: Name and version of the program that wrote it.
        inputs: Without constants that some files list among them.
        outputs: Of the main graph.
        operators: Name (with its domain unless that is the standard one) to the number of nodes, subgraphs included.
        tensors: All constants, subgraphs included.
        subgraphs: Branches and bodies of If, Loop and Scan.
        functions: Functions that the file defines.
        bits: Operator, bits and block size (0: none) to the number of nodes with such weights.
    """

    size: int
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    producer: str = ""
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    tensors: list[Tensor] = field(default_factory=list)
    subgraphs: int = 0
    functions: int = 0
    bits: Counter[tuple[str, int, int]] = field(default_factory=Counter)

    @property
    def opset(self) -> int:
        """Version of the standard operators; 0 when the file names none."""
        return self.opsets.get("", 0)

    @property
    def parameters(self) -> int:
        """Numbers of the original that it holds."""
        return sum(tensor.parameters for tensor in self.tensors)

    def external_data(self) -> dict[str, int]:
        """File name to the bytes that it must have at least."""
        files: dict[str, int] = {}
        for tensor in self.tensors:
            if tensor.file is not None:
                files[tensor.file] = max(files.get(tensor.file, 0), tensor.offset + tensor.size)
        return dict(sorted(files.items()))

    def operator_sizes(self) -> dict[str, int]:
        """Operator to the bytes of its constants, the largest first."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.operator] += tensor.size
        return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


@dataclass(slots=True)
class _Use:
    """Which node takes a value: its operator, the place among its inputs, and the numbers that a packed weight has."""

    operator: str
    place: int
    packed: int
    bits: int


@dataclass(slots=True)
class _Node:
    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    output: str = ""
    integers: dict[str, int] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.operator if self.domain in ("", "ai.onnx") else f"{self.domain}.{self.operator}"


def parse_onnx(size: int) -> Parser[OnnxFile]:
    """Read a file; its weights are stepped over.

    Args:
        size: Of the file.

    Raises:
        InspectionError: It is no ONNX file, is cut off, or is larger than a model can be.
    """
    return _Reader(size).model()


class _Reader:
    """One pass over one file. Only what `Window` holds and what the result needs is in memory."""

    def __init__(self, size: int) -> None:
        self._window = Window(size)
        self._fields = 0
        self._names = 0
        self.file = OnnxFile(size)

    def model(self) -> Parser[OnnxFile]:
        file = self.file
        graphs = 0
        end = 0
        while end < file.size:
            number, value, begin, end = yield from self._field(end, file.size)
            if number == 1:
                file.ir_version = value
            elif number == 2:
                name = yield from self._text(begin, end)
                file.producer = f"{name} {file.producer}".strip()
            elif number == 3:
                version = yield from self._text(begin, end)
                file.producer = f"{file.producer} {version}".strip()
            elif number == 7:
                graphs += 1
                inputs, outputs = yield from self._graph(begin, end, 0, {})
                file.inputs, file.outputs = inputs, outputs
            elif number == 8:
                yield from self._opset(begin, end)
            elif number == 25:
                file.functions += 1
        if graphs != 1 or not file.ir_version:
            raise InspectionError("This is no ONNX file: it has no graph, or no version of its format.")
        return file

    # What messages are made of

    def _field(self, position: int, end: int) -> Parser[tuple[int, int, int, int]]:
        """Number of a field, its value if that is a number, and where its bytes begin and it ends."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise InspectionError(f"More than {MAX_FIELDS} fields: no model is like that.", offset=position)
        tag, after = yield from self._varint(position, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise InspectionError(
                f"Byte {position} begins no field of protobuf. This is no ONNX file.", offset=position
            )
        if kind == _VARINT:
            value, after = yield from self._varint(after, end)
            return number, value, after, after
        if kind == _BYTES:
            length, after = yield from self._varint(after, end)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise InspectionError(
                f"Byte {position} begins no field of protobuf. This is no ONNX file.", offset=position
            )
        if length > end - after:
            raise InspectionError(
                f"A field at byte {position} claims {length} bytes, but only {end - after} are left. Is the file cut "
                "off?",
                offset=position,
            )
        return number, 0, after, after + length

    def _varint(self, position: int, end: int) -> Parser[tuple[int, int]]:
        data, index = self._window.at_hand(position)
        if index + 10 > len(data):
            yield from self._window.need(position, min(position + 10, end))
            data, index = self._window.at_hand(position)
        value, shift, limit = 0, 0, min(index + 10, index + end - position)
        while index < limit:
            byte = data[index]
            index += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                # Protobuf's numbers have 64 bits.
                return value & 0xFFFF_FFFF_FFFF_FFFF, position + shift // 7 + 1
            shift += 7
        raise InspectionError(f"A number at byte {position} does not end. This is no ONNX file.", offset=position)

    def _text(self, begin: int, end: int) -> Parser[str]:
        if end - begin > MAX_NAME_BYTES:
            raise InspectionError(
                f"A name at byte {begin} has {end - begin} bytes; {MAX_NAME_BYTES} are possible.", offset=begin
            )
        return (yield from self._window.need(begin, end)).decode("utf-8", errors="replace")

    def _named(self) -> None:
        self._names += 1
        if self._names > MAX_NAMES:
            raise InspectionError(f"More than {MAX_NAMES} names of values: no model is like that.")

    # What ONNX is made of

    def _opset(self, begin: int, end: int) -> Parser[None]:
        domain, version = "", 0
        after = begin
        while after < end:
            number, value, at, after = yield from self._field(after, end)
            if number == 1:
                domain = yield from self._text(at, after)
            elif number == 2:
                version = value
        self._named()
        self.file.opsets["" if domain == "ai.onnx" else domain] = version

    def _graph(
        self, begin: int, end: int, depth: int, outer: dict[str, _Use]
    ) -> Parser[tuple[list[Value], list[Value]]]:
        """Read a graph; what its nodes take from graphs around it goes into `outer`."""
        if depth > MAX_DEPTH:
            raise InspectionError(f"Graphs within graphs, more than {MAX_DEPTH} deep.", offset=begin)
        uses: dict[str, _Use] = {}
        own: list[Tensor] = []
        inputs: list[Value] = []
        outputs: list[Value] = []
        after = begin
        while after < end:
            number, _, at, after = yield from self._field(after, end)
            if number == 1:
                yield from self._node(at, after, depth, uses)
            elif number == 5:
                own.append((yield from self._tensor(at, after)))
                self._named()
            elif number == 15:
                own.append((yield from self._sparse(at, after)))
                self._named()
            elif number in (11, 12):
                (inputs if number == 11 else outputs).append((yield from self._value(at, after)))
                self._named()
        for tensor in own:
            self.file.tensors.append(_used(tensor, uses.pop(tensor.name, None)))
        for name, use in uses.items():
            outer.setdefault(name, use)
        constants = {tensor.name for tensor in own}
        return [value for value in inputs if value.name not in constants], outputs

    def _node(self, begin: int, end: int, depth: int, uses: dict[str, _Use]) -> Parser[None]:
        node = _Node()
        after = begin
        while after < end:
            number, _, at, after = yield from self._field(after, end)
            if number == 1:
                node.inputs.append((yield from self._text(at, after)))
                self._named()
            elif number == 2 and not node.output:
                node.output = yield from self._text(at, after)
            elif number == 4:
                node.operator = yield from self._text(at, after)
            elif number == 5:
                yield from self._attribute(at, after, depth, node, uses)
            elif number == 7:
                node.domain = yield from self._text(at, after)
        title = node.title
        self.file.operators[title] += 1
        if len(self.file.operators) > MAX_OPERATORS:
            raise InspectionError("Too many kinds of operators: no model is like that.", offset=begin)
        bits, block = node.integers.get("bits", 0), node.integers.get("block_size", 0)
        if node.operator in PACKED_OPERATORS or node.operator == "GatherBlockQuantized":
            # What the operators take without a word on it.
            bits, block = bits or 4, block or 128 * (node.operator == "GatherBlockQuantized")
            self.file.bits[node.operator, bits, block] += 1
        elif node.operator in INTEGER_OPERATORS:
            self.file.bits[node.operator, 8, 0] += 1
        packed = node.integers.get("K", 0) * node.integers.get("N", 0) if node.operator in PACKED_OPERATORS else 0
        for place, name in enumerate(node.inputs):
            if name:
                uses.setdefault(name, _Use(title, place, packed, bits))
        for tensor in node.tensors:
            named = Tensor(
                node.output, tensor.dtype, tensor.dims, tensor.size, "", tensor.file, tensor.offset, tensor.parameters
            )
            self.file.tensors.append(_used(named, _Use(title, 0, 0, 0)))

    def _attribute(self, begin: int, end: int, depth: int, node: _Node, uses: dict[str, _Use]) -> Parser[None]:
        name = ""
        after = begin
        while after < end:
            number, value, at, after = yield from self._field(after, end)
            if number == 1:
                name = yield from self._text(at, after)
            elif number == 3:
                node.integers[name] = value
            elif number in (5, 10):
                self._named()
                node.tensors.append((yield from self._tensor(at, after)))
            elif number in (6, 11):
                self.file.subgraphs += 1
                yield from self._graph(at, after, depth + 1, uses)

    def _tensor(self, begin: int, end: int) -> Parser[Tensor]:
        dims: list[int] = []
        kind, size, name, is_external = 0, 0, "", False
        external: dict[str, str] = {}
        after = begin
        while after < end:
            number, value, at, after = yield from self._field(after, end)
            if number == 1:
                dims += (yield from self._integers(at, after)) if after > at else [value]
                if len(dims) > MAX_DIMENSIONS:
                    raise InspectionError(f"A tensor of more than {MAX_DIMENSIONS} dimensions.", offset=begin)
            elif number == 2:
                kind = value
            elif number == 8:
                name = yield from self._text(at, after)
            elif number in (4, 5, 6, 7, 9, 10, 11):
                # Numbers that are not packed come one by one, with the size of what they hold unknown: at least a byte.
                size += max(after - at, 1)
            elif number == 13:
                yield from self._pair(at, after, external)
            elif number == 14:
                is_external = value == 1
        numbers = _numbers(name, dims, begin)
        dtype, bits = DTYPES.get(kind, (f"type {kind}", 0))
        if not is_external:
            return Tensor(name, dtype, tuple(dims), size, parameters=numbers)
        length = external.get("length")
        return Tensor(
            name,
            dtype,
            tuple(dims),
            (numbers * bits + 7) // 8 if length is None else _position(length, begin),
            file=external.get("location", ""),
            offset=_position(external.get("offset", "0"), begin),
            parameters=numbers,
        )

    def _integers(self, begin: int, end: int) -> Parser[list[int]]:
        if end - begin > 10 * MAX_DIMENSIONS:
            raise InspectionError(f"A tensor of more than {MAX_DIMENSIONS} dimensions.", offset=begin)
        values: list[int] = []
        while begin < end:
            value, begin = yield from self._varint(begin, end)
            values.append(value)
        return values

    def _sparse(self, begin: int, end: int) -> Parser[Tensor]:
        dims: list[int] = []
        values = Tensor("", "type 0", (), 0)
        size = 0
        after = begin
        while after < end:
            number, value, at, after = yield from self._field(after, end)
            if number in (1, 2):
                part = yield from self._tensor(at, after)
                size += part.size
                values = part if number == 1 else values
            elif number == 3:
                dims += (yield from self._integers(at, after)) if after > at else [value]
                if len(dims) > MAX_DIMENSIONS:
                    raise InspectionError(f"A tensor of more than {MAX_DIMENSIONS} dimensions.", offset=begin)
        _numbers(values.name, dims, begin)
        return Tensor(values.name, values.dtype, tuple(dims), size, parameters=values.parameters)

    def _pair(self, begin: int, end: int, into: dict[str, str]) -> Parser[None]:
        key = text = ""
        after = begin
        while after < end:
            number, _, at, after = yield from self._field(after, end)
            if number == 1:
                key = yield from self._text(at, after)
            elif number == 2:
                text = yield from self._text(at, after)
        if key in ("location", "offset", "length"):
            into[key] = text

    def _value(self, begin: int, end: int) -> Parser[Value]:
        name, dtype = "", "unknown"
        dims: tuple[int | str | None, ...] | None = None
        after = begin
        while after < end:
            number, _, at, after = yield from self._field(after, end)
            if number == 1:
                name = yield from self._text(at, after)
            elif number == 2:
                stop = at
                while stop < after:
                    kind, _, start, stop = yield from self._field(stop, after)
                    if kind == 1:
                        dtype, dims = yield from self._tensor_type(start, stop)
                    elif kind in (4, 5, 8, 9):
                        dtype = {4: "sequence", 5: "map", 8: "sparse tensor", 9: "optional"}[kind]
        return Value(name, dtype, dims)

    def _tensor_type(self, begin: int, end: int) -> Parser[tuple[str, tuple[int | str | None, ...] | None]]:
        kind = 0
        dims: list[int | str | None] | None = None
        after = begin
        while after < end:
            number, value, at, after = yield from self._field(after, end)
            if number == 1:
                kind = value
            elif number == 2:
                dims = []
                stop = at
                while stop < after:
                    part, _, start, stop = yield from self._field(stop, after)
                    if part == 1:
                        dims.append((yield from self._dimension(start, stop)))
                    if len(dims) > MAX_DIMENSIONS:
                        raise InspectionError(f"A value of more than {MAX_DIMENSIONS} dimensions.", offset=begin)
        return DTYPES.get(kind, (f"type {kind}", 0))[0], None if dims is None else tuple(dims)

    def _dimension(self, begin: int, end: int) -> Parser[int | str | None]:
        found: int | str | None = None
        after = begin
        while after < end:
            number, value, at, after = yield from self._field(after, end)
            if number == 1:
                found = value if value < 1 << 63 else None
            elif number == 2:
                found = yield from self._text(at, after)
        return found


def _numbers(name: str, dims: Sequence[int], offset: int) -> int:
    """How many numbers a tensor has."""
    numbers = math.prod(dims)
    if numbers > MAX_NUMBERS or any(dim > MAX_NUMBERS for dim in dims):
        raise InspectionError(f"Tensor '{name[:100]}' has a negative or impossible size.", offset=offset)
    return numbers


def _position(text: str, offset: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InspectionError(f"'{text[:50]}' is no position in a file of external data.", offset=offset)
    return int(text)


def _used(tensor: Tensor, use: _Use | None) -> Tensor:
    """A tensor with the operator that takes it, and with how many numbers of the original it holds."""
    return Tensor(
        tensor.name,
        tensor.dtype,
        tensor.dims,
        tensor.size,
        "" if use is None else use.operator,
        tensor.file,
        tensor.offset,
        _parameters(tensor, use),
    )


def _parameters(tensor: Tensor, use: _Use | None) -> int:
    numbers = math.prod(tensor.dims)
    operator = "" if use is None else use.operator.rpartition(".")[2]
    if use is not None and operator in PACKED_OPERATORS:
        return use.packed if use.place == 1 else 0
    if use is not None and operator == "GatherBlockQuantized":
        is_packed = tensor.dtype == "uint8" and use.bits < 8
        return numbers * (8 // max(use.bits, 1) if is_packed else 1) if use.place == 0 else 0
    if tensor.dtype in FLOAT_DTYPES:
        return numbers
    # Numbers of 8 bits and less are weights where they have the shape of weights.
    return numbers if tensor.dtype in {"int8", "uint8", "int4", "uint4"} and len(tensor.dims) > 1 else 0


def level_of(file: OnnxFile) -> str:
    """Which of the levels a file looks like (see `models.files.DTYPE_SUFFIXES`); empty when it looks like none.

    `q8` and `uint8` are the same in a file: both say `uint8`.
    """
    operators = {title.rpartition(".")[2] for title in file.operators}
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        sizes[tensor.dtype] += tensor.size
    half = sizes["float16"] > 0 and sizes["float16"] >= sizes["float32"]
    if "MatMulBnb4" in operators:
        return "bnb4"
    matrices = [bits for (operator, bits, _), _ in file.bits.items() if operator == "MatMulNBits"]
    if matrices:
        bits = min(matrices)
        return f"q{bits}f16" if half else f"q{bits}"
    if operators & INTEGER_OPERATORS:
        signed = _eight_bits(file.tensors, "int8")
        return "int8" if signed > _eight_bits(file.tensors, "uint8") else "uint8"
    if half:
        return "fp16"
    return "fp32" if sizes["float32"] else ""


def _eight_bits(tensors: Sequence[Tensor], dtype: str) -> int:
    return sum(tensor.size for tensor in tensors if tensor.dtype == dtype and len(tensor.dims) > 1)
