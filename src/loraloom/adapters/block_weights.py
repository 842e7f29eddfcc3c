"""Weights of a LoRA by block of the U-Net, in the lists and preset names people know. No torch here.

A list names its blocks in reading order, ``BASE`` (the text encoders) first: 17 values for a LoRA of SD 1 and 2, 12 for
one of SDXL, 26 where the res blocks are trained too (LyCORIS), 20 of those for SDXL. Source of lists and presets: the
web UI extension sd-webui-lora-block-weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from loraloom.errors import AdapterError, SettingsError
from loraloom.formats.dialects import part_of_layer

__all__ = ["LISTS", "PRESETS", "BlockWeights", "block_name", "parse_block_weights"]


def _names(down: range | tuple[int, ...], up: range) -> tuple[str, ...]:
    return ("BASE", *(f"IN{index:02d}" for index in down), "MID", *(f"OUT{index:02d}" for index in up))


LISTS: Mapping[int, tuple[str, ...]] = {
    12: _names((4, 5, 7, 8), range(6)),
    17: _names((1, 2, 4, 5, 7, 8), range(3, 12)),
    20: _names(range(9), range(9)),
    26: _names(range(12), range(12)),
}
"""Blocks that a list of this length names."""
_SD1 = {
    "NONE": "00000000000000000",
    "ALL": "11111111111111111",
    "INS": "11100000000000000",
    "IND": "10001110000000000",
    "INALL": "11111110000000000",
    "MIDD": "10001111111100000",
    "OUTD": "10000000111100000",
    "OUTS": "10000000000011111",
    "OUTALL": "10000000111111111",
}
_SDXL = {
    "NONE": "000000000000",
    "ALL": "111111111111",
    "INS": "111000000000",
    "IND": "100110000000",
    "INALL": "111110000000",
    "MIDD": "100111111000",
    "OUTD": "100000111000",
    "OUTS": "100000000111",
    "OUTALL": "100000111111",
}
_PRESET_LISTS = {17: _SD1, 12: _SDXL}
PRESETS = tuple(_SD1)
"""Names that stand for a list; those of SDXL divide its blocks by resolution as those of SD 1 do."""

_PLACES = (
    (re.compile(r"down_blocks_(\d+)_(?:attentions|resnets)_(\d+)_"), "IN", 1),
    (re.compile(r"down_blocks_(\d+)_downsamplers_(\d+)_"), "IN", 3),
    (re.compile(r"up_blocks_(\d+)_(?:attentions|resnets)_(\d+)_"), "OUT", 0),
    (re.compile(r"up_blocks_(\d+)_upsamplers_(\d+)_"), "OUT", 2),
)
_IN_FRONT = re.compile(r"^(?:lora_unet_|unet_|diffusion_model_|base_model_model_|lycoris_)")
"""What comes before a layer's own path."""
_SECTIONS = (
    (re.compile(r"input_blocks_(\d+)_"), "IN"),
    (re.compile(r"output_blocks_(\d+)_"), "OUT"),
)


def block_name(layer: str) -> str:
    """The block (``BASE``, ``IN04``, ``MID``, ``OUT11``) of a layer by its name in a file of any dialect.

    Layers outside of the numbered blocks (time embedding, first and last convolution) count as ``BASE``.
    """
    if part_of_layer(layer) != "unet":
        return "BASE"
    name = _IN_FRONT.sub("", layer.replace(".", "_"))
    if name.startswith(("mid_block_", "middle_block_")):
        return "MID"
    for pattern, section in _SECTIONS:
        if found := pattern.match(name):
            return f"{section}{int(found[1]):02d}"
    for pattern, section, first in _PLACES:
        if found := pattern.match(name):
            return f"{section}{3 * int(found[1]) + int(found[2]) + first:02d}"
    return "BASE"


@dataclass(frozen=True)
class BlockWeights:
    """What the weight of a LoRA is multiplied by, block by block."""

    text: str
    """The text as it was given."""
    values: Mapping[str, float] | None = field(default=None, hash=False)
    """By block; None for a preset, which means another list for each family: see :meth:`listed`."""
    is_preset: bool = False
    """Whether blocks that are not named go with their neighbours."""

    def listed(self, count: int) -> BlockWeights:
        """With the numbers of a preset, for a family whose presets are lists of ``count`` values."""
        if self.values is not None:
            return self
        digits = zip(LISTS[count], _PRESET_LISTS[count][self.text], strict=True)
        return BlockWeights(self.text, {name: float(digit) for name, digit in digits}, is_preset=True)

    def of(self, layer: str) -> float:
        """The factor of a layer. Raises AdapterError for a block that the list does not name."""
        values = self.values
        if values is None:
            raise ValueError(f"the preset {self.text} has no numbers until the family is known")
        block = block_name(layer)
        if self.is_preset:
            block = _nearest_trained(block, values)
        if block not in values:
            raise AdapterError(
                f"the block weights {self.text} name no weight for block {block}, where {layer} is",
                "a LoRA with trained res blocks needs the list of 26 values (SDXL: 20), one of SDXL 12, others 17",
            )
        return values[block]


def _nearest_trained(block: str, values: Mapping[str, float]) -> str:
    """A preset's blocks are those with attention; a block of res blocks alone goes with its neighbour."""
    if block in values or block == "BASE":
        return block
    section, number = block.rstrip("0123456789"), int(block[-2:])
    near = [name for name in values if name.startswith(section)]
    return min(near, key=lambda name: (abs(int(name[-2:]) - number), name))


def parse_block_weights(text: str) -> BlockWeights:
    """A preset's name (``OUTD``, ``ALL0.5``), a list of 12, 17, 20 or 26 numbers, or ``BASE=1,MID=0.5,OUT03=0``.

    In the last form the blocks that are not named have weight 1. Raises SettingsError.
    """
    stripped = text.strip()
    if stripped.upper() in PRESETS:
        return BlockWeights(stripped.upper())
    if found := re.fullmatch(r"ALL(\d*\.?\d+)", stripped.upper()):
        return BlockWeights(stripped.upper(), dict.fromkeys(LISTS[26], float(found[1])))
    pieces = [piece.strip() for piece in stripped.split(",")]
    if "=" in stripped:
        values = dict.fromkeys(LISTS[26], 1.0)
        for piece in pieces:
            name, _, number = (part.strip() for part in piece.partition("="))
            if name.upper() not in values:
                raise SettingsError(
                    [f"block weights: there is no block {name!r}"], "blocks are BASE, IN00..11, MID, OUT00..11"
                )
            values[name.upper()] = _number(number, text)
        return BlockWeights(text, values)
    if len(pieces) not in LISTS:
        known = ", ".join(PRESETS)
        raise SettingsError(
            [f"block weights: {text!r} is neither a preset nor a list of {', '.join(map(str, LISTS))} numbers"],
            f"presets: {known}",
        )
    numbers = [_number(piece, text) for piece in pieces]
    return BlockWeights(text, dict(zip(LISTS[len(pieces)], numbers, strict=True)))


def _number(piece: str, text: str) -> float:
    try:
        value = float(piece)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError([f"block weights: {piece!r} in {text!r} is not a number"])
    return value
