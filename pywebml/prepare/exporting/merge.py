"""One decoder for the first step and for every later one.

In the first step the keys and values of cross attention are computed from the encoder's output; later they come out of
the cache. Everything else is the same, so an `If` per layer holds cross attention alone: what follows from
`encoder_hidden_states` in one branch, what follows from the cache in the other. Two whole decoders as branches would
do too, but the runtime packs the weights of each branch anew, so they would take twice the memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from pywebml.errors import ConversionError
from pywebml.prepare.compare import check_versions
from pywebml.prepare.exporting.torch_export import opset_of, save_model

USE_CACHE = "use_cache_branch"
"""Bool of shape [1]: whether the caches hold the keys and values of an encoder's output."""
HIDDEN = "encoder_hidden_states"
OF_CACHE = "encoder_sequence_length_out"
"""Length of the encoder's keys and values, which is 0 in the first step; so it has a name of its own."""


def past_names(layer: int, attention: str) -> tuple[str, str]:
    """Key and value that a layer is given; `attention` is `decoder` or `encoder`."""
    return f"past_key_values.{layer}.{attention}.key", f"past_key_values.{layer}.{attention}.value"


def present_names(layer: int, attention: str) -> tuple[str, str]:
    """Key and value that a layer gives; `attention` is `decoder` or `encoder`."""
    return f"present.{layer}.{attention}.key", f"present.{layer}.{attention}.value"


def merge_decoder(decoder_file: Path, cross_file: Path, layers: int) -> onnx.ModelProto:
    """Put the computation of the encoder's keys and values into a decoder that wants them from the cache.

    The outputs `present.N.encoder.*` are they in the first step and empty later, since whoever runs the decoder keeps
    those of the first step: the files of Hugging Face's optimum do the same.

    Args:
        decoder_file: Takes `past_key_values.N.decoder.*` and `past_key_values.N.encoder.*`, gives `logits` and
            `present.N.decoder.*`. Its weights may lie in another file, which stays as it is.
        cross_file: Takes `encoder_hidden_states`, gives `present.N.encoder.*`.
        layers: How many N there are.

    Raises:
        ConversionError: The files do not fit together, or cross attention cannot be told from the rest.
    """
    merged = onnx.load(decoder_file, load_external_data=False)
    cross = onnx.load(cross_file)
    if [*merged.opset_import] != [*cross.opset_import] or merged.functions or cross.functions:
        raise ConversionError("The two halves of the decoder do not use the same operators.")
    graph = merged.graph
    _read_lengths_elsewhere(graph, layers)
    for tensor in cross.graph.initializer:
        renamed = graph.initializer.add()
        renamed.CopyFrom(tensor)
        renamed.name = f"cross.{tensor.name}"
    shared = {tensor.name: f"cross.{tensor.name}" for tensor in cross.graph.initializer} | {HIDDEN: HIDDEN}
    nodes = [*graph.node]
    for layer in range(layers):
        nodes = _with_choice(nodes, cross.graph, layer, shared)
    # Copies, since the list that they are in is emptied.
    copies = [_renamed(node, {}) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    _arrange_inputs_and_outputs(graph, cross.graph, layers)
    return merged


def save_merged(model: onnx.ModelProto, path: Path) -> None:
    """Write the decoder over the one that it was made from, whose weights may lie beside it.

    Raises:
        ConversionError: The file is not what the web runtime loads.
    """
    check_versions(path, opset_of(model), model.ir_version)
    save_model(model, path)
    outside = any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
    try:
        onnx.checker.check_model(path if outside else model, full_check=not outside)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"Merging gave a file that is not valid ONNX: {error}") from error


def _read_lengths_elsewhere(graph: GraphProto, layers: int) -> None:
    """Take batch size and length from the encoder's output, which has the right shape in the first step too."""
    of_cache = {name for layer in range(layers) for name in past_names(layer, "encoder")}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in of_cache:
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            axis = {(0, 1): 0, (2, 3): 1}.get((bounds.get("start", 0), bounds.get("end", 4)))
            if axis is None:
                raise ConversionError(f"The decoder needs the whole shape of {node.input[0]}, which varies.")
            node.input[0] = HIDDEN
            del node.attribute[:]
            node.attribute.extend([helper.make_attribute("start", axis), helper.make_attribute("end", axis + 1)])


