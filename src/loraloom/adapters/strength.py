"""How strongly a LoRA acts: one rule for prompts, painting, merging and training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loraloom.adapters.block_weights import BlockWeights
from loraloom.formats.dialects import is_text_layer

__all__ = ["FULL", "LoraStrength"]


@dataclass(frozen=True)
class LoraStrength:
    """A weight for each part of the model, times that of the block that a layer is in."""

    unet: float = 1.0
    text_encoder: float = 1.0
    blocks: BlockWeights | None = None
    """None: 1 everywhere."""

    def listed(self, count: int) -> LoraStrength:
        """The same for a family whose presets of block weights are lists of ``count`` values."""
        return self if self.blocks is None else replace(self, blocks=self.blocks.listed(count))

    def of_part(self, part: str) -> float:
        """The weight of a part (``unet``, ``text_encoder``, ``text_encoder_2``)."""
        return self.unet if part == "unet" else self.text_encoder

    def of_block(self, layer: str) -> float:
        """What a layer's weight is multiplied by for its block; AdapterError for a block that the list leaves out."""
        return 1.0 if self.blocks is None else self.blocks.of(layer)

    def of(self, layer: str) -> float:
        """What the change of a layer, by its name in a file of any dialect, is multiplied by.

        Raises AdapterError for a block that the list of block weights leaves out.
        """
        return self.of_part("text_encoder" if is_text_layer(layer) else "unet") * self.of_block(layer)


FULL = LoraStrength()
"""Everything at weight 1."""
