"""The layers of a LoRA file as matrices, without a checkpoint: what combining and resizing LoRAs works on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterFile
from loraloom.formats.dialects import alpha_in_use, kind_of, title_of

__all__ = ["LoraLayer", "file_precision", "layer_of", "network_facts"]


@dataclass(frozen=True)
class LoraLayer:
    """``scale * up @ down``: up (out, r), down (r, in times kernel), float32; ``kernel`` is () for a linear layer."""

    name: str
    down: Tensor
    up: Tensor
    scale: float
    kernel: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Rank of the factors."""
        return len(self.down)

    @property
    def is_convolution(self) -> bool:
        """Whether the kernel is larger than 1x1: such layers have a rank of their own."""
        return any(size > 1 for size in self.kernel)

    def roles(self, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        """The tensors of the file for other factors of this layer whose scale is 1."""
        rank, ones = len(down), tuple(1 for _ in self.kernel)
        columns = down.shape[1] // max(1, _area(self.kernel))
        return {
            "down": down.reshape(rank, columns, *self.kernel),
            "up": up.reshape(len(up), rank, *ones),
            "alpha": torch.tensor(float(rank)),
        }


def _area(kernel: tuple[int, ...]) -> int:
    area = 1
    for size in kernel:
        area *= size
    return area


def layer_of(file: AdapterFile, name: str, doing: str) -> LoraLayer:
    """A layer of the file as two factors. Raises AdapterError for another kind than LoRA, or damaged tensors."""
    roles = file.layers[name]
    if kind_of(roles) != "lora" or not {"down", "up"} <= set(roles):
        kind = title_of(roles) if kind_of(roles) else f"made of {', '.join(sorted(roles))}"
        raise AdapterError(
            f"{file.path}: layer {name} is {kind}; {doing} is exact for LoRA and LoCon only",
            "merge it into a checkpoint, then `loraloom extract` a LoRA from that",
        )
    down, up = roles["down"].float(), roles["up"].float()
    if "mid" in roles:
        if down.ndim < 2 or roles["mid"].ndim != 4 or roles["mid"].shape[1] != len(down):
            raise AdapterError(f"{file.path}: the middle tensor of layer {name} does not fit", "the file is damaged")
        down = torch.einsum("abhw,bi->aihw", roles["mid"].float(), down.flatten(1))
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != len(down) or not len(down):
        raise AdapterError(
            f"{file.path}: the factors of layer {name} have shapes {tuple(down.shape)} and {tuple(up.shape)}",
            "the file is damaged",
        )
    if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
        raise AdapterError(f"{file.path}: layer {name} holds NaN or infinite values", "the file is damaged")
    stored = roles.get("alpha")
    scale = alpha_in_use(None if stored is None else float(stored), len(down)) / len(down)
    return LoraLayer(name, down.flatten(1), up.flatten(1), scale, tuple(down.shape[2:]))


def file_precision(file: AdapterFile) -> torch.dtype:
    """The widest type of the file's factors."""
    dtypes = {
        tensor.dtype
        for roles in file.layers.values()
        for role, tensor in roles.items()
        if role != "alpha" and tensor.is_floating_point()
    }
    return next((dtype for dtype in (torch.float32, torch.float16, torch.bfloat16) if dtype in dtypes), torch.float32)


def network_facts(ranks: Mapping[str, int], convolution_ranks: Mapping[str, int]) -> dict[str, str]:
    """``ss_network_*`` of a file with these ranks by layer and alpha equal to the rank, as sd-scripts says it."""
    plain, convolutions = set(ranks.values()), set(convolution_ranks.values())
    rank = str(plain.pop()) if len(plain) == 1 else "Dynamic"
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    if convolutions:
        told = str(convolutions.pop()) if len(convolutions) == 1 else "Dynamic"
        facts["ss_network_args"] = json.dumps({"conv_dim": told, "conv_alpha": told})
    return facts
