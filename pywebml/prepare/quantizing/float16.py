"""float16: every number in half precision, except where an operator or the arithmetic needs float32.

Types are followed through the whole graph, branches and loop bodies included, by the operators' own schemas, so that
each value exists in the form in which it is used: where the two meet there is one Cast. Inputs and outputs of the
model stay float32, so that a program feeds every level the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from pywebml.errors import ConversionError
from pywebml.prepare.graph import graphs_of
from pywebml.prepare.quantizing.editing import Editor, attribute, is_standard

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
LARGEST = np.float32(65504)
SMALLEST = np.float32(5.96e-08)
"""The smallest number above zero, as ONNX Runtime's converter has it."""

PRECISE = ("Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Sqrt", "Reciprocal", "CumSum", "Range")
"""Kept in float32: squares and sums leave the range of float16 long before the numbers they belong to do, and the
epsilon of a norm is below its smallest number."""
BETWEEN = ("Add", "Sub", "Mul", "Div")
"""Kept in float32 as well where they stand between two precise operators, such as the epsilon of a norm."""
EXACT = ("Cos", "Sin", "Floor", "Ceil", "Round")
"""Their arguments are kept in float32, and so is a Cast to whole numbers: float16 has no odd numbers above 2048, so
positions beyond would get the angles of their neighbours, and values near a border the wrong bucket."""
BEFORE_EXACT = (
    *("Add", "Sub", "Mul", "Div", "MatMul", "Einsum", "Log", "Min", "Max", "Cast", "Neg", "Abs"),
    *("Concat", "Expand", "Reshape", "Squeeze", "Slice", "Tile", "Transpose", "Unsqueeze", "Identity"),
)
"""Kept in float32 as well where all that they make goes into such an argument."""

