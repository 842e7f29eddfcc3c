"""Settings of the learning rates of single blocks. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from loraloom.setting_marks import Kohya
from loraloom.settings import Settings
from loraloom.training.block_shapes import block_weights

__all__ = ["BlockLrSettings"]


def _numbers(value: Any) -> Any:
    """``"1,0.5,0"`` (sd-scripts) is a list of numbers, a single number a list of one; other text stays a name."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str) and "," in value:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            return value
    return value


BlockWeights = Annotated[tuple[Annotated[float, Field(ge=0)], ...] | str | None, BeforeValidator(_numbers)]


class BlockLrSettings(Settings):
    """Learning rates of the U-Net's blocks, as factors on its learning rate. Unset sections keep the factor 1."""

    down: Annotated[BlockWeights, Kohya("down_lr_weight")] = None
    """Blocks on the way down (SD 1 and 2: 12, SDXL: 9): a list of factors, one for all, or a shape: sine (low to high),
    cosine (high to low), linear, reverse_linear or zeros, with +0.1 after it to raise it everywhere."""
    mid: Annotated[BlockWeights, Kohya("mid_lr_weight")] = None
    """Blocks in the middle (SD 1 and 2: 1, SDXL: 3): a list of factors, or one for all."""
    up: Annotated[BlockWeights, Kohya("up_lr_weight")] = None
    """Blocks on the way up, as down; low to high means from the middle to the output."""
    zero_threshold: Annotated[float, Kohya("block_lr_zero_threshold"), Field(ge=0)] = 0.0
    """Factors up to this one become 0. A block whose factor is 0 is not trained."""

    @field_validator("down", "mid", "up")
    @classmethod
    def _shape_exists(cls, value: tuple[float, ...] | str | None, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            if info.field_name == "mid":
                raise ValueError("the middle takes numbers, not a shape")
            block_weights(value, 12)
        return value
