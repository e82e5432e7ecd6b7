"""The same numbers stored once: equal tensors, equal bytes in another shape, and a matrix that is another's transpose.

A shape or a transpose becomes a node over the one tensor that stays. The runtime computes such nodes once while it
loads the model, so memory in use is what it would be with two tensors, and the file is smaller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from pywebml.prepare.graph import INLINE_BYTES, graphs_of
from pywebml.prepare.quantizing.editing import Editor, Scope

_TRANSPOSABLE = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8)


def share_tied(editor: Editor) -> int:
    """Store equal tensors of 1 KiB and more once, where the one is visible to whoever uses the other.

    Returns:
        The number of tensors that are gone.
    """
    gone = 0
    known: dict[int, dict[bytes, TensorProto]] = {}
    # Outer graphs first: their tensors are visible inside.
    for scope in reversed(editor.scopes()):
        seen: dict[bytes, TensorProto] = {}
        for outer in _outwards(scope.parent):
            seen = known[id(outer)] | seen
        own: dict[bytes, TensorProto] = {}
        outputs = {value.name for value in scope.graph.output}
        for name, tensor in list(scope.initializers.items()):
            if editor.graph.size(tensor) < INLINE_BYTES or name in outputs:
                continue
            key = _hash(editor, tensor)
            twin = own.get(key) or seen.get(key)
            node = None
            if twin is not None and list(twin.dims) != list(tensor.dims):
                node = _reshape(editor, scope, twin, tensor)
            elif twin is None:
                twin = _transposed_twin(editor, tensor, own | seen)
                if twin is None:
                    own[key] = tensor
                    continue
                node = helper.make_node(
                    "Transpose", [twin.name], [name], name=editor.fresh(f"{name}_tied"), perm=[1, 0]
                )
            if node is None:
                _rename(scope.graph, name, twin.name)
            else:
                # In front: whoever uses it comes later.
                scope.graph.node.insert(0, node)
            names = [other.name for other in scope.graph.initializer]
            del scope.graph.initializer[names.index(name)]
            gone += 1
        known[id(scope)] = own
    return gone


def _outwards(scope: Scope | None) -> Iterator[Scope]:
    while scope is not None:
        yield scope
        scope = scope.parent


def _hash(editor: Editor, tensor: TensorProto) -> bytes:
    """Of type and bytes; the shape does not count."""
    digest = hashlib.sha256(f"{tensor.data_type} ".encode())
    for block in editor.graph.blocks(tensor):
        digest.update(block)
    return digest.digest()


def _transposed_twin(editor: Editor, tensor: TensorProto, seen: dict[bytes, TensorProto]) -> TensorProto | None:
    """A known matrix whose transpose this is."""
    if len(tensor.dims) != 2 or tensor.data_type not in _TRANSPOSABLE or min(tensor.dims) == 1:
        return None
    alike = [other for other in seen.values() if list(other.dims) == list(tensor.dims)[::-1]]
    # Reading turns a matrix round in memory, so only what can be meant is read.
    if not any(other.data_type == tensor.data_type for other in alike):
        return None
    turned = np.ascontiguousarray(editor.graph.read(tensor).T)
    digest = hashlib.sha256(f"{tensor.data_type} ".encode())
    digest.update(turned.reshape(-1).view(np.uint8).data)
    twin = seen.get(digest.digest())
    return twin if twin is not None and list(twin.dims) == list(turned.shape) else None


def _reshape(editor: Editor, scope: Scope, twin: TensorProto, tensor: TensorProto) -> NodeProto:
    shape = editor.add(scope, f"{tensor.name}_shape", np.array(tensor.dims, np.int64))
    return helper.make_node("Reshape", [twin.name, shape], [tensor.name], name=editor.fresh(f"{tensor.name}_tied"))


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for inner in graphs_of(node):
            _rename(inner, old, new)
