"""Looking into model files: ONNX and safetensors, here or on a server, without reading their weights.

It takes nothing but Python: no PyTorch, no protobuf, no ONNX Runtime.
"""

from pywebml.inspecting.files import InspectedFile, inspect_url, inspect_what_is_here
from pywebml.inspecting.onnx import OnnxFile, Tensor, Value, level_of, parse_onnx
from pywebml.inspecting.safetensors import SafetensorsFile, SafetensorsTensor, parse_safetensors
from pywebml.inspecting.window import drive, drive_async

__all__ = [
    "InspectedFile",
    "OnnxFile",
    "SafetensorsFile",
    "SafetensorsTensor",
    "Tensor",
    "Value",
    "drive",
    "drive_async",
    "inspect_url",
    "inspect_what_is_here",
    "level_of",
    "parse_onnx",
    "parse_safetensors",
]