def _with_choice(
    nodes: Sequence[NodeProto], cross: GraphProto, layer: int, shared: Mapping[str, str]
) -> list[NodeProto]:
    """The decoder's nodes with an `If` in place of a layer's cross attention."""
    past, present = past_names(layer, "encoder"), present_names(layer, "encoder")
    attention = _attention(nodes, past)
    context = attention[-1].output[0]
    prefix = f"layer.{layer}.cross"
    computed = _ancestors(cross, present)

    names = {**{name: f"{prefix}.computed.{name}" for name in _outputs(computed)}, **shared}
    fresh = [_renamed(node, names) for node in computed]
    names = dict(zip(past, (names[name] for name in present), strict=True))
    names |= {name: f"{prefix}.first.{name}" for name in _outputs(attention)}
    fresh += [_renamed(node, names) for node in attention]
    fresh_outputs = [names[context], *(names[name] for name in past)]

    names = {name: f"{prefix}.later.{name}" for name in _outputs(attention)}
    kept = [_renamed(node, names) for node in attention]
    kept_outputs = [names[context], *(f"{prefix}.empty.{which}" for which in ("key", "value"))]
    shape = _cache_shape(cross, present[0])
    for name in kept_outputs[1:]:
        empty = helper.make_tensor("", TensorProto.FLOAT, [0, shape[1], 1, shape[3]], [])
        kept.append(helper.make_node("Constant", [], [name], value=empty))

    branches = {
        "then_branch": helper.make_graph(kept, f"{prefix}.later", [], [_float(name) for name in kept_outputs]),
        "else_branch": helper.make_graph(fresh, f"{prefix}.first", [], [_float(name) for name in fresh_outputs]),
    }
    choice = helper.make_node("If", [USE_CACHE], [context, *present], name=f"{prefix}.choice", **branches)
    # Protobuf messages compare by content; which object it is decides here.
    replaced = {id(node) for node in attention[:-1]}
    return [choice if node is attention[-1] else node for node in nodes if id(node) not in replaced]


def _attention(nodes: Sequence[NodeProto], past: Sequence[str]) -> list[NodeProto]:
    """The nodes from a layer's cached keys and values to what attention gives, in order."""
    key, value = past
    depends_on_value, depends = {value}, {key, value}
    found: list[NodeProto] = []
    for node in nodes:
        if not depends.isdisjoint(node.input):
            depends.update(node.output)
            found.append(node)
            if not depends_on_value.isdisjoint(node.input):
                depends_on_value.update(node.output)
                # The first product that values go into is their sum weighted by attention.
                if node.op_type == "MatMul":
                    break
    else:
        raise ConversionError(f"The decoder does not use {value} as attention does.")
    inside = {id(node) for node in found}
    used_outside = {name for node in nodes if id(node) not in inside for name in node.input}
    used_inside = {name for node in found for name in node.input}
    if not used_outside.isdisjoint(_outputs(found[:-1])) or not used_inside.issuperset(past):
        raise ConversionError(f"Cross attention with {key} cannot be told from the rest of the decoder.")
    return found


def _ancestors(graph: GraphProto, names: Iterable[str]) -> list[NodeProto]:
    """The nodes that these values are computed by, in order."""
    wanted = {*names}
    found = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _outputs(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output}


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    for values in (copy.input, copy.output):
        values[:] = [names.get(name, name) for name in values]
    return copy


def _float(name: str) -> onnx.ValueInfoProto:
    """A branch's output; its shape follows from its nodes."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _cache_shape(cross: GraphProto, name: str) -> list[int]:
    value = next(value for value in cross.output if value.name == name)
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _arrange_inputs_and_outputs(graph: GraphProto, cross: GraphProto, layers: int) -> None:
    """In the order of optimum's files: the encoder's output after `input_ids`, the caches by layer."""
    values = {value.name: value for value in (*graph.input, *graph.output, *cross.input, *cross.output)}
    names = [value.name for value in graph.input]
    names.insert(names.index("input_ids") + 1, HIDDEN)
    inputs = [_copied(values[name]) for name in names]
    inputs.append(helper.make_tensor_value_info(USE_CACHE, TensorProto.BOOL, [1]))
    order = ["logits", *(n for i in range(layers) for kind in ("decoder", "encoder") for n in present_names(i, kind))]
    outputs = [_copied(values[name]) for name in order]
    of_encoder: Collection[str] = {
        name for i in range(layers) for name in (*past_names(i, "encoder"), *present_names(i, "encoder"))
    }
    for value in (*inputs, *outputs):
        if value.name in of_encoder:
            value.type.tensor_type.shape.dim[2].dim_param = OF_CACHE
    for old, new in ((graph.input, inputs), (graph.output, outputs)):
        del old[:]
        old.extend(new)


def _copied(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    return copy
