"""LoRA (Hu et al., arXiv:2106.09685) for linear and convolution layers, and its starting points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, alpha_of, squeezed, uniform_tensor
from loraloom.adapters.initial import orthogonal_rows, principal_factors
from loraloom.adapters.readers import Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.dialects import OLD_LAYERS
from loraloom.formats.key_layout import FACTOR, KERNEL, NUMBER, KeyLayout, Product
from loraloom.randomness import generator

__all__ = ["Adapter", "LoraAdapter"]

_PEFT_FACTORS = {".lora_A.weight": "down", ".lora_B.weight": "up"}
_KOHYA_FACTORS = {".lora_down.weight": "down", ".lora_up.weight": "up"}
"""Either pair of endings may follow either style of layer name: ComfyUI reads every combination."""
_KOHYA_KEYS = {**_KOHYA_FACTORS, ".lora_mid.weight": "mid", **_PEFT_FACTORS, ".alpha": "alpha"}
_OLD_KEYS = {".lora.down.weight": "down", ".lora.up.weight": "up", ".alpha": "alpha"}
"""diffusers' before PEFT."""
_ENDS = {"down.weight": "down", "up.weight": "up", "alpha": "alpha"}


class LoraAdapter(Adapter):
    """``delta = alpha / rank * up @ down``; ``down`` is (rank, in[, kh, kw]), ``up`` is (out, rank[, 1, 1]).

    One that starts from principal factors (:meth:`remember_start`) changes the weight by ``up @ down`` less what that
    was at the start, so that it begins as the identity without touching the checkpoint. With u, d the changes of the
    two factors since the start, this is ``up @ d + u @ down0``: an ordinary LoRA of twice the rank, which is what the
    file holds. Of the ways to write it this one loses nothing when the file is fp16, because u and d are small.
    """

    kind = "lora"
    layout = KeyLayout(
        "LoRA",
        own={"down": FACTOR, "up": FACTOR},
        more={"mid": KERNEL, "alpha": NUMBER},
        needs=((("up", "down"),),),
        products=(Product("up", "down", "mid", left_is_out_first=True),),
        ranks=("down",),
        columns=(("down",),),
        keys={
            "kohya": _KOHYA_KEYS,
            "comfy": _KOHYA_KEYS,
            "peft": {**_PEFT_FACTORS, **_KOHYA_FACTORS, **_OLD_KEYS},
            "diffusers-old": {
                **{f"{inside}.{end}": role for inside in OLD_LAYERS for end, role in _ENDS.items()},
                **_OLD_KEYS,
            },
        },
        peft_modules=("lora_A", "lora_B"),
        is_pair=True,
        marks=("lora_up", "lora_down", "lora_A", "lora_B", "lora.up", "lora.down", ":up"),
    )
    rebuilds = False
    network_module = "networks.lora"
    readings = (
        Reading(
            "lora (with convolutions, any init, rank-stabilized), lora_fa",
            ("yes", "yes", "yes", "yes", "yes; several ranks or alphas: after a conversion to diffusers' form"),
        ),
    )
    trains_down: ClassVar[bool] = True
    """Whether ``down`` is trained, or stays as it starts."""

    def __init__(self, down: Tensor, up: Tensor, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=self.trains_down)
        self.up = nn.Parameter(up)
        self.alpha = alpha
        self.start_down: Tensor | None
        self.start_up: Tensor | None
        self.register_buffer("start_down", None)
        self.register_buffer("start_up", None)

    @classmethod
    def create(
        cls,
        target: AdapterTarget,
        settings: AdapterSettings,
        rank: int,
        alpha: float,
        *,
        seed: int,
        base: Tensor | None = None,
    ) -> Self:
        """Unless the settings say otherwise ``down`` (r, in) is uniform within 1/sqrt(fan in), ``up`` (out, r) zero.

        ``base``: the layer's weight, of its shape, for a start that depends on it.
        """
        out, *rest = target.shape
        columns, wide = math.prod(rest), (rank, *rest)
        up_shape = (out, rank, *(1 for _ in rest[1:]))
        if settings.init == "pissa":
            if base is None:
                raise ValueError("principal factors need the layer's own weight")
            # No matrix has more singular values than its shorter side: a factor above that stays zero.
            found = min(rank, out, columns)
            down, up = torch.zeros(rank, columns), torch.zeros(out, rank)
            principal = principal_factors(base.detach().flatten(1), found, seed, target.name)
            root = math.sqrt(rank / alpha)
            down[:found], up[:, :found] = principal[0].cpu() * root, principal[1].cpu() * root
            adapter = cls(down.reshape(wide), up.reshape(up_shape), alpha)
            adapter.remember_start()
            return adapter
        if settings.init == "orthogonal":
            down = orthogonal_rows(rank, columns, seed, target.name).reshape(wide)
        else:
            down = uniform_tensor(wide, 1 / math.sqrt(columns), generator(seed, "init", target.name))
        return cls(down, torch.zeros(up_shape), alpha)

    @classmethod
    def doubles_rank(cls, settings: AdapterSettings) -> bool:
        return settings.init == "pissa" and cls.trains_down

    def remember_start(self) -> None:
        """Make these factors the start: from now on only their difference from it is the change."""
        self.start_down, self.start_up = self.down.detach().clone(), self.up.detach().clone()

    @property
    def rank(self) -> int:
        """Rank of the factors that are trained."""
        return self.down.shape[0]

    @property
    def ranks(self) -> tuple[int, ...]:
        return (self.factors()[0].shape[0],)

    @property
    def scale(self) -> float:
        """What ``up @ down`` is multiplied by."""
        return self.alpha / self.rank

    def factors(self) -> tuple[Tensor, Tensor]:
        """``(down, up)`` whose product, times the scale, is the change."""
        if self.start_down is None or self.start_up is None:
            return self.down, self.up
        if not self.trains_down:
            return self.start_down, self.up - self.start_up
        down = torch.cat([self.down - self.start_down, self.start_down])
        return down, torch.cat([self.up, self.up - self.start_up], dim=1)

    def change(self, base: Tensor | None = None) -> Tensor:
        down, up = (factor.float() for factor in self.factors())
        product = up.flatten(1) @ down.flatten(1)
        return (product * self.scale).reshape(up.shape[0], *down.shape[1:])

    def add_to(self, output: Tensor, x: Tensor, layer: nn.Module, weight: float) -> Tensor:
        if self.left_out():
            return output
        down, up = (factor.to(x.dtype) for factor in self.factors())
        scale = self.scale * weight
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
            return output + F.conv2d(self._dropped(low) * scale, up)
        # The scale goes on the thin activation and the sum into the product: no extra pass over the full size.
        low = self._dropped(F.linear(x, down)) * scale
        sum_ = torch.addmm(output.reshape(-1, output.shape[-1]), low.reshape(-1, low.shape[-1]), up.t())
        return sum_.reshape(output.shape)

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        down, up = (factor.to(x.dtype) for factor in self.factors())
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
            return F.conv2d(self._dropped(low) * self.scale, up)
        return F.linear(self._dropped(F.linear(x, down)) * self.scale, up)

    def _dropped(self, low: Tensor) -> Tensor:
        if not self.training:
            return low
        if self.dropout:
            # Memory is counted on the meta device, where nothing is drawn.
            random = None if low.is_meta else torch.Generator(low.device).manual_seed(self.dropout_seed)
            keep = self.draw_rows(low.shape, random, low.device) >= self.dropout
            low = low * keep.to(low.dtype) / (1 - self.dropout)
        if self.rank_dropout:
            low = low * self._kept_ranks(low) / (1 - self.rank_dropout)
        return low

    def _kept_ranks(self, low: Tensor) -> Tensor:
        """Which components of the rank each sample of the batch keeps in this step (sd-scripts' rank_dropout)."""
        channels = low.shape[1] if low.ndim == 4 else low.shape[-1]
        random = generator(self.dropout_seed, "rank")
        drawn = self.draw_rows((low.shape[0], self.rank), random, torch.device("cpu"))
        keep = (drawn >= self.rank_dropout).repeat(1, channels // self.rank).to(low.device, low.dtype)
        return keep[:, :, None, None] if low.ndim == 4 else keep.reshape(len(keep), *(1,) * (low.ndim - 2), channels)

    def norm(self) -> Tensor:
        """From the products of each factor with itself, rank by rank, never the full matrix."""
        down, up = (factor.detach().flatten(1).float() for factor in self.factors())
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * self.scale

    @torch.no_grad()
    def scale_by(self, ratio: float) -> None:
        if self.start_down is None or self.start_up is None:
            if self.trains_down:
                root = math.sqrt(ratio)
                self.up.mul_(root)
                self.down.mul_(root)
            else:
                self.up.mul_(ratio)
            return
        # The change is not linear in the two steps from the start, so scaling down once may not be enough.
        wanted = float(self.norm()) * ratio
        for _ in range(20):
            if (now := float(self.norm())) <= wanted * (1 + 1e-6):
                break
            self.up.lerp_(self.start_up, 1 - wanted / now)
            self.down.lerp_(self.start_down, 1 - wanted / now)

    def tensors(self) -> dict[str, Tensor]:
        down, up = (factor.detach() for factor in self.factors())
        alpha = self.alpha if self.start_down is None else self.scale * down.shape[0]
        return {"down": down, "up": up, "alpha": torch.tensor(float(alpha))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        missing = {"down", "up"} - set(tensors)
        if missing:
            raise AdapterError(f"layer {target.name} has no {' and no '.join(sorted(missing))} matrix")
        down, up = tensors["down"], tensors["up"]
        if "mid" in tensors:
            down = _with_middle(down, tensors["mid"], target)
        rank = down.shape[0] if down.ndim else 0
        out, *rest = target.shape
        wanted_down, wanted_up = (rank, *rest), (out, rank, *(1 for _ in rest[1:]))
        fits = rank > 0 and squeezed(down.shape) == squeezed(wanted_down) and squeezed(up.shape) == squeezed(wanted_up)
        if not fits:
            raise AdapterError(
                f"layer {target.name} has shape {tuple(target.shape)}, but the LoRA's matrices are "
                f"{tuple(down.shape)} and {tuple(up.shape)}",
                "the LoRA was made for another model",
            )
        return cls(down.reshape(wanted_down).float(), up.reshape(wanted_up).float(), alpha_of(tensors, rank))


def _with_middle(down: Tensor, middle: Tensor, target: AdapterTarget) -> Tensor:
    """LyCORIS' Tucker form ``up, mid, down`` as an ordinary pair: the kernel in the middle moves into ``down``."""
    if middle.ndim != 4 or middle.shape[0] != middle.shape[1] or middle.shape[1] != down.shape[0]:
        raise AdapterError(
            f"layer {target.name}: a middle tensor of shape {tuple(middle.shape)} does not fit a down matrix of "
            f"shape {tuple(down.shape)}",
            "the file is damaged",
        )
    return torch.einsum("abhw,bi->aihw", middle.float(), down.float().flatten(1))
