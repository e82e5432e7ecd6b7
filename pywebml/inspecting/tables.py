"""What was found, as text for people and as plain data for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pywebml.inspecting.files import InspectedFile
from pywebml.inspecting.onnx import OnnxFile, Value, level_of
from pywebml.inspecting.safetensors import SafetensorsFile

LARGEST = 10
"""Tensors and operators that are shown unless told otherwise."""

Rows = list[tuple[str, ...]]


def to_plain(files: Sequence[InspectedFile], largest: int | None = None) -> list[dict[str, Any]]:
    """Plain data, the same for the same files.

    Args:
        files: What was found.
        largest: How many tensors of each file to name, the largest first; None: all.
    """
    return [
        {
            "path": file.path,
            "size": file.size,
            "kind": file.kind,
            "problems": file.problems,
            **({} if file.content is None else _content(file, largest)),
        }
        for file in files
    ]


def _content(file: InspectedFile, largest: int | None) -> dict[str, Any]:
    content = file.content
    if isinstance(content, OnnxFile):
        tensors = sorted(content.tensors, key=lambda tensor: -tensor.size)[:largest]
        return {
            "level": level_of(content),
            "parameters": content.parameters,
            "ir_version": content.ir_version,
            "opsets": dict(sorted(content.opsets.items())),
            "producer": content.producer,
            "inputs": [_plain_value(value) for value in content.inputs],
            "outputs": [_plain_value(value) for value in content.outputs],
            "operators": {name: {"nodes": content.operators[name], "size": size} for name, size in _operators(content)},
            "quantized": [
                {"operator": operator, "bits": bits, "block_size": block, "nodes": nodes}
                for (operator, bits, block), nodes in sorted(content.bits.items())
            ],
            "subgraphs": content.subgraphs,
            "functions": content.functions,
            "external_data": {
                name: {"needed": least, "size": file.data_files.get(name)}
                for name, least in content.external_data().items()
            },
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.dims),
                    "size": tensor.size,
                    "operator": tensor.operator,
                    **({} if tensor.file is None else {"file": tensor.file, "offset": tensor.offset}),
                }
                for tensor in tensors
            ],
        }
    assert isinstance(content, SafetensorsFile)
    named = sorted(content.tensors, key=lambda tensor: -tensor.size)[:largest]
    return {
        "parameters": content.parameters,
        "header_size": content.header_size,
        "dtypes": _dtypes(content),
        "metadata": dict(content.metadata),
        "tensors": [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "size": tensor.size}
            for tensor in named
        ],
    }


def to_text(files: Sequence[InspectedFile], largest: int = LARGEST) -> str:
    """Text for a terminal: one file in detail, or a table of many."""
    if len(files) == 1 and files[0].content is not None:
        lines = _detailed(files[0], largest)
    else:
        found: Rows = [(file.path, _size(file.size), *_summary(file)) for file in files]
        lines = _table(("FILE", ">SIZE", "KIND", "LEVEL", ">PARAMETERS", "OPSET"), found)
        lines.append(f"{len(files)} files, {_size(sum(file.size for file in files))}")
        lines += [f"{file.path}: {problem}" for file in files for problem in file.problems]
    return "\n".join(
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line) for line in lines
    )


def _detailed(file: InspectedFile, largest: int) -> list[str]:
    content = file.content
    kind, level, count, _ = _summary(file)
    level = f", {level}" if level else ""
    lines = [f"{file.path}: {kind}, {_size(file.size)}{level}, {count} parameters"]
    if isinstance(content, OnnxFile):
        opsets = ", ".join(f"{domain or 'opset'} {version}" for domain, version in sorted(content.opsets.items()))
        lines.append(f"{opsets}; IR version {content.ir_version}; written by {content.producer or 'nobody'}")
        if content.subgraphs or content.functions:
            lines.append(f"{content.subgraphs} subgraphs, {content.functions} functions")
        for title, values in (("Inputs", content.inputs), ("Outputs", content.outputs)):
            lines += ["", title, *_table(("", "", ""), [(v.name, v.dtype, _dims(v)) for v in values])]
        if content.bits:
            found = [
                (operator, f"{bits} bits", f"blocks of {block}" if block else "", f"{nodes} nodes")
                for (operator, bits, block), nodes in sorted(content.bits.items())
            ]
            lines += ["", "Quantised", *_table(("", "", "", ">"), found)]
        operators = [(name, str(content.operators[name]), _size(size)) for name, size in _operators(content)[:largest]]
        lines += ["", *_table(("OPERATOR", ">NODES", ">CONSTANTS"), operators)]
        rows = [
            (tensor.name, tensor.dtype, _shape(tensor.dims), _size(tensor.size), tensor.operator, tensor.file or "")
            for tensor in sorted(content.tensors, key=lambda tensor: -tensor.size)[:largest]
        ]
        lines += ["", *_table(("TENSOR", "DTYPE", "SHAPE", ">SIZE", "OPERATOR", "FILE"), rows)]
        if content.external_data():
            data = [
                (name, _size(least), "not looked at" if name not in file.data_files else _found(file.data_files[name]))
                for name, least in content.external_data().items()
            ]
            lines += ["", *_table(("EXTERNAL DATA", ">NEEDED", ">FOUND"), data)]
    elif isinstance(content, SafetensorsFile):
        lines.append(f"header of {content.header_size} bytes; {len(content.tensors)} tensors")
        lines += [f"{name}: {text[:200]}" for name, text in sorted(content.metadata.items())]
        named = [
            (tensor.name, tensor.dtype, _shape(tensor.shape), _size(tensor.size))
            for tensor in sorted(content.tensors, key=lambda tensor: -tensor.size)[:largest]
        ]
        lines += ["", *_table(("TENSOR", "DTYPE", "SHAPE", ">SIZE"), named)]
    return lines + [f"Problem: {problem}" for problem in file.problems]


def _summary(file: InspectedFile) -> tuple[str, str, str, str]:
    content = file.content
    if isinstance(content, OnnxFile):
        return file.kind, level_of(content), _count(content.parameters), f"opset {content.opset}"
    if isinstance(content, SafetensorsFile):
        return file.kind, "+".join(sorted(_dtypes(content))), _count(content.parameters), ""
    return file.kind, "", "", ""


def _operators(content: OnnxFile) -> list[tuple[str, int]]:
    """Operators and the bytes of their constants, those with the most bytes first, then those with the most nodes."""
    sizes = content.operator_sizes()
    return sorted(
        ((name, sizes.get(name, 0)) for name in content.operators),
        key=lambda pair: (-pair[1], -content.operators[pair[0]], pair[0]),
    )


def _dtypes(content: SafetensorsFile) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in content.tensors:
        sizes[tensor.dtype] += tensor.size
    return dict(sorted(sizes.items()))


def _plain_value(value: Value) -> dict[str, Any]:
    return {"name": value.name, "dtype": value.dtype, "shape": None if value.dims is None else list(value.dims)}


def _dims(value: Value) -> str:
    return "of any rank" if value.dims is None else _shape(value.dims)


def _shape(dims: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def _found(size: int | None) -> str:
    return "missing" if size is None else _size(size)


def _size(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 1e6:.2f} MB" if count < 10**15 else f"{count // 10**12} TB"


def _count(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1e6:.2f} M" if count < 10**15 else f"{count // 10**12} T"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as they need to be; a head with `>` before it is of one that is flush right."""
    table = [[head.removeprefix(">") for head in heads], *map(list, rows)]
    if not any(table[0]):
        del table[0]
    widths = [max((len(row[column]) for row in table), default=0) for column in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if head.startswith(">") else cell.ljust(width)
            for head, cell, width in zip(heads, row, widths, strict=True)
        ).rstrip()
        for row in table
    ]
