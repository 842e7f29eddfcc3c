"""LoRAs in use at generation: all that act on a layer are one side branch, with weights that differ by image.

However many LoRAs are active, a layer is followed by two products: one with their ``down`` factors below one another,
one with their ``up`` factors side by side. Weights are on the thin activation between them, a number for each image and
LoRA, so that changing one moves a few bytes. No weight of the model is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import AdapterSet
from loraloom.adapters.lora import LoraAdapter
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import AdapterError

__all__ = ["ActiveLoras"]


class ActiveLoras:
    """Several LoRAs for the layers of a live model (``layers``: module by kohya name), on it within :meth:`on`.

    Of their strengths the weights by block are for good; those of the parts are given for each call.
    """

    def __init__(self, loras: Sequence[tuple[AdapterSet, LoraStrength]], layers: Mapping[str, nn.Module]) -> None:
        self._unet_rows: tuple[tuple[float, ...], ...] = ()
        self._text_row: tuple[float, ...] = ()
        by_layer: dict[str, list[_Part]] = {}
        self._in_unet: dict[str, bool] = {}
        for index, (adapters, strength) in enumerate(loras):
            missing = [name for name in adapters.targets if name not in layers]
            if missing:
                raise AdapterError(
                    f"the model has no layer {missing[0]} ({len(missing)} of {len(adapters)} are missing)"
                )
            for target, adapter in adapters.items():
                part = _Part(index, adapter, strength.of_block(target.name))
                by_layer.setdefault(target.name, []).append(part)
                self._in_unet[target.name] = target.part == "unet"
        self._layers = {name: layers[name] for name in by_layer}
        self._branches = {name: _Branch(adapters) for name, adapters in by_layer.items()}

    @contextmanager
    def on(self) -> Iterator[None]:
        """The model with the LoRAs; without them again afterwards, whatever happened."""
        handles: list[RemovableHandle] = []
        try:
            for name, branch in self._branches.items():
                hook = partial(self._hook, self._in_unet[name], branch)
                handles.append(self._layers[name].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def weigh_unet(self, rows: Sequence[Sequence[float]]) -> None:
        """``rows[i][k]``: the weight of LoRA k for row i of the U-Net's next calls; one row counts for all."""
        weights = tuple(map(tuple, rows))
        self._unet_rows = weights[:1] if len(set(weights)) == 1 else weights

    def weigh_text(self, row: Sequence[float]) -> None:
        """``row[k]``: the weight of LoRA k in the text encoders' next calls."""
        self._text_row = tuple(row)

    def _hook(
        self, in_unet: bool, branch: _Branch, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        return branch.add_to(output, inputs[0], layer, self._unet_rows if in_unet else (self._text_row,))


@dataclass(frozen=True)
class _Part:
    """What LoRA ``index`` does to a layer, and what its weight is multiplied by there."""

    index: int
    adapter: Adapter
    weight: float


class _Branch:
    """All that acts on one layer: low-rank factors as one pair, everything else by itself."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._low = [(part, part.adapter) for part in parts if isinstance(part.adapter, LoraAdapter)]
        self._others = [part for part in parts if not isinstance(part.adapter, LoraAdapter)]
        self._factors: tuple[Tensor, Tensor] | None = None
        self._owners: list[int] = []
        self._scales: list[float] = []
        self._known: dict[object, Tensor] = {}

    def add_to(self, output: Tensor, x: Tensor, layer: nn.Module, rows: Sequence[Sequence[float]]) -> Tensor:
        """``output`` (B, ...) and what the adapters add to it; ``rows``: weights by row, or one row for all."""
        if any(row[part.index] for row in rows for part, _ in self._low):
            output = self._add_low_rank(output, x, layer, rows)
        for part in self._others:
            output = _add_one(output, x, layer, part.adapter, [row[part.index] * part.weight for row in rows])
        return output

    def _add_low_rank(self, output: Tensor, x: Tensor, layer: nn.Module, rows: Sequence[Sequence[float]]) -> Tensor:
        down, up = self._fused(x)
        scale = self._scale(rows, x)
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
            return output + F.conv2d(low * scale[..., None, None], up)
        low = F.linear(x, down)
        low = low * scale.reshape(len(scale), *(1 for _ in range(low.ndim - 2)), -1)
        sum_ = torch.addmm(output.reshape(-1, output.shape[-1]), low.reshape(-1, low.shape[-1]), up.t())
        return sum_.reshape(output.shape)

    def _fused(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Joined once and kept, not at every call; another type or device makes them anew.
        if self._factors is None or self._factors[0].dtype != x.dtype or self._factors[0].device != x.device:
            factors = [adapter.factors() for _, adapter in self._low]
            self._factors = (
                torch.cat([down for down, _ in factors]).detach().to(x.device, x.dtype),
                torch.cat([up for _, up in factors], dim=1).detach().to(x.device, x.dtype),
            )

            ranks = [len(down) for down, _ in factors]
            owners = [pair for pair, rank in zip(self._low, ranks, strict=True) for _ in range(rank)]
            self._owners = [part.index for part, _ in owners]
            self._scales = [adapter.scale * part.weight for part, adapter in owners]
            self._known.clear()
        return self._factors

    def _scale(self, rows: Sequence[Sequence[float]], x: Tensor) -> Tensor:
        """(B or 1, all ranks): weight times scale, kept until the weights change."""
        key = tuple(map(tuple, rows))
        if key not in self._known:
            self._known.clear()
            values = [
                [row[index] * scale for index, scale in zip(self._owners, self._scales, strict=True)] for row in rows
            ]
            self._known[key] = torch.tensor(values, device=x.device, dtype=x.dtype)
        return self._known[key]


def _add_one(output: Tensor, x: Tensor, layer: nn.Module, adapter: Adapter, weights: Sequence[float]) -> Tensor:
    """``output`` with one adapter of a kind that is not low rank, at the weight of each row."""
    if len(set(weights)) == 1:
        return adapter.add_to(output, x, layer, weights[0]) if weights[0] else output
    result = output.clone()
    for weight in dict.fromkeys(weights):
        chosen = [row for row, own in enumerate(weights) if own == weight]
        if weight:
            result[chosen] = adapter.add_to(output[chosen], x[chosen], layer, weight)
    return result
