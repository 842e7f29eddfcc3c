"""The Adapter contract: what every kind of trainable change of a layer can do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loraloom.adapters.readers import Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError, SettingsError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.adapter_kinds import Traits
from loraloom.formats.dialects import alpha_in_use
from loraloom.formats.key_layout import KeyLayout
from loraloom.randomness import generator, uniform
from loraloom.settings import Settings

__all__ = [
    "Adapter",
    "Rows",
    "alpha_of",
    "apply_weight",
    "fitted",
    "per_channel",
    "squeezed",
    "uniform_tensor",
    "weight_of",
]


@dataclass(frozen=True)
class Rows:
    """A part of a batch: the rows ``chosen``, in their order, of ``total``."""

    chosen: tuple[int, ...]
    total: int


class Adapter(nn.Module, ABC):
    """A trainable change of one layer of a frozen model.

    The change is a number times a tensor in the shape of the layer's weight, so a LoRA can be applied at any strength,
    merged, and several of them added up. Kinds whose change depends on the layer's own weight (``needs_base``) are
    given that weight as ``base``: the checkpoint's, no matter what else is applied beside them.
    """

    kind: ClassVar[str]
    """Name in the registry."""
    layout: ClassVar[KeyLayout]
    """How it lies in a file."""
    stored_kind: ClassVar[str] = ""
    """The kind that its file is of, where it is another: it differs in training alone."""
    needs_base: ClassVar[bool] = False
    """Whether the change depends on the layer's own weight."""
    rebuilds: ClassVar[bool] = True
    """Whether the forward pass builds a tensor as large as the weight: it is built again on the way back, not kept."""

    # -- what is said of it elsewhere --------------------------------------------------------------------------

    traits: ClassVar[Traits] = Traits()
    """Of a kind from another package. Those of this one have theirs beside their names, in ``ADAPTERS``."""
    args: ClassVar[type[Settings] | None] = None
    """The settings of a kind from another package: what ``adapter.args`` may hold."""
    network_module: ClassVar[str] = ""
    """``ss_network_module`` of its files; empty for the module that the class is in."""
    algorithm: ClassVar[str] = ""
    """What LyCORIS calls it; empty where that does not know it."""
    readings: ClassVar[tuple[Reading, ...]] = ()
    """Which programs read its files; several where that depends on the settings."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = 0.0
        self.rank_dropout = 0.0
        self.module_dropout = 0.0
        self.dropout_seed = 0
        self.rows: Rows | None = None

    # -- what a kind defines -----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def create(
        cls,
        target: AdapterTarget,
        settings: AdapterSettings,
        rank: int,
        alpha: float,
        *,
        seed: int,
        base: Tensor | None,
    ) -> Self:
        """A new one that changes nothing yet. ``base`` is the layer's own weight, for the kinds that ask for it."""

    @abstractmethod
    def change(self, base: Tensor | None) -> Tensor:
        """The change of the layer's weight in its shape, in float32 and with its graph."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a LoRA file, by role."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        """The inverse of :meth:`tensors`; raises AdapterError where they do not fit the target."""

    @abstractmethod
    def scale_by(self, ratio: float) -> None:
        """Multiply the change by ``ratio``, spread evenly over the tensors it is made of."""

    # -- what a kind may say otherwise ---------------------------------------------------------------------------

    @classmethod
    def stored_as(cls) -> str:
        """The kind that its file is of."""
        return cls.stored_kind or cls.kind

    @classmethod
    def takes(cls, target: AdapterTarget) -> bool:
        """Whether it can change this layer."""
        return target.kind != "norm"

    @classmethod
    def without_effect(cls, settings: AdapterSettings) -> Iterable[tuple[tuple[str, ...], str]]:
        """For a kind of another package: settings that have no effect, and why, besides what its traits say."""
        return ()

    @classmethod
    def network_args(cls, settings: AdapterSettings) -> dict[str, object]:
        """What ``ss_network_args`` of its files says of it, besides LyCORIS' name."""
        return {}

    @classmethod
    def doubles_rank(cls, settings: AdapterSettings) -> bool:
        """Whether the file has twice the rank that is trained."""
        return False

    @classmethod
    def reading(cls, settings: AdapterSettings) -> Reading:
        """Which programs read the file that these settings make."""
        return cls.readings[0] if cls.readings else Reading.by_none(cls.kind)

    @classmethod
    def norm_in_file(cls, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        """(Frobenius norm, number of values) of a layer's change, from its float32 tensors by role, without its base.

        RuntimeError, KeyError or IndexError where they do not fit together.
        """
        changes = [tensor for role, tensor in tensors.items() if (form := cls.layout.form(role)) and form.axes]
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in changes))
        return norm, float(sum(tensor.numel() for tensor in changes))

    @classmethod
    def beside_factors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget, where: str) -> dict[str, Tensor]:
        """What stands beside the down and up matrix in diffusers' form, of a kind that wraps a LoRA.

        ``where`` names file and layer in the AdapterError for what that form has no place for.
        """
        raise AdapterError(f"{where} is {cls.layout.title}; diffusers reads LoRA and DoRA only")

    @classmethod
    def own_args(cls, settings: AdapterSettings) -> Settings | None:
        """``adapter.args`` as the kind's own settings. SettingsError for names and values that it does not know."""
        if cls.args is not None:
            return cls.args.parse(settings.args, source="adapter.args")
        if settings.args:
            raise SettingsError([f"adapter.args: {cls.kind} has no settings of its own"])
        return None

    # -- what follows from it ----------------------------------------------------------------------------------

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the factors in the file; empty where there are none."""
        return ()

    def delta(self, base: Tensor | None = None) -> Tensor:
        """The change of the layer's weight, in its shape, float32. Merging needs only this and :meth:`bias_delta`."""
        with torch.no_grad():
            return self.change(base).float()

    def bias_delta(self) -> Tensor | None:
        """The change of the layer's bias, None for the kinds that have none."""
        return None

    def norm(self) -> Tensor:
        """Frobenius norm of the change, a scalar on the adapter's device."""
        norm: Tensor = torch.linalg.vector_norm(self.delta())
        return norm

    def add_to(self, output: Tensor, x: Tensor, layer: nn.Module, weight: float) -> Tensor:
        """``output + weight * (the change applied to x)``; ``x`` and ``output`` are the layer's own."""
        if self.left_out():
            return output
        if self.rebuilds and torch.is_grad_enabled():
            side: Tensor = checkpoint(self.branch, x, layer, use_reentrant=False, preserve_rng_state=False)
        else:
            side = self.branch(x, layer)
        return output + side * weight

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What the change adds to the layer's output."""
        change = self.change(weight_of(layer) if self.needs_base else None).to(x.dtype)
        return self.without_rows(apply_weight(x, change, layer))

    def left_out(self) -> bool:
        """Whether this step's module dropout leaves the whole adapter out."""
        if not self.training or self.module_dropout == 0.0:
            return False
        return uniform(self.dropout_seed, "module") < self.module_dropout

    def draw_rows(self, shape: Sequence[int], random: torch.Generator | None, device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1) for a batch, (B, ...): for a part of a batch, the numbers that the whole batch
        would have given it.

        A batch that is not the announced part (another question about some of its pictures) draws for itself.
        """
        if self.rows is None or shape[0] != len(self.rows.chosen):
            return torch.rand(tuple(shape), generator=random, device=device)
        drawn = torch.rand((self.rows.total, *shape[1:]), generator=random, device=device)
        return drawn[list(self.rows.chosen)]

    def without_rows(self, side: Tensor) -> Tensor:
        """Rank dropout of kinds without a low-rank activation: some output channels get no change in this step."""
        if not self.training or self.rank_dropout == 0.0:
            return side
        channels = side.shape[1] if side.ndim == 4 else side.shape[-1]
        keep = torch.rand(channels, generator=generator(self.dropout_seed, "rank")) >= self.rank_dropout
        return side * per_channel(keep.to(side.device, side.dtype) / (1 - self.rank_dropout), side)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) in a shape that multiplies the channels of an activation: the last axis, or the second of an image."""
    return values[:, None, None] if like.ndim == 4 else values


