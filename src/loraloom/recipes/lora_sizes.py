"""The kind, the ranks and the alphas of a LoRA as its tensors have them, for what its metadata do not say in numbers.

A program that resizes layer by layer, or merges LoRAs of several ranks, writes ``Dynamic`` where a number was, and one
that takes the ranks from another file writes ``None``. Source: sd-scripts' networks/resize_lora.py, merge_lora.py and
train_network.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraloom.formats.adapter_kinds import kind_of, rank_of, trained_kinds

if TYPE_CHECKING:
    from loraloom.formats.entries import TensorInfo
    from loraloom.formats.tensors import TensorFile

__all__ = ["LoraSizes", "Size", "lora_sizes"]


@dataclass(frozen=True)
class Size:
    """A rank or an alpha that stands for many layers, and where it comes from, in words."""

    value: float
    how: str


@dataclass(frozen=True)
class LoraSizes:
    """What the tensors tell; empty where they tell nothing."""

    kind: str = ""
    """One of ``adapter.kind``."""
    sizes: Mapping[str, Size] = field(default_factory=dict)
    """By sd-scripts' names: ``network_dim`` and ``network_alpha``, ``conv_dim`` and ``conv_alpha``."""


@dataclass(frozen=True)
class _Layer:
    rank: int
    alpha_key: str | None


def lora_sizes(tensors: TensorFile) -> LoraSizes:
    """The kind of most layers, and of plain layers and of convolutions the largest rank, with the alpha there.

    The largest, since with less the layers that need most would be cut; the alpha of such a layer, since resizing
    leaves alpha / rank as it was. Reads shapes and a few alphas, no weights. Empty for a file that is no whole LoRA.
    """
    from loraloom.formats.lora_keys import lora_keys

    infos = {key: tensors.info(key) for key in tensors}
    keys = lora_keys(infos, tensors.metadata)
    if keys is None or keys.problem:
        return LoraSizes()
    plain: list[_Layer] = []
    convolutions: list[_Layer] = []
    for roles in keys.layers.values():
        shapes = {role: infos[key] for role, key in roles.items()}
        rank = rank_of(shapes)
        if rank is not None:
            group = convolutions if _has_kernel(shapes) else plain
            group.append(_Layer(rank, roles.get("alpha")))
    return LoraSizes(
        _kind(keys.layers),
        {**_sizes("network", plain, tensors), **_sizes("conv", convolutions, tensors)},
    )


def _has_kernel(shapes: Mapping[str, TensorInfo]) -> bool:
    """Whether a layer is a convolution of more than 1x1, which sd-scripts gives a rank of its own."""
    return any(len(info.shape) == 4 and max(info.shape[2:]) > 1 for info in shapes.values())


def _kind(layers: Mapping[str, Mapping[str, str]]) -> str:
    """The kind that most layers are of, if it can be trained here."""
    counted = Counter(kind_of(roles) for roles in layers.values())
    offered = trained_kinds()
    return next((kind for kind, _ in counted.most_common() if kind in offered), "")


def _sizes(name: str, layers: list[_Layer], tensors: TensorFile) -> dict[str, Size]:
    if not layers:
        return {}
    ranks = {layer.rank for layer in layers}
    largest = next(layer for layer in layers if layer.rank == max(ranks))
    how = f"the largest of ranks from {min(ranks)} to {max(ranks)}" if len(ranks) > 1 else "the rank of every layer"
    alpha = Size(_alpha(largest, tensors), f"that of a layer of rank {largest.rank}")
    return {f"{name}_dim": Size(largest.rank, how), f"{name}_alpha": alpha}


def _alpha(layer: _Layer, tensors: TensorFile) -> float:
    """The alpha that acts, without the digits that half precision adds."""
    from loraloom.formats.adapter_checks import widened
    from loraloom.formats.dialects import alpha_in_use

    stored = None
    if layer.alpha_key is not None and tensors.info(layer.alpha_key).numel == 1:
        stored = float(widened(tensors[layer.alpha_key]))
    return float(f"{alpha_in_use(stored, layer.rank):.4g}")
