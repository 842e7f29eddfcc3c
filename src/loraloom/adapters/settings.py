"""Settings of adapters. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from loraloom.settings import Kohya, Settings

__all__ = ["AdapterSettings"]


class AdapterSettings(Settings):
    """What is trained on top of the frozen checkpoint."""

    kind: Literal["lora"] = "lora"
    """Kind of adapter."""
    rank: Annotated[int, Kohya("network_dim"), Field(ge=1, le=4096)] = 16
    """Rank of the update of each layer: more can learn more, and costs file size (SD 1.5 in fp16: 1.2 MB per rank)."""
    alpha: Annotated[float | None, Kohya("network_alpha"), Field(gt=0)] = None
    """The update is scaled by alpha / rank. Unset: equal to rank (scale 1)."""
    conv_rank: Annotated[int, Kohya("conv_dim"), Field(ge=0, le=4096)] = 0
    """Rank for 3x3 convolutions (0: they are not trained). When set, the other layers of the res blocks are too."""
    conv_alpha: Annotated[float | None, Kohya("conv_alpha"), Field(gt=0)] = None
    """Alpha of the 3x3 convolutions. Unset: equal to conv_rank."""
    dropout: Annotated[float, Kohya("network_dropout"), Field(ge=0, lt=1)] = 0.0
    """Probability that a component of the low-rank activation is dropped in a training step."""
    unet: bool = True
    """Train the U-Net."""
    text_encoder: bool = True
    """Train the text encoder(s)."""