def apply_weight(x: Tensor, weight: Tensor, layer: nn.Module, bias: Tensor | None = None) -> Tensor:
    """``x`` ((..., in), or (B, in, h, w) for a convolution) through a layer like ``layer`` with another weight."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding)
    return F.linear(x, weight, bias)


def fitted(tensors: Mapping[str, Tensor], role: str, shape: tuple[int, ...], target: AdapterTarget) -> Tensor:
    """The tensor of a role in ``shape`` and float32; AdapterError when it is missing or has another shape.

    A trailing 1x1 does not count: SD 2 projections come in two and in four dimensions.
    """
    tensor = tensors.get(role)
    if tensor is None:
        raise AdapterError(f"layer {target.name} has no {role} tensor", "the file is incomplete")
    if squeezed(tensor.shape) != squeezed(shape):
        raise AdapterError(
            f"layer {target.name} has shape {tuple(target.shape)}, which the LoRA's {role} of shape "
            f"{tuple(tensor.shape)} does not fit",
            "the LoRA was made for another model",
        )
    return tensor.reshape(shape).float()


def uniform_tensor(shape: tuple[int, ...], bound: float, random: torch.Generator) -> Tensor:
    """Uniform values within ``bound`` of zero."""
    return torch.empty(shape).uniform_(-bound, bound, generator=random)


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's own weight, without its graph."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def alpha_of(tensors: Mapping[str, Tensor], rank: int) -> float:
    """The alpha that acts (:func:`loraloom.formats.dialects.alpha_in_use`)."""
    stored = tensors.get("alpha")
    return alpha_in_use(None if stored is None else float(stored), rank)


def squeezed(shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """The shape without the trailing 1x1 of a convolution."""
    shape = tuple(shape)
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
