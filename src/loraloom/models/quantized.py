"""Frozen weights in 8 or 4 bits: stored small, dense again for the moment of use.

``int8``: one scale a row, value = scale * integer of -127 to 127. ``nf4``: blocks of 64 values with one scale each and
16 levels spaced as the quantiles of a normal distribution (Dettmers et al., "QLoRA", arXiv:2305.14314, appendix E).
Both are a few lines of torch, so they work on every device and need no other package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["Quantization", "QuantizedWeight", "quantizable"]

Quantization = Literal["none", "int8", "nf4"]
NF4_BLOCK = 64
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
CHUNK = 2**20
"""Values converted at a time, so that what is needed in between stays small."""
SMALLEST = 4096
"""Weights with fewer numbers stay as they are: nothing to gain."""


class QuantizedWeight(torch.Tensor):
    """A frozen weight that says it has ``shape`` and ``dtype``, and holds ``codes`` and ``scales``.

    Moving it to a device keeps it quantized; any other operation works on its dense values. The layers ask for those
    by :meth:`dequantize`, so that the graph of a training step keeps only this.
    """

    codes: Tensor
    scales: Tensor
    method: str

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, method: str, shape: torch.Size, dtype: torch.dtype) -> Self:
        weight: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=codes.device)
        return weight

    def __init__(self, codes: Tensor, scales: Tensor, method: str, shape: torch.Size, dtype: torch.dtype) -> None:
        self.codes, self.scales, self.method = codes, scales, method

    @classmethod
    def quantize(cls, weight: Tensor, method: str) -> QuantizedWeight:
        """The nearest values of ``method`` (int8 or nf4) to a dense weight of two or four axes."""
        codes, scales = _METHODS[method][0](weight.detach())
        return cls(codes, scales, method, weight.shape, weight.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense values, in ``dtype`` or the one it had before."""
        return _METHODS[self.method][1](self.codes, self.scales, self.shape, dtype or self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"QuantizedWeight({self.method}, {tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        operation: Any,
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        first = arguments[0] if arguments else None
        if isinstance(first, QuantizedWeight):
            if operation is torch.ops.aten.detach.default:
                return first._with(first.codes, first.scales)
            if operation is torch.ops.aten._to_copy.default and options.get("dtype") in (None, first.dtype):
                move = {key: value for key, value in options.items() if key in ("device", "non_blocking")}
                return first._with(first.codes.to(**move), first.scales.to(**move))

        def dense(value: Any) -> Any:
            return value.dequantize() if isinstance(value, QuantizedWeight) else value

        return operation(*tree_map(dense, arguments), **tree_map(dense, options))

    def _with(self, codes: Tensor, scales: Tensor) -> QuantizedWeight:
        return QuantizedWeight(codes, scales, self.method, self.shape, self.dtype)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = weight.float().flatten(1)
    scales = rows.abs().amax(dim=1, keepdim=True) / 127
    codes = (rows / scales.clamp(min=1e-30)).round_().to(torch.int8)
    return codes, scales


def _from_int8(codes: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_(scales.to(dtype)).view(shape)


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    count = weight.numel()
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -count % NF4_BLOCK)).view(-1, NF4_BLOCK)
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    scales = blocks.abs().amax(dim=1).float()
    codes = torch.empty(blocks.numel() // 2, dtype=torch.uint8, device=weight.device)
    step = CHUNK // NF4_BLOCK
    for start in range(0, len(blocks), step):
        scaled = blocks[start : start + step].float() / scales[start : start + step].clamp(min=1e-30)[:, None]
        nearest = torch.bucketize(scaled, between).to(torch.uint8).view(-1, 2)
        first = start * NF4_BLOCK // 2
        codes[first : first + len(nearest)] = nearest[:, 0] << 4 | nearest[:, 1]
    return codes, scales


def _from_nf4(codes: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    levels = torch.tensor(NF4_LEVELS, device=codes.device).to(dtype)
    # Two values at a time: a table with a row for each byte.
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    values = torch.empty(len(codes), 2, dtype=dtype, device=codes.device)
    for start in range(0, len(codes), CHUNK):
        chunk = codes[start : start + CHUNK].int()
        values[start : start + CHUNK] = torch.nn.functional.embedding(chunk, pairs)
    values.view(-1, NF4_BLOCK).mul_(scales.to(dtype)[:, None])
    return values.flatten()[: shape.numel()].view(shape)


_METHODS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[..., Tensor]]] = {
    "int8": (_to_int8, _from_int8),
    "nf4": (_to_nf4, _from_nf4),
}


def quantizable(module: nn.Module) -> set[str]:
    """Names of the weights of a part that are worth it: of linear layers and convolutions, not tables, not norms."""
    names = set()
    for path, layer in module.named_modules():
        start = f"{path}." if path else ""
        for name, parameter in layer.named_parameters(recurse=False):
            wanted = name == "in_proj_weight" or (name == "weight" and isinstance(layer, (nn.Linear, nn.Conv2d)))
            if wanted and parameter.numel() >= SMALLEST:
                names.add(start + name)
    return names
