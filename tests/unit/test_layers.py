"""The shape of the package: who may import whom, who may reach outside, and which names are public."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pywebml
from pywebml import errors

PACKAGE = Path(pywebml.__file__).parent

LAYERS = [
    {"version", "errors", "progress", "options", "abort", "sharing"},
    {"platform"},
    {"settings", "hub"},
    {"tokenization", "image", "audio"},
    {"models", "generation"},
    {"tasks", "inspecting"},
    {"sources"},
    {"planning"},
    {"loading"},
    {"engine"},
    {"library", "transfer", "worker_params"},
    {"worker_models"},
    {"pipelines", "worker", "prepare", "models_cli", "inspect_cli"},
    {"convert_cli"},
    {"cli"},
]
"""From the bottom to the top; a module imports from its own package and from layers below its own."""

OUTSIDE = {"js", "pyodide", "pyodide_js", "pywebml_bridge", "onnxruntime", "httpx", "urllib.request", "socket"}
HOST_ONLY = {"prepare", "cli"}
"""These run on CPython alone and may reach outside."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            names.append(node.module or "")
            if node.module == "pywebml":
                names += [f"pywebml.{alias.name}" for alias in node.names]
    return names


def level(name: str) -> int:
    for index, layer in enumerate(LAYERS):
        if name in layer:
            return index
    raise AssertionError(f"'{name}' is in no layer; put it into LAYERS")


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_layers_below_its_own(path: Path) -> None:
    own = room(path)
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] == "pywebml" and len(parts) > 1 and parts[1] != own:
            same_room_of_the_floor = level(parts[1]) == level(own) == 0
            assert level(parts[1]) < level(own) or same_room_of_the_floor, f"{own} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_platform_reaches_outside(path: Path) -> None:
    if room(path) in HOST_ONLY | {"platform"}:
        return
    reached = [name for name in imported_names(path) if name in OUTSIDE or name.split(".")[0] in OUTSIDE]
    assert not reached


def test_public_names_are_the_listed_ones() -> None:
    assert sorted(pywebml.__all__) == pywebml.__all__
    assert all(hasattr(pywebml, name) for name in pywebml.__all__)
    rooms = {room(path) for path in modules()}
    public = {name for name in vars(pywebml) if not name.startswith("_")} - rooms
    assert public == set(pywebml.__all__) - rooms | ({"task"} & public)


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")}
    drawn = {word for word in (errors.__doc__ or "").replace("─", " ").split() if word.endswith("Error")}
    assert drawn == classes


def test_error_details_are_kept_for_programs() -> None:
    error = errors.DownloadError("The hub stopped after 3 of 9 bytes.", url="https://hub.example/x", received=3)

    assert str(error) == error.message == "The hub stopped after 3 of 9 bytes."
    assert error.details == {"url": "https://hub.example/x", "received": 3}
