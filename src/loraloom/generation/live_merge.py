"""LoRAs merged into a model in memory, always from the weights of its file, so that no rounding adds up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from loraloom.formats.adapter_file import AdapterTarget
from loraloom.generation.loras import AppliedLora
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel
from loraloom.models.quantized import QuantizedWeight

__all__ = ["LiveMerge", "merges"]

CALLS_THAT_PAY = 100
"""Calls of the U-Net from which merging is quicker than what a side branch adds to each of them."""


class LiveMerge:
    """The LoRAs that are in a model's weights: ``W = W of the file + sum of weight * change``, rounded once.

    No copy of a weight is kept: what is taken off is read from the mapped file again, bit for bit.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._changed: dict[AdapterTarget, bool] = {}
        """Targets that are not as in the file, and whether their biases are not either."""

    @torch.no_grad()
    def apply(self, loras: Sequence[AppliedLora]) -> None:
        """Have exactly these LoRAs in the model; those of before are gone."""
        targets = [
            target for lora in loras for target in lora.adapters.targets.values() if lora.strength.of(target.name)
        ]
        # Together, because some layers share a tensor of the file.
        changed, self._changed = self._changed, {}
        for target, with_bias in changed.items():
            self._model.restore(target)
            if with_bias:
                self._model.restore(target, bias=True)
        for target in dict.fromkeys(targets):
            weight, bias = self._change_of(target, loras)
            self._changed[target] = bias is not None
            if bias is not None:
                self._model.add_to_weight(target, bias, bias=True)
            if weight is not None:
                self._model.add_to_weight(target, weight)

    def remove(self) -> None:
        """Make every weight that of the file again."""
        self.apply(())

    @contextmanager
    def on(self, loras: Sequence[AppliedLora]) -> Iterator[None]:
        """The model with these LoRAs; as in its file afterwards, whatever happened."""
        try:
            self.apply(loras)
            yield
        finally:
            self.remove()

    def _change_of(self, target: AdapterTarget, loras: Sequence[AppliedLora]) -> tuple[Tensor | None, Tensor | None]:
        weight: Tensor | None = None
        bias: Tensor | None = None
        for lora in loras:
            strength = lora.strength.of(target.name)
            if strength == 0.0 or target.name not in lora.adapters.targets:
                continue
            adapter = lora.adapters.adapter(target.name)
            base = self._model.weight_of(target) if adapter.needs_base else None
            change = adapter.delta(base) * strength
            weight = change if weight is None else weight + change
            more = adapter.bias_delta()
            if more is not None and bool(more.any()):
                bias = more * strength if bias is None else bias + more * strength
        return weight, bias


def merges(
    model: LoadedModel, settings: GenerateSettings, images: Sequence[Sequence[AppliedLora]], calls: int
) -> tuple[bool, str]:
    """Whether the LoRAs of some images are to be merged, and if that was asked for and cannot be, why.

    ``images``: the LoRAs of each; ``calls`` of the U-Net in all.
    """
    if settings.lora_mode == "side" or not any(images):
        return False, ""

    # What is merged acts alike on every pixel, image and step. Whatever differs keeps a LoRA beside the weights.
    reason = ""
    if any(isinstance(weight, QuantizedWeight) for part in model.parts.values() for weight in part.parameters()):
        reason = "the checkpoint is quantized"
    elif any(lora.mask is not None for loras in images for lora in loras):
        reason = "a mask confines one to a part of the picture"
    elif any(list(loras) != list(images[0]) for loras in images):
        reason = "they differ by image"
    elif any(lora.curve is not None for lora in images[0]):
        reason = "their weights change over the steps"

    if reason or settings.lora_mode == "merge":
        return not reason, reason

    # Merging makes a pause first, which has to pay in calls; and weights that are mapped from the file would become
    # copies, which whoever spares memory does not want.
    spares_memory = settings.low_memory or settings.keep_file_precision
    return calls >= CALLS_THAT_PAY and model.compute == torch.float32 and not spares_memory, ""
