"""What all rewrites share: names in scope, constants found behind nodes, nodes replaced, leftovers removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from pywebml.prepare.graph import Graph, graphs_of

CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators."""


@dataclass(slots=True)
class Scope:
    """A graph and what is visible in it.

    Attributes:
        graph: The graph.
        parent: The scope that its node lies in.
        initializers: Name to tensor, of this graph alone.
        producers: Name to the node that makes it, of this graph alone.
    """

    graph: GraphProto
    parent: Scope | None
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    producers: dict[str, NodeProto] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that a node uses.

    Attributes:
        scope: Where its tensor lies.
        tensor: The tensor, perhaps a placeholder.
        transposed: The node uses the transpose of this matrix.
    """

    scope: Scope
    tensor: TensorProto
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As the node sees it."""
        dims = tuple(self.tensor.dims)
        return dims[::-1] if self.transposed else dims


class Editor:
    """A graph being rewritten.

    Attributes:
        graph: The model.
        count: Nodes that compute with quantised weights so far.
        reasons: Name of a weight that stays in float to the reason.
        notes: What else a person should know.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.count = 0
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.made: set[str] = set()
        self._names = {
            name
            for inner in graph.graphs()
            for name in (
                *(tensor.name for tensor in inner.initializer),
                *(value.name for value in inner.input),
                *(name for node in inner.node for name in (*node.output, *node.input)),
            )
        }
        self._cache: dict[tuple[int, str, Any], tuple[str, ...]] = {}

    def fresh(self, name: str) -> str:
        """A name that nothing has yet, like this one."""
        chosen, number = name, 1
        while chosen in self._names:
            chosen, number = f"{name}_{number}", number + 1
        self._names.add(chosen)
        return chosen

    def scopes(self) -> list[Scope]:
        """All graphs, inner ones first: who replaces an outer graph's nodes gets new objects for the inner graphs."""
        found: list[Scope] = []

        def visit(graph: GraphProto, parent: Scope | None) -> None:
            scope = Scope(graph, parent)
            scope.initializers = {tensor.name: tensor for tensor in graph.initializer}
            scope.producers = {name: node for node in graph.node for name in node.output if name}
            for node in graph.node:
                for inner in graphs_of(node):
                    visit(inner, scope)
            found.append(scope)

        visit(self.graph.model.graph, None)
        return found

    def rewrite(self, rule: Callable[[Scope, NodeProto], list[NodeProto] | None]) -> None:
        """Replace every node for which `rule` gives others."""
        self._cache.clear()
        for scope in self.scopes():
            nodes: list[NodeProto] = []
            changed = False
            for node in scope.graph.node:
                replaced = rule(scope, node)
                nodes += [node] if replaced is None else replaced
                changed = changed or replaced is not None
            if changed:
                replace_nodes(scope.graph, nodes)

    def read(self, weight: Weight) -> NDArray[Any]:
        """A weight's values as the node sees them."""
        array = self.graph.read(weight.tensor)
        return array.T if weight.transposed else array

    def add(
        self,
        scope: Scope,
        name: str,
        array: NDArray[Any],
        *,
        data_type: int | None = None,
        dims: Iterable[int] | None = None,
    ) -> str:
        """Put a new tensor into a graph; returns the name that it got."""
        chosen = self.fresh(name)
        tensor = scope.graph.initializer.add()
        tensor.CopyFrom(self.graph.make(chosen, array, data_type=data_type, dims=dims))
        scope.initializers[chosen] = tensor
        self.made.add(chosen)
        return chosen

    def once(self, weight: Weight, form: Any, make: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """What `make` gives for this weight in this form; made once however many nodes use it."""
        key = (id(weight.scope.initializers), weight.tensor.name, (form, weight.transposed))
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def left(self, weight: Weight, reason: str) -> None:
        """Note why a weight stays in float."""
        self.reasons.setdefault(weight.tensor.name, reason)

    def use_contrib(self) -> None:
        """Declare ONNX Runtime's own operators."""
        model = self.graph.model
        if all(entry.domain != CONTRIB for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def find_weight(scope: Scope, name: str) -> Weight | None:
    """The constant behind a name: an initializer, also through Identity and the transpose of a matrix."""
    transposed = False
    here: Scope | None = scope
    while here is not None:
        if name in here.initializers:
            return Weight(here, here.initializers[name], transposed)
        node = here.producers.get(name)
        if node is None:
            here = here.parent
        elif is_standard(node, "Identity"):
            name = node.input[0]
        elif is_standard(node, "Transpose") and list(attribute(node, "perm", [1, 0])) == [1, 0]:
            transposed = not transposed
            name = node.input[0]
        else:
            return None
    return None


def is_float_matrix(weight: Weight) -> bool:
    """Two dimensions, float32."""
    return weight.tensor.data_type == TensorProto.FLOAT and len(weight.tensor.dims) == 2


def is_standard(node: NodeProto, *op_types: str) -> bool:
    """Whether a node is one of ONNX's own operators with these names."""
    return node.op_type in op_types and node.domain in ("", "ai.onnx")


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Give a graph other nodes, some of which may be its own; all become new objects."""
    copies = GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def state_shapes(graph: Graph) -> None:
    """Write down the shapes of all values as far as they can be known.

    ONNX Runtime infers them as well, but some of its fusions, such as a sum with the norm behind it, look only at what
    the file says.
    """
    with suppress(onnx.shape_inference.InferenceError):
        graph.model.CopyFrom(onnx.shape_inference.infer_shapes(graph.model))


def normalize(editor: Editor) -> None:
    """Constants of every form become initializers, and initializers are no inputs."""
    for scope in editor.scopes():
        graph = scope.graph
        outputs = {value.name for value in graph.output}
        for value in [value for value in graph.input if value.name in scope.initializers]:
            graph.input.remove(value)
        kept = []
        for node in graph.node:
            tensor = _constant(node)
            # A graph's output has to come from a node.
            if tensor is None or node.output[0] in outputs:
                kept.append(node)
            else:
                lifted = graph.initializer.add()
                lifted.CopyFrom(tensor)
                lifted.name = node.output[0]
        if len(kept) < len(graph.node):
            replace_nodes(graph, kept)


def remove_unused(editor: Editor) -> None:
    """Take away nodes and initializers that nothing uses any more, and shapes of what is not made any more."""
    graph = editor.graph.model.graph
    while True:
        uses = Counter(_used(graph))
        removed = False
        for scope in editor.scopes():
            nodes, initializers = scope.graph.node, scope.graph.initializer
            idle = [at for at, node in enumerate(nodes) if node.output and not any(uses[name] for name in node.output)]
            unread = [at for at, tensor in enumerate(initializers) if not uses[tensor.name]]
            for at in reversed(idle):
                del nodes[at]
            for at in reversed(unread):
                del initializers[at]
            removed = removed or bool(idle or unread)
        if not removed:
            break
    for scope in editor.scopes():
        made = {*scope.producers, *(value.name for value in scope.graph.input)}
        stated = scope.graph.value_info
        for at in reversed([at for at, value in enumerate(stated) if value.name not in made]):
            del stated[at]


def users(editor: Editor) -> dict[str, set[str]]:
    """Name to the operators that use it, wherever they are."""
    found: dict[str, set[str]] = {}
    for inner in editor.graph.graphs():
        for node in inner.node:
            for name in node.input:
                found.setdefault(name, set()).add(node.op_type)
    return found


def _used(graph: GraphProto) -> Iterator[str]:
    for value in graph.output:
        yield value.name
    for node in graph.node:
        yield from node.input
        for inner in graphs_of(node):
            yield from _used(inner)


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; None for other nodes and for strings."""
    if not is_standard(node, "Constant"):
        return None
    (found,) = node.attribute
    value = helper.get_attribute_value(found)
    if found.type == AttributeProto.TENSOR:
        tensor: TensorProto = value
        return tensor
    if found.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
        return onnx.numpy_helper.from_array(np.array(value, np.float32))
    if found.type in (AttributeProto.INT, AttributeProto.INTS):
        return onnx.numpy_helper.from_array(np.array(value, np.int64))
    return None
