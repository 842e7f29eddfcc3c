"""DoRA (Liu et al., arXiv:2402.09353): the magnitude of each column (or row) of the weight is trained separately."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, apply_weight, weight_of
from loraloom.adapters.kinds import adapter_from_tensors
from loraloom.adapters.lora import LoraAdapter
from loraloom.adapters.readers import Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.key_layout import WEIGHT, KeyLayout

__all__ = ["DoraAdapter"]


class DoraAdapter(Adapter):
    """``delta = magnitude * (W + inner) / |W + inner| - W`` with another adapter inside, a LoRA when it is trained.

    There is a magnitude for each column (each input channel; ``magnitude`` is (1, in[, 1, 1])) or for each row (each
    output channel; (out, 1[, 1, 1])). For the gradient, the norm in the denominator counts as constant (section 4.3).
    """

    kind = "dora"
    layout = KeyLayout(
        "DoRA",
        own={"dora_scale": WEIGHT},
        wraps=frozenset({"lora", "loha", "lokr"}),
        # The first one is written: transformers reads no other spelling, PEFT both.
        keys={
            "kohya": {".dora_scale": "dora_scale"},
            "comfy": {".dora_scale": "dora_scale"},
            "peft": {".lora_magnitude_vector.weight": "dora_scale", ".lora_magnitude_vector": "dora_scale"},
        },
        peft_modules=("lora_magnitude_vector",),
        peft_rows="dora_scale",
        # Rounding the magnitudes would change the whole weight, not only what was learned.
        exact=frozenset({"dora_scale"}),
    )
    needs_base = True
    network_module = "lycoris.kohya"
    algorithm = "lora"
    readings = (
        Reading(
            "dora, `adapter.dora_axis=input` (default)",
            (
                "yes since 1.9; before, the magnitudes are ignored",
                "yes (versions of April 2024 refuse it)",
                "yes",
                "no: its file loader takes the magnitudes for those of outputs, and fails",
                "no: it leaves out the magnitudes",
            ),
            "adapter.dora_axis=input",
        ),
        Reading(
            "dora, `adapter.dora_axis=output`",
            (
                "no: a wrong result (it takes the magnitudes for those of inputs)",
                "no: a slightly different result (it divides by the norms of the unchanged weight)",
                "no: a slightly different result (as Forge)",
                "yes",
                "yes, after a conversion to diffusers' form",
            ),
            "adapter.dora_axis=output",
        ),
    )

    def __init__(self, inner: Adapter, magnitude: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.magnitude = nn.Parameter(magnitude)

    @classmethod
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
        if base is None:
            raise ValueError("DoRA needs the layer's own weight")
        inner = LoraAdapter.create(target, settings, rank, alpha, seed=seed, base=base)
        out, *rest = target.shape
        ones = (1,) * len(rest[1:])
        shape = (out, 1, *ones) if settings.dora_axis == "output" else (1, rest[0], *ones)
        adapter = cls(inner, torch.ones(shape))
        with torch.no_grad():
            adapter.magnitude.copy_(adapter._lengths(base.detach().cpu()))
        return adapter

    @classmethod
    def network_args(cls, settings: AdapterSettings) -> dict[str, object]:
        return {"dora_wd": "True", "wd_on_output": str(settings.dora_axis == "output")}

    @classmethod
    def doubles_rank(cls, settings: AdapterSettings) -> bool:
        return LoraAdapter.doubles_rank(settings)

    @classmethod
    def reading(cls, settings: AdapterSettings) -> Reading:
        return cls.readings[settings.dora_axis == "output"]

    @classmethod
    def beside_factors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget, where: str) -> dict[str, Tensor]:
        magnitude = tensors["dora_scale"]
        if magnitude.shape[:1] == (1,):
            raise AdapterError(f"{where} is a DoRA with a magnitude for each input channel; PEFT has them for outputs")
        return {"dora_scale": magnitude.float().reshape((-1,) if target.kind == "linear" else (1, -1, 1, 1))}

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.inner.ranks

    @property
    def by_output(self) -> bool:
        """Whether each output channel has a length, not each input channel."""
        return self.magnitude.shape[0] != 1

    def change(self, base: Tensor | None) -> Tensor:
        base = _given(base).float()
        merged = base + self.inner.change(base)
        return merged * self._fractions(_lengths_of(merged, self.by_output)) - base

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        self._pass_dropout_on()
        weight = weight_of(layer)
        fraction = self._fractions(self._lengths(weight)).flatten()
        channels = fraction[:, None, None] if isinstance(layer, nn.Conv2d) else fraction
        own, low = (channels - 1).to(x.dtype), channels.to(x.dtype)
        weight = weight.to(x.dtype)
        if self.by_output:
            return apply_weight(x, weight, layer) * own + self.inner.branch(x, layer) * low
        return apply_weight(x * own, weight, layer) + self.inner.branch(x * low, layer)

    def _pass_dropout_on(self) -> None:
        inner = self.inner
        inner.dropout, inner.rank_dropout, inner.dropout_seed = self.dropout, self.rank_dropout, self.dropout_seed
        inner.rows = self.rows

    def _fractions(self, lengths: Tensor) -> Tensor:
        return self.magnitude.float() / (lengths + torch.finfo(torch.float32).eps)

    @torch.no_grad()
    def _lengths(self, base: Tensor) -> Tensor:
        """Lengths of the columns or rows of base plus inner, without building a LoRA's product."""
        flat = base.float().flatten(1)
        if not isinstance(self.inner, LoraAdapter):
            return _lengths_of(base.float() + self.inner.change(base.float()), self.by_output)
        down, up = (factor.float().flatten(1) for factor in self.inner.factors())
        scale = self.inner.scale
        if self.by_output:
            mixed, own = (flat @ down.T) * up, (up @ (down @ down.T)) * up
            squares = torch.linalg.vector_norm(flat, dim=1).square() + (2 * scale * mixed + scale**2 * own).sum(1)
        else:
            mixed, own = (up.T @ flat) * down, ((up.T @ up) @ down) * down
            squares = torch.linalg.vector_norm(flat, dim=0).square() + (2 * scale * mixed + scale**2 * own).sum(0)
            squares = squares.reshape(base.shape[1], -1).sum(1)
        lengths: Tensor = squares.clamp(min=0).sqrt().reshape(self.magnitude.shape)
        return lengths

    def norm(self) -> Tensor:
        """Of the adapter inside: magnitudes have no limit."""
        return self.inner.norm()

    def scale_by(self, ratio: float) -> None:
        self.inner.scale_by(ratio)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), "dora_scale": self.magnitude.detach()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        inner = adapter_from_tensors({role: t for role, t in tensors.items() if role != "dora_scale"}, target)
        stored = tensors["dora_scale"]
        out, *rest = target.shape
        ones = (1,) * len(rest[1:])
        flat = tuple(length for length in stored.shape if length != 1)
        rows = flat == (out,) and stored.shape[0] == out
        if not rows and flat != ((rest[0],) if rest[0] != 1 else ()):
            raise AdapterError(
                f"layer {target.name} has shape {tuple(target.shape)}, which the LoRA's dora_scale of shape "
                f"{tuple(stored.shape)} does not fit",
                "the LoRA was made for another model",
            )
        shape = (out, 1, *ones) if rows else (1, rest[0], *ones)
        return cls(inner, stored.reshape(shape).float())


def _lengths_of(weight: Tensor, by_output: bool) -> Tensor:
    axes = [axis for axis in range(weight.ndim) if axis != (0 if by_output else 1)]
    lengths: Tensor = torch.linalg.vector_norm(weight.detach(), dim=axes, keepdim=True)
    return lengths


def _given(base: Tensor | None) -> Tensor:
    if base is None:
        raise ValueError("the change of this kind depends on the layer's own weight")
    return base
