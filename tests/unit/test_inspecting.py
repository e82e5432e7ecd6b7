"""Looking into ONNX and safetensors files: what is read is what the formats' own libraries read, whatever the bytes."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from safetensors import safe_open
from safetensors.numpy import save, save_file

from pywebml.errors import InspectionError
from pywebml.inspecting import OnnxFile, SafetensorsFile, drive, level_of, parse_onnx, parse_safetensors
from pywebml.inspecting import onnx as reader
from pywebml.inspecting import safetensors as header
from tests.tiny_model import TinyModel


def read_onnx(data: bytes) -> OnnxFile:
    return drive(parse_onnx(len(data)), lambda begin, end: data[begin:end])


def read_safetensors(data: bytes) -> SafetensorsFile:
    return drive(parse_safetensors(len(data)), lambda begin, end: data[begin:end])


def value(name: str, kind: int, shape: list[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weights(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def build(nodes: list[Any], initializers: list[Any], **extra: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "main",
        [value("x", TensorProto.FLOAT, ["batch_size", None, 4])],
        [value("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
        producer_name="a test",
        producer_version="3",
        **extra,
    )


def branching() -> onnx.ModelProto:
    """Two graphs inside the main one, with constants of their own and of the main one."""
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", matrix], [f"{name}_out"])],
            name,
            [],
            [value(f"{name}_out", TensorProto.FLOAT, None)],
            [weights("inner", 4, 4)] if matrix == "inner" else [],
        )
        for name, matrix in (("then", "inner"), ("else", "outer"))
    ]
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    constant = helper.make_node("Constant", [], ["flag"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    return build([constant, node], [weights("outer", 4, 2)])


def quantized(operator: str, bits: int) -> onnx.ModelProto:
    attributes: dict[str, Any] = {"bits": bits} if operator == "MatMulNBits" else {"quant_type": 1}
    node = helper.make_node(
        operator,
        ["x", "packed", "scales"],
        ["y"],
        domain="com.microsoft",
        K=64,
        N=8,
        block_size=32,
        **attributes,
    )
    size = 64 * 8 * bits // 8
    return build([node], [weights("packed", size, dtype=np.uint8), weights("scales", 16)])


MODELS = {
    "sum": build([helper.make_node("Add", ["x", "b"], ["y"])], [weights("b", 4)]),
    "branches": branching(),
    "floats one by one": build(
        [helper.make_node("Add", ["x", "b"], ["y"])], [helper.make_tensor("b", TensorProto.FLOAT, [4], [1, 2, 3, 4])]
    ),
    "half": build([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights("w", 4, 4, dtype=np.float16)]),
    "4 bits": quantized("MatMulNBits", 4),
    "8 bits": quantized("MatMulNBits", 8),
    "bnb4": quantized("MatMulBnb4", 4),
    "integers": build(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["y"], to=1),
        ],
        [weights("w", 4, 4, dtype=np.int8)],
    ),
}


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []:
                yield from graphs_of(inner)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_is_read_as_the_onnx_package_reads_it(name: str) -> None:
    model = MODELS[name]
    found = read_onnx(model.SerializeToString())

    graphs = list(graphs_of(model.graph))
    assert (found.ir_version, found.producer) == (model.ir_version, "a test 3")
    assert found.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert [(v.name, v.dtype, v.dims) for v in found.inputs] == [("x", "float32", ("batch_size", None, 4))]
    assert [(v.name, v.dtype, v.dims) for v in found.outputs] == [("y", "float32", None)]
    assert found.operators == Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for graph in graphs for node in graph.node
    )
    assert found.subgraphs == len(graphs) - 1
    named = [tensor for tensor in found.tensors if tensor.operator != "Constant"]
    assert sorted((tensor.name, tensor.dims, tensor.size) for tensor in named) == sorted(
        (tensor.name, tuple(tensor.dims), numpy_helper.to_array(tensor).nbytes)
        for graph in graphs
        for tensor in graph.initializer
    )


def test_constants_of_graphs_are_counted_for_the_operators_that_take_them() -> None:
    found = read_onnx(MODELS["branches"].SerializeToString())

    assert {tensor.name: tensor.operator for tensor in found.tensors} == {
        "flag": "Constant",
        "inner": "MatMul",
        "outer": "MatMul",
    }
    assert found.operator_sizes() == {"MatMul": 96, "Constant": 1}
    assert found.parameters == 24


@pytest.mark.parametrize(
    ("name", "level", "parameters", "bits"),
    [
        ("sum", "fp32", 4, {}),
        ("half", "fp16", 16, {}),
        ("4 bits", "q4", 512, {("MatMulNBits", 4, 32): 1}),
        ("8 bits", "q8", 512, {("MatMulNBits", 8, 32): 1}),
        ("bnb4", "bnb4", 512, {("MatMulBnb4", 4, 32): 1}),
        ("integers", "int8", 16, {("MatMulInteger", 8, 0): 1}),
    ],
)
def test_levels_are_told_by_their_operators_and_weights_are_counted_unpacked(
    name: str, level: str, parameters: int, bits: dict[Any, int]
) -> None:
    found = read_onnx(MODELS[name].SerializeToString())

    assert (level_of(found), found.parameters, dict(found.bits)) == (level, parameters, bits)


def test_external_data_is_told_with_the_bytes_that_it_must_have() -> None:
    model = build([helper.make_node("Add", ["x", "b"], ["y"])], [weights("b", 4), weights("c", 8)])
    for tensor, name, offset in zip(model.graph.initializer, ("m_data", "m_data_1"), (0, 64), strict=True):
        set_external_data(tensor, name, offset=offset, length=len(tensor.raw_data))
        tensor.ClearField("raw_data")

    found = read_onnx(model.SerializeToString())

    assert found.external_data() == {"m_data": 16, "m_data_1": 96}
    assert found.parameters == 12


def test_weights_are_never_asked_for() -> None:
    data: bytes = build([helper.make_node("Add", ["x", "b"], ["y"])], [weights("b", 10_000_000)]).SerializeToString()
    asked = []

    def read(begin: int, end: int) -> bytes:
        asked.append(end - begin)
        return data[begin:end]

    found = drive(parse_onnx(len(data)), read)

    assert found.tensors[0].size == 40_000_000
    assert len(asked) <= 3
    assert sum(asked) < 200_000


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no graph"),
        (b"\x08\x0a", "no graph"),
        (b"\x00", "begins no field"),
        (b"\x0b", "begins no field"),
        (b"\xff" * 30, "does not end"),
        (b"\x3a\x7f", "claims 127 bytes, but only 0 are left"),
        (cut(MODELS["sum"].SerializeToString()), "cut off"),
    ],
    ids=["empty", "a version only", "field 0", "a group", "an endless number", "a lying length", "half of one"],
)
def test_what_is_no_onnx_file_is_named_so(data: bytes, message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        read_onnx(data)


def field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), b""
    while True:
        length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + payload


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x0a" + field(7, graph)


def test_graphs_in_graphs_have_an_end() -> None:
    assert read_onnx(nested(reader.MAX_DEPTH)).subgraphs == reader.MAX_DEPTH
    with pytest.raises(InspectionError, match="Graphs within graphs"):
        read_onnx(nested(reader.MAX_DEPTH + 2))
    with pytest.raises(InspectionError, match="Graphs within graphs"):
        read_onnx(nested(5000))


@pytest.mark.parametrize(
    ("graph", "limit", "message"),
    [
        (field(5, b"") * 50, "MAX_NAMES", "names of values"),
        (field(1, field(1, b"a")) * 50, "MAX_NAMES", "names of values"),
        (b"".join(field(1, field(4, b"a%d" % n)) for n in range(50)), "MAX_OPERATORS", "kinds of operators"),
        (field(2, b"") * 50, "MAX_FIELDS", "fields"),
        (field(5, field(8, b"n" * 50)), "MAX_NAME_BYTES", "A name"),
        (field(5, field(1, b"\x01" * 50)), "MAX_DIMENSIONS", "dimensions"),
        (field(5, field(1, b"\x14\x14")), "MAX_NUMBERS", "impossible size"),
        (field(15, field(3, b"\x14\x14")), "MAX_NUMBERS", "impossible size"),
    ],
)
def test_limits_hold(monkeypatch: pytest.MonkeyPatch, graph: bytes, limit: str, message: str) -> None:
    monkeypatch.setattr(reader, limit, 20)
    with pytest.raises(InspectionError, match=message):
        read_onnx(b"\x08\x0a" + field(7, graph))


@pytest.mark.parametrize("text", ["-1", "1e3", "٣", "9" * 30, ""])
def test_positions_that_are_none_are_refused(text: str) -> None:
    pair = field(1, b"offset") + field(2, text.encode())
    with pytest.raises(InspectionError, match="no position"):
        read_onnx(b"\x08\x0a" + field(7, field(5, field(13, pair) + b"\x70\x01")))


@st.composite
def damaged(draw: st.DrawFn, originals: tuple[bytes, ...]) -> bytes:
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 50))]
        else:
            data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


ONNX_FILES = tuple(model.SerializeToString() for model in MODELS.values())


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=400), damaged(ONNX_FILES)))
def test_any_bytes_are_an_onnx_file_or_a_named_error(data: bytes) -> None:
    try:
        found = read_onnx(data)
    except InspectionError:
        return
    assert found.size == len(data)
    # What was read can be told.
    json.dumps([level_of(found), found.parameters, found.operator_sizes(), found.external_data()])


SAFETENSORS_FILES = (
    save({}),
    save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int64), "empty": np.ones((0, 3), np.float16)}),
    save({"ß\n": np.ones((), np.uint8)}, {"format": "np"}),
)


@pytest.mark.parametrize("data", SAFETENSORS_FILES)
def test_safetensors_are_read_as_their_own_package_reads_them(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    found = read_safetensors(data)

    with safe_open(path, "np") as file:
        expected = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        assert {t.name: (t.dtype, list(t.shape)) for t in found.tensors} == {
            name: (part.get_dtype(), part.get_shape()) for name, part in expected.items()
        }
        assert dict(found.metadata) == (file.metadata() or {})
        assert found.parameters == sum(file.get_tensor(name).size for name in expected)
    assert found.header_size + sum(tensor.size for tensor in found.tensors) == len(data)


def with_header(value: object, body: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends after 0 bytes"),
        ((1 << 40).to_bytes(8, "little") + b"{", "claims 1099511627776 bytes"),
        (with_header(b"{}  ")[:-1], "ends after 11 bytes"),
        (with_header(b"[]"), "of the kind list"),
        (with_header(b"{'a'}"), "is not JSON"),
        (with_header(b"\xff\xff"), "is not JSON"),
        (with_header(b"[" * 100_000), "is not JSON"),
        (with_header(b'{"a": 1' + b"0" * 5000 + b"}"), "is not JSON|lacks"),
        (with_header(b'{"a": 1, "a": 2}'), "comes twice"),
        (with_header({"a": 1}), "'a' in the header lacks"),
        (with_header({"a": {**tensor(), "more": 1}}, EIGHT), "or has more"),
        (with_header({"a": tensor(dtype="F31")}, EIGHT), "the dtype F31"),
        (with_header({"a": tensor(dtype=["F32"])}, EIGHT), "the dtype"),
        (with_header({"a": tensor(shape=[-2])}, EIGHT), "no list"),
        (with_header({"a": tensor(shape=[True, 2])}, EIGHT), "no list"),
        (with_header({"a": tensor(shape=[1] * 65)}, EIGHT), "no list"),
        (with_header({"a": tensor(shape=[1 << 62] * 8)}, EIGHT), "its shape"),
        (with_header({"a": tensor(offsets=[0])}, EIGHT), "not two positions"),
        (with_header({"a": tensor(offsets=[8, 0])}, EIGHT), "has -8 bytes"),
        (with_header({"a": tensor(offsets=[8, 16])}, EIGHT * 2), "begin at 8, where 0 was expected"),
        (with_header({"a": tensor(), "b": tensor()}, EIGHT), "begin at 0, where 8 was expected"),
        (with_header({"a": tensor()}, EIGHT + b"x"), "but it has"),
        (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
        (with_header({"__metadata__": []}), "__metadata__"),
    ],
)
def test_headers_that_break_the_format_are_named_so(data: bytes, message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        read_safetensors(data)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), damaged(SAFETENSORS_FILES), st.binary(max_size=200).map(with_header)))
def test_any_bytes_are_a_safetensors_file_or_a_named_error(data: bytes) -> None:
    try:
        found = read_safetensors(data)
    except InspectionError:
        return
    assert found.size == len(data)
    assert found.header_size + sum(part.size for part in found.tensors) == len(data)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(sorted(header.BITS)), json_values),
        "shape": st.one_of(st.lists(st.integers(-1, 1 << 70), max_size=4), json_values),
        "data_offsets": st.one_of(st.lists(st.integers(-1, 1 << 70), min_size=2, max_size=2), json_values),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.one_of(entries, json_values), max_size=4), st.binary(max_size=8))
def test_any_json_is_a_header_or_a_named_error(value: dict[str, Any], body: bytes) -> None:
    with contextlib.suppress(InspectionError):
        read_safetensors(with_header(value, body))


def padded(data: bytes) -> Callable[[int, int], bytes]:
    """Reads bytes, and zeros behind them."""
    return lambda begin, end: data[begin:end].ljust(end - begin, b"\0")


def test_lying_lengths_take_no_memory() -> None:
    """Lengths that promise gigabytes are not believed: memory stays near what is really there."""
    lying = [b"\x08\x0a\x3a\xff\xff\xff\xff\x07" + b"\x0a\x00" * 5000, (1 << 34).to_bytes(8, "little") + b"{" * 9000]
    tracemalloc.start()
    try:
        for data, parser in zip(lying, (parse_onnx, parse_safetensors), strict=True):
            with pytest.raises(InspectionError):
                drive(parser(1 << 40), padded(data))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_tiny_model_of_the_other_tests_is_read_too(tmp_path: Path) -> None:
    TinyModel(external_data=True).write(tmp_path)
    found = read_onnx((tmp_path / "onnx/model.onnx").read_bytes())

    assert list(found.external_data()) == ["model.onnx_data"]
    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")
    assert read_safetensors((tmp_path / "a.safetensors").read_bytes()).tensors[0].dtype == "F64"
