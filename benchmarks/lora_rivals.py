"""Ways to use a LoRA that lora_on_the_fly.py measures: our side branches, copies of weights, diffusers with PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from loraloom.adapters.active import ActiveLoras
from loraloom.adapters.attach import AdapterSet
from loraloom.models.diffusers_configs import unet_config
from loraloom.models.loaded import LoadedModel
from loraloom.models.names import pairs_from_checkpoint

COUNTS = (0, 1, 3, 5)
"""How many LoRAs at once."""
BEFORE = 0.8
"""The weight of a LoRA before anything is changed."""
PEFT_NAMES = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
ANY = torch.empty(0)
"""Stands for an input, of which only type and device count."""


class Side:
    """Our side branches of the first so many LoRAs."""

    def __init__(self, model: LoadedModel, sets: Sequence[AdapterSet]) -> None:
        layers = {target.name: model.layer(target) for target in model.file_targets}
        self._active = {count: ActiveLoras(sets[:count], layers) for count in COUNTS if count}
        self._stack = ExitStack()

    def has(self, count: int) -> None:
        self.remove()
        if count:
            self._stack.enter_context(self._active[count].on())
            self._active[count].weigh_unet([[BEFORE] * count])

    def weigh(self, weight: float) -> None:
        """Give a single LoRA another weight, with the tensors of weights that the next pass would make."""
        active = self._active[1]
        active.weigh_unet([[weight]])
        for branch in active._branches.values():
            branch._fused(ANY)
            branch._scale([[weight]], ANY)

    def weigh_images(self, weights: Sequence[float]) -> None:
        self._active[1].weigh_unet([[weight] for weight in weights])

    def remove(self) -> None:
        self._stack.close()


class BackupAndPatch:
    """The usual way to have a LoRA in the weights: a clone of each, copied back before every change."""

    def __init__(self, model: LoadedModel, adapters: AdapterSet) -> None:
        self._layers = [(model.layer(target), adapter) for target, adapter in adapters.items()]
        self._backups = [layer.weight.detach().clone() for layer, _ in self._layers]
        self.mib = sum(backup.nbytes for backup in self._backups) / 2**20

    def remove(self) -> None:
        for (layer, _), backup in zip(self._layers, self._backups, strict=True):
            layer.weight.copy_(backup)

    def apply(self, weight: float) -> None:
        for (layer, adapter), backup in zip(self._layers, self._backups, strict=True):
            down, up = adapter.factors()
            layer.weight.copy_(backup)
            layer.weight.flatten(1).addmm_(up.flatten(1), down.flatten(1), alpha=weight * adapter.scale)


class Diffusers:
    """diffusers' U-Net with the same weights, and PEFT's LoRAs with the same factors."""

    def __init__(self, model: LoadedModel, sets: Sequence[AdapterSet]) -> None:
        state = {name: parameter.detach() for name, parameter in model.unet.named_parameters()}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        pairs = pairs_from_checkpoint("unet", shapes)
        theirs = {pair.diffusers: pair.to_diffusers(state[pair.checkpoint]).clone() for pair in pairs}
        config = unet_config({name: tuple(tensor.shape) for name, tensor in theirs.items()}, model.family)
        with torch.device("meta"):
            self.unet = UNet2DConditionModel.from_config(config)
        self.unet.load_state_dict(theirs, assign=True)
        self.unet.eval().requires_grad_(False)
        self._sets = sets
        self._fused = False

    def has(self, count: int, *, fused: bool = False) -> None:
        """Bring it to so many LoRAs, at work beside the weights or (one) in them."""
        self.unfuse()
        loaded = set(getattr(self.unet, "peft_config", {}))
        for index in range(count):
            if self._name(index) not in loaded:
                self._load(index)
        self.weigh(count, BEFORE)
        if fused:
            self.fuse(BEFORE)

    def _load(self, index: int) -> None:
        name, adapters = self._name(index), self._sets[index]
        rank = next(iter(adapters.ranks()))
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=PEFT_NAMES), name)
        for target, adapter in adapters.items():
            layer, (down, up) = self.unet.get_submodule(target.diffusers_name), adapter.factors()
            for theirs, ours in ((layer.lora_A, down), (layer.lora_B, up)):
                theirs[name].weight.copy_(ours.reshape(theirs[name].weight.shape))

    def weigh(self, count: int, weight: float) -> None:
        if count == 0:
            self.unet.disable_lora()
            return
        self.unet.enable_lora()
        self.unet.set_adapters([self._name(index) for index in range(count)], [weight] * count)

    def delete(self) -> None:
        self.unet.delete_adapters(self._name(0))

    def fuse(self, weight: float) -> None:
        self.unfuse()
        self.weigh(1, weight)
        self.unet.fuse_lora()
        self._fused = True

    def unfuse(self) -> None:
        if self._fused:
            self.unet.unfuse_lora()
            self._fused = False

    def weight(self, name: str) -> Tensor:
        layer = self.unet.get_submodule(name)
        return getattr(layer, "base_layer", layer).weight

    @staticmethod
    def _name(index: int) -> str:
        return f"lora{index}"
