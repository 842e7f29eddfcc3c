"""What is in a LoRA, layer by layer: how strong each change is, how many directions it uses, what is dead or broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Literal

import torch
from torch import Tensor

from loraloom.adapters.adapter import Adapter
from loraloom.adapters.block_weights import block_name
from loraloom.control import Control, each_of, keep_going
from loraloom.errors import AdapterError
from loraloom.events import Listener, ignore
from loraloom.formats.adapter_file import AdapterFile
from loraloom.formats.adapter_kinds import ADAPTERS, inner_roles, is_pair, kind_of, rank_of, title_of
from loraloom.formats.dialects import is_text_layer
from loraloom.formats.lora_factors import factors_of
from loraloom.weights.low_rank import factors_of_product

__all__ = ["EXPLODED", "Anatomy", "BlockStrength", "LayerStrength", "State", "dissect"]

EXPLODED = 20.0
"""A layer whose mean change of a weight is this many times the median layer's is probably broken."""

State = Literal["", "dead", "not finite", "exploded"]


@dataclass(frozen=True)
class LayerStrength:
    """``norm``: Frobenius norm of the change at weight 1; ``rms``: root mean square of it over the layer's weights.

    ``effective_rank`` (Roy and Vetterli, 2007): exp of the entropy of the singular values' shares, None for kinds
    without two factors. A kind whose change depends on the checkpoint (DoRA, (IA)3) is measured without it.
    """

    name: str
    block: str
    kind: str
    rank: int | None
    norm: float
    rms: float
    effective_rank: float | None
    state: State


@dataclass(frozen=True)
class BlockStrength:
    """All layers of a block (``TE``, ``IN04``, ``MID`` ...): norm of all together, means of rms and effective rank."""

    block: str
    layers: int
    norm: float
    rms: float
    effective_rank: float | None
    share: float
    """Of the squared norm of the whole LoRA."""


@dataclass(frozen=True)
class Anatomy:
    """Layers in the order of the file, blocks in that of the model."""

    layers: tuple[LayerStrength, ...]
    blocks: tuple[BlockStrength, ...]

    def in_state(self, state: State) -> list[LayerStrength]:
        """The layers that are in this state."""
        return [layer for layer in self.layers if layer.state == state]


def dissect(file: AdapterFile, listener: Listener = ignore, control: Control = keep_going) -> Anatomy:
    """Read every tensor of a LoRA file, a layer at a time. Raises AdapterError where shapes do not fit together.

    ``control`` is heeded between two layers, of which ``listener`` hears.
    """
    found = [_measured(file, name) for name in each_of("layers", file.layers, listener, control)]
    typical = median([layer.rms for layer in found if layer.state == ""] or [0.0])
    layers = tuple(
        layer if layer.state or layer.rms <= EXPLODED * typical else replace(layer, state="exploded") for layer in found
    )
    return Anatomy(layers, _blocks(layers))


def _measured(file: AdapterFile, name: str) -> LayerStrength:
    roles = file.layers[name]
    block = "TE" if is_text_layer(name) else block_name(name)
    kind = title_of(roles)
    rank = rank_of(roles)

    def strength(norm: float, count: float, effective: float | None) -> LayerStrength:
        rms = norm / math.sqrt(count) if count else 0.0
        return LayerStrength(name, block, kind, rank, norm, rms, effective, "" if norm else "dead")

    if not all(bool(torch.isfinite(tensor).all()) for tensor in roles.values()):
        return LayerStrength(name, block, kind, rank, math.nan, math.nan, None, "not finite")
    inside = inner_roles(roles)
    inner = {role: tensor for role, tensor in roles.items() if role in inside}
    if is_pair(inner):
        layer = factors_of(inner, f"{file.path}: layer {name}")
        if layer.is_beyond_range():
            return LayerStrength(name, block, kind, rank, math.inf, math.inf, None, "not finite")
        values = factors_of_product(layer.up, layer.down).values.double() * abs(layer.scale)
        norm = float(values.square().sum().sqrt())
        return strength(norm, len(layer.up) * layer.down.shape[1], _effective_rank(values))
    norm, count = _norm_of(inner, file, name)
    return strength(norm, count, None)


def _effective_rank(values: Tensor) -> float | None:
    """exp(entropy) of the singular values' shares."""
    total = float(values.sum())
    if not total:
        return None
    shares = values[values > 0] / total
    return math.exp(float(-(shares * shares.log()).sum()))


def _norm_of(roles: Mapping[str, Tensor], file: AdapterFile, name: str) -> tuple[float, float]:
    """(Frobenius norm, number of weights) of the change that other kinds than LoRA make, as they say themselves."""
    kind: type[Adapter] = ADAPTERS.load(str(kind_of(roles)))
    try:
        return kind.norm_in_file({role: tensor.float() for role, tensor in roles.items()})
    except (RuntimeError, KeyError, IndexError) as error:
        raise AdapterError(
            f"{file.path}: the tensors of layer {name} do not fit together", "the file is damaged"
        ) from error


def _blocks(layers: Sequence[LayerStrength]) -> tuple[BlockStrength, ...]:
    grouped: dict[str, list[LayerStrength]] = {}

    # One layer that is not finite would make every figure of its block so; it is listed by its name instead.
    for layer in layers:
        if layer.state != "not finite":
            grouped.setdefault(layer.block, []).append(layer)
    total = sum(layer.norm**2 for members in grouped.values() for layer in members) or 1.0

    return tuple(
        BlockStrength(
            block,
            len(members),
            math.sqrt(sum(layer.norm**2 for layer in members)),
            fmean(layer.rms for layer in members),
            fmean(ranks) if (ranks := [r for layer in members if (r := layer.effective_rank) is not None]) else None,
            sum(layer.norm**2 for layer in members) / total,
        )
        for block, members in sorted(grouped.items(), key=lambda item: _order(item[0]))
    )


def _order(block: str) -> tuple[int, str]:
    sections = ("TE", "BASE", "IN", "MID", "OUT")
    return next(number for number, section in enumerate(sections) if block.startswith(section)), block
