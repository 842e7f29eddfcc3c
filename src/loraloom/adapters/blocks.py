"""Blocks of a U-Net, numbered as sd-scripts numbers them: block-wise ranks and learning rates are given by these
numbers.

SD 1 and SD 2 have 25 blocks: 12 on the way down (0 is the first convolution, which no LoRA touches), 1 in the middle,
12 on the way up. SDXL has 23: 0 for the embeddings, 9 down (the first is the first convolution), 3 in the middle, 9 up,
and one for the output layer; no LoRA touches the first and the last, so learning rates are given for 9, 3 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraloom.errors import AdapterError, UnknownNameError

if TYPE_CHECKING:
    from loraloom.formats.adapter_file import AdapterTarget

__all__ = ["BLOCK_COUNTS", "BLOCK_SECTIONS", "BlockSections", "block_index"]


@dataclass(frozen=True)
class BlockSections:
    """How many blocks each section of a family's U-Net has."""

    before: int
    """Blocks in front of the first one on the way down."""
    down: int
    mid: int
    up: int
    after: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.before + self.down + self.mid + self.up + self.after


BLOCK_SECTIONS = {
    "sd1": BlockSections(before=0, down=12, mid=1, up=12, after=0),
    "sd2": BlockSections(before=0, down=12, mid=1, up=12, after=0),
    "sdxl": BlockSections(before=1, down=9, mid=3, up=9, after=1),
}
"""By family name."""
BLOCK_COUNTS = {family: sections.count for family, sections in BLOCK_SECTIONS.items()}
"""Number of blocks by family name: the length of a list of block-wise ranks."""


def block_index(target: AdapterTarget, family: str) -> int | None:
    """Which block (0 to ``BLOCK_COUNTS[family] - 1``) a layer is in; None for a text encoder's.

    A U-Net with fewer levels than the family's full one keeps the numbers that the names of its layers have in the
    full one: the first block on the way up of SD 1 is 13 in any size. Raises UnknownNameError for a family without
    numbered blocks, AdapterError for a layer outside of them.
    """
    if target.part != "unet":
        return None
    if family not in BLOCK_SECTIONS:
        raise UnknownNameError("family with numbered blocks", family, BLOCK_SECTIONS)
    sections = BLOCK_SECTIONS[family]
    section, _, rest = target.module.partition(".")
    number = int(rest.partition(".")[0]) if rest[:1].isdecimal() else -1
    match section:
        case "input_blocks" if 0 <= number < sections.down:
            return sections.before + number
        case "middle_block" if number >= 0:
            return sections.before + sections.down + min(number, sections.mid - 1)
        case "output_blocks" if 0 <= number < sections.up:
            return sections.before + sections.down + sections.mid + number
    raise AdapterError(f"layer {target.name} is in none of the {sections.count} blocks of {family}")
