"""Decoders whose cache is one buffer for past and present: attention as ONNX Runtime's GroupQueryAttention.

The plain graph joins past and new keys into a new, longer tensor at every step. This operator writes the new ones into
the buffer in their place when `past_key_values.*` and `present.*` are bound to the same memory, so that a step copies
nothing. Everything else stays what transformers makes of it: rotary embeddings come before the operator, and padding,
causality and sliding windows are in the mask that it adds to its scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import eager_mask

from pywebml.errors import ConversionError

_NAME = "pywebml_shared_cache"
_OPERATOR = "com.microsoft::GroupQueryAttention"
_TAKEN = {"scaling", "dropout", "softcap", "sliding_window", "position_ids", "use_cache", "output_attentions"}
"""What models hand to their attention that is heeded here, is in the mask, or has no effect on the result."""


class SharedCacheDecoder(nn.Module):
    """A decoder with its inputs and the buffers of its cache by position.

    Args:
        model: In float32; its attention must be one that can be replaced.
        input_names: What the exported file takes before the cache, in order.
    """

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs, then buffers [batch, heads, longest, size] of each layer, to logits and the same buffers.

        Outside the exporter the operator has no kernel: only shapes are right there.
        """
        named = dict(zip(self.input_names, inputs, strict=False))
        past = inputs[len(named) :]
        cache = _SharedCache(named["attention_mask"], named["input_ids"].shape[1], past)
        usual = self.model.config._attn_implementation
        AttentionInterface.register(_NAME, cache.attend)
        AttentionMaskInterface.register(_NAME, eager_mask)
        try:
            self.model.set_attn_implementation(_NAME)
            output = self.model(**named, past_key_values=cache, use_cache=True, return_dict=True)
        finally:
            self.model.set_attn_implementation(usual)
            del AttentionInterface._global_mapping[_NAME], AttentionMaskInterface._global_mapping[_NAME]
        return (output.logits, *cache.present())


class _SharedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Hands new keys and values on alone, since the operator adds them to the past."""

    def __init__(self, total: int, new: int, key: Tensor, value: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers = (key, value)
        self.is_initialized = True
        self.total, self.new = total, new
        self.attended = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.total, 0

    def get_seq_length(self) -> int:
        return self.total - self.new

    def get_max_length(self) -> int:
        return -1


class _SharedCache(Cache):
    """The buffers of all layers, and the attention over them."""

    def __init__(self, mask: Tensor, new: int, past: tuple[Tensor, ...]) -> None:
        batch, total = mask.shape
        self._shared = [_SharedLayer(total, new, *pair) for pair in zip(past[::2], past[1::2], strict=True)]
        super().__init__(layers=list(self._shared))
        # Every row counts as full: what of it is padding is in the mask.
        self._last_positions = torch.full((batch,), total - 1, dtype=torch.int32)
        self._total = torch.full((), total, dtype=torch.int32)
        self._current: _SharedLayer | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._current = self._shared[layer_idx]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def attend(
        self,
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """What models call in place of their own attention; arguments and result as transformers has them."""
        foreign = {name for name, given in options.items() if given is not None and name not in _TAKEN}
        layer = self._current
        if layer is None or layer.attended or foreign or attention_mask is None:
            raise ConversionError(f"GroupQueryAttention cannot stand for this model's attention ({sorted(foreign)}).")
        batch, heads, new, size = query.shape
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": key.shape[1],
            "scale": float(options.get("scaling") or size**-0.5),
        }
        if options.get("softcap"):
            attributes["softcap"] = float(options["softcap"])
        flat = [tensor.transpose(1, 2).reshape(batch, new, -1) for tensor in (query, key, value)]
        past = layer.buffers
        output, *present = torch.onnx.ops.symbolic_multi_out(
            _OPERATOR,
            (*flat, *past, self._last_positions, self._total, None, None, None, attention_mask),
            attributes,
            dtypes=[query.dtype] * 3,
            shapes=[flat[0].shape, *(buffer.shape for buffer in past)],
            version=1,
        )
        layer.buffers = (present[0], present[1])
        layer.attended = True
        return output.reshape(batch, new, heads, size), None

    def present(self) -> list[Tensor]:
        """The buffers after all layers."""
        if not all(layer.attended for layer in self._shared):
            raise ConversionError("Not every layer's attention could be replaced by GroupQueryAttention.")
        return [buffer for layer in self._shared for buffer in layer.buffers]