_WHOLE = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8)
_TYPED = {
    "EyeLike",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_FLOAT_BY_DEFAULT = ("RandomNormal", "RandomUniform")


@dataclass(slots=True)
class _Value:
    """A value of the original graph in the forms that it has so far.

    Attributes:
        element_type: In the original graph.
        forms: Element type to the name that has it.
        tensor: Of an initializer that no one has used yet.
    """

    element_type: int
    forms: dict[int, str] = field(default_factory=dict)
    tensor: TensorProto | None = None


class _Names:
    """What is visible in a graph, and the graph's new nodes."""

    def __init__(self, graph: GraphProto, parent: _Names | None) -> None:
        self.graph = graph
        self.parent = parent
        self.values: dict[str, _Value] = {}
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.shapes = list(GraphProto(value_info=graph.value_info).value_info)

    def find(self, name: str) -> tuple[_Names, _Value] | None:
        here: _Names | None = self
        while here is not None:
            if name in here.values:
                return here, here.values[name]
            here = here.parent
        return None


def convert_to_float16(editor: Editor) -> int:
    """Rewrite the whole model.

    Returns:
        The number of tensors that are float16 now.

    Raises:
        ConversionError: The model has functions of its own, whose types cannot be followed.
    """
    model = editor.graph.model
    if model.functions:
        raise ConversionError(
            f"The model has functions of its own ({model.functions[0].name}, …); their types cannot be followed. "
            "Export it without functions."
        )
    converter = _Converter(editor)
    converter.convert_model(model.graph)
    if converter.too_large:
        names = ", ".join(sorted(converter.clamped))
        editor.notes.append(f"numbers beyond ±65504 that became ±65504: {converter.too_large} (in {names})")
    if converter.too_small:
        editor.notes.append(f"numbers below 6e-8 that became ±6e-8: {converter.too_small}")
    return converter.tensors


class _Converter:
    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.opset = next((o.version for o in editor.graph.model.opset_import if o.domain in ("", "ai.onnx")), 18)
        self.tensors = 0
        self.too_large = 0
        self.too_small = 0
        self.clamped: set[str] = set()

    def convert_model(self, graph: GraphProto) -> None:
        names = _Names(graph, None)
        for value in graph.input:
            names.values[value.name] = _Value(_element_type(value), {_element_type(value): value.name})
        # Outputs keep name and type; whoever makes one in float16 makes it under another name.
        outputs = {value.name for value in graph.output}
        self._convert_graph(names, outputs)
        for value in graph.output:
            owner = names.values[value.name]
            if owner.element_type == FLOAT and value.name not in owner.forms.values():
                names.nodes.append(_cast(self.editor, owner.forms[HALF], value.name, FLOAT))
        self._finish(names)

    def _convert_graph(self, names: _Names, reserved: set[str]) -> None:
        graph = names.graph
        for tensor in list(graph.initializer):
            if tensor.data_type != FLOAT:
                names.values[tensor.name] = _Value(tensor.data_type, {tensor.data_type: tensor.name})
                continue
            names.values[tensor.name] = _Value(FLOAT, tensor=tensor)
            if tensor.name in reserved:
                self._tensor(names, tensor.name, names.values[tensor.name], FLOAT)
        del graph.value_info[:]
        precise = _precise_nodes(graph)
        for index, node in enumerate(graph.node):
            self._convert_node(names, node, reserved, index in precise)

    def _finish(self, names: _Names) -> None:
        graph = names.graph
        kept = [tensor for tensor in graph.initializer if names.values.get(tensor.name, _Value(0)).tensor is not tensor]
        copies = GraphProto(initializer=kept, node=names.nodes)
        del graph.initializer[:]
        del graph.node[:]
        graph.initializer.extend(copies.initializer)
        graph.node.extend(copies.node)
        for shape in names.shapes:
            value = names.values.get(shape.name)
            for form, name in value.forms.items() if value is not None else ():
                stated = graph.value_info.add()
                stated.CopyFrom(shape)
                stated.name = name
                stated.type.tensor_type.elem_type = form

    def _convert_node(self, names: _Names, node: NodeProto, reserved: set[str], precise: bool) -> None:
        new = NodeProto()
        new.CopyFrom(node)
        inputs = [self._type_of(names, name) for name in node.input]
        forms = [_wanted(node, index, precise, self.opset) for index in range(len(node.input))]
        for index, name in enumerate(node.input):
            if name and inputs[index] == FLOAT:
                new.input[index] = self._use(names, name, forms[index])
            elif name and (found := names.find(name)) is not None:
                new.input[index] = next(iter(found[1].forms.values()))
        branches = [self._convert_branch(names, graph, inputs) for graph in graphs_of(new)]
        types = _output_types(node, inputs, self.opset)
        if branches:
            skipped = 1 if node.op_type == "Loop" else 0
            types = (branches[0][skipped:] + [0] * len(node.output))[: len(node.output)]
        self._convert_attributes(new, _made(node, 0, precise, self.opset))
        for index, name in enumerate(node.output):
            if not name:
                continue
            element_type = types[index]
            form = _made(node, index, precise, self.opset) if element_type == FLOAT else element_type
            target = name
            if name in reserved and element_type == FLOAT and form == HALF:
                target = self.editor.fresh(f"{name}_half")
                new.output[index] = target
            names.values[name] = _Value(element_type, {form: target})
        names.nodes.append(new)

    def _convert_branch(self, names: _Names, graph: GraphProto, inputs: list[int]) -> list[int]:
        """A branch or body, in place. Its float inputs and outputs become float16; returns what the outputs were."""
        inside = _Names(graph, names)
        for index, value in enumerate(graph.input):
            element_type = _element_type(value)
            if not element_type:
                # Loop: iteration number and condition come before what is carried.
                element_type = inputs[index] if index < len(inputs) else 0
            form = HALF if element_type == FLOAT else element_type
            inside.values[value.name] = _Value(element_type, {form: value.name})
            if element_type == FLOAT:
                value.type.tensor_type.elem_type = HALF
        self._convert_graph(inside, set())
        types = []
        for value in graph.output:
            types.append(self._type_of(inside, value.name) or _element_type(value))
            if types[-1] == FLOAT:
                value.name = self._use(inside, value.name, HALF)
                value.type.tensor_type.elem_type = HALF
        self._finish(inside)
        return types

    def _type_of(self, names: _Names, name: str) -> int:
        found = names.find(name) if name else None
        return found[1].element_type if found else 0

    def _use(self, names: _Names, name: str, form: int) -> str:
        """The name under which a float value has a form here; makes a Cast or a tensor where there is none."""
        found = names.find(name)
        if found is None:
            raise ConversionError(f"The graph uses '{name}', and nothing in it makes that.")
        owner, value = found
        if form in value.forms:
            return value.forms[form]
        if value.tensor is not None:
            return self._tensor(owner, name, value, form)
        here: _Names | None = names
        while here is not None:
            if (name, form) in here.casts:
                return here.casts[name, form]
            here = here.parent if here is not owner else None
        source = next(iter(value.forms.values()))
        target = self.editor.fresh(f"{name}_{'half' if form == HALF else 'float'}")
        names.nodes.append(_cast(self.editor, source, target, form))
        names.casts[name, form] = target
        return target

    def _tensor(self, owner: _Names, name: str, value: _Value, form: int) -> str:
        assert value.tensor is not None
        target = name if not value.forms else self.editor.fresh(f"{name}_{'half' if form == HALF else 'float'}")
        tensor = owner.graph.initializer.add()
        if form == HALF:
            half = self._half(name, self.editor.graph.read(value.tensor))
            tensor.CopyFrom(self.editor.graph.make(target, half))
        else:
            tensor.CopyFrom(value.tensor)
            tensor.name = target
        value.forms[form] = target
        return target

    def _half(self, name: str, numbers: NDArray[np.float32]) -> NDArray[np.float16]:
        half, too_large, too_small = to_half(numbers)
        self.tensors += 1
        self.too_large += too_large
        self.too_small += too_small
        if too_large:
            self.clamped.add(name)
        return half

    def _convert_attributes(self, node: NodeProto, form: int) -> None:
        if form == FLOAT:
            return
        for found in node.attribute:
            if found.type == AttributeProto.TENSOR and found.t.data_type == FLOAT:
                name = node.output[0]
                found.t.CopyFrom(
                    self.editor.graph.make(found.t.name, self._half(name, self.editor.graph.read(found.t)))
                )
        if is_standard(node, "Cast", *_TYPED):
            key = "to" if node.op_type == "Cast" else "dtype"
            for found in node.attribute:
                if found.name == key and found.i == FLOAT:
                    found.i = HALF
            if node.op_type in _FLOAT_BY_DEFAULT and attribute(node, key, None) is None:
                node.attribute.append(helper.make_attribute(key, HALF))
        if is_standard(node, "ConstantOfShape") and not node.attribute:
            zero = helper.make_tensor("value", HALF, [1], [0.0])
            node.attribute.append(helper.make_attribute("value", zero))
        if is_standard(node, "Constant"):
            for found in list(node.attribute):
                if found.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
                    half = self._half(node.output[0], np.array(helper.get_attribute_value(found), np.float32))
                    node.attribute.remove(found)
                    node.attribute.append(helper.make_attribute("value", self.editor.graph.make("", half)))


def to_half(numbers: NDArray[np.float32]) -> tuple[NDArray[np.float16], int, int]:
    """float32 as float16 without losing signs or becoming infinite.

    Returns:
        The numbers; how many were beyond ±65504; how many were so small that they would have become zero.
    """
    half = np.empty(numbers.shape, np.float16)
    flat, target = numbers.reshape(-1), half.reshape(-1)
    too_large = too_small = 0
    for start in range(0, flat.size, 1 << 18):
        part = flat[start : start + (1 << 18)]
        magnitude = np.abs(part)
        large = (magnitude > LARGEST) & np.isfinite(part)
        small = (magnitude < SMALLEST) & (part != 0)
        limited = np.where(large, np.copysign(LARGEST, part), np.where(small, np.copysign(SMALLEST, part), part))
        target[start : start + (1 << 18)] = limited
        too_large += int(large.sum())
        too_small += int(small.sum())
    return half, too_large, too_small


def _cast(editor: Editor, source: str, target: str, element_type: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=editor.fresh(f"{target}_cast"), to=element_type)


def _element_type(value: onnx.ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0


def _schema(node: NodeProto, opset: int) -> Any:
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _formal(parameters: Any, index: int) -> Any:
    """The parameter that an argument belongs to; the last one may stand for many."""
    if index < len(parameters):
        return parameters[index]
    return parameters[-1] if parameters else None


def _allows_half(schema: Any, type_text: str) -> bool:
    for constraint in schema.type_constraints:
        if constraint.type_param_str == type_text:
            return "tensor(float16)" in constraint.allowed_type_strs
    return type_text == "tensor(float16)"


def _made(node: NodeProto, index: int, precise: bool, opset: int) -> int:
    """The form of float that an operator gives as an output."""
    if precise:
        return FLOAT
    schema = _schema(node, opset)
    if schema is None or graphs_in(node) or is_standard(node, "Cast", "Constant", "ConstantOfShape", *_TYPED):
        return HALF
    parameter = _formal(schema.outputs, index)
    return HALF if parameter is None or _allows_half(schema, parameter.type_str) else FLOAT


def graphs_in(node: NodeProto) -> bool:
    """Whether a node has branches or a body."""
    return next(graphs_of(node), None) is not None


def _wanted(node: NodeProto, index: int, precise: bool, opset: int) -> int:
    """The form of float in which an operator takes an argument."""
    if precise:
        return FLOAT
    schema = _schema(node, opset)
    if schema is None or graphs_in(node):
        return HALF
    parameter = _formal(schema.inputs, index)
    if parameter is None or _allows_half(schema, parameter.type_str):
        return HALF
    return FLOAT


def _output_types(node: NodeProto, inputs: list[int], opset: int) -> list[int]:
    """Element types of a node's outputs in the original graph; 0 where none is known."""
    if is_standard(node, "Cast"):
        return [attribute(node, "to", FLOAT)]
    if is_standard(node, "Constant", "ConstantOfShape"):
        return [_constant_type(node)]
    if is_standard(node, *_TYPED):
        return [attribute(node, "dtype", inputs[0] if inputs and node.op_type.endswith("Like") else FLOAT)]
    schema = _schema(node, opset)
    if schema is None:
        # ONNX Runtime's own operators compute in the type of their floats.
        first = next((kind for kind in inputs if kind in (FLOAT, HALF)), inputs[0] if inputs else 0)
        return [first] * len(node.output)
    bound: dict[str, int] = {}
    for index, element_type in enumerate(inputs):
        parameter = _formal(schema.inputs, index)
        if parameter is not None and element_type:
            bound.setdefault(parameter.type_str, element_type)
    return [
        _bound_type(schema, _formal(schema.outputs, index).type_str, bound, inputs) for index in range(len(node.output))
    ]


def _bound_type(schema: Any, text: str, bound: dict[str, int], inputs: list[int]) -> int:
    """The element type behind a schema's word for it: a type, or a variable."""
    if text in bound:
        return bound[text]
    for constraint in schema.type_constraints:
        if constraint.type_param_str == text and len(constraint.allowed_type_strs) == 1:
            text = constraint.allowed_type_strs[0]
    if text.startswith("tensor("):
        return int(TensorProto.DataType.Value(text[len("tensor(") : -1].upper()))
    return inputs[0] if inputs else 0


def _constant_type(node: NodeProto) -> int:
    for found in node.attribute:
        if found.type == AttributeProto.TENSOR:
            return int(found.t.data_type)
        if found.type in (AttributeProto.INT, AttributeProto.INTS):
            return TensorProto.INT64
    return FLOAT


def _precise_nodes(graph: GraphProto) -> set[int]:
    """Positions of the nodes that stay in float32."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            consumers.setdefault(name, []).append(index)
    precise = {index for index, node in enumerate(graph.node) if is_standard(node, *PRECISE)}

    def all_precise(indices: list[int]) -> bool:
        return bool(indices) and all(index in precise for index in indices)

    for index, node in enumerate(graph.node):
        sources = [producers[name] for name in node.input if name in producers]
        users = consumers.get(node.output[0], []) if node.output else []
        if is_standard(node, *BETWEEN) and all_precise(sources) and all_precise(users):
            precise.add(index)
    exact: set[int] = set()
    outputs = {value.name for value in graph.output}
    for index, node in reversed(list(enumerate(graph.node))):
        users = consumers.get(node.output[0], []) if node.output else []
        into_exact = bool(users) and all(user in exact for user in users) and node.output[0] not in outputs
        to_whole = is_standard(node, "Cast") and attribute(node, "to", FLOAT) in _WHOLE
        if is_standard(node, *EXACT) or to_whole or (is_standard(node, *BEFORE_EXACT) and into_exact):
            exact.add(index)
    return precise | exact
