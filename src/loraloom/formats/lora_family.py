"""Which family of models a LoRA was made for: the one answer that every command gives.

Widths decide, since they are the only facts in the tensors: SD 1 reads text of width 768, SD 2 of 1024, SDXL of 2048.
Models of other widths (small ones for tests, say) are told apart by blocks that only one family has. After that the
metadata counts, and last the style of the names: the same layer has had the names of several programs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import prod

from loraloom.formats.adapter_kinds import Shaped, layouts
from loraloom.formats.dialects import is_text_layer

__all__ = ["family_name", "family_of_layers"]

Layers = Mapping[str, Mapping[str, Shaped]]

_TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
_READS_TEXT = re.compile(r"attn2[._]to_[kv]$")
_TEXT_READ = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text that the U-Net reads, by family."""
_WRITES_TEXT = re.compile(r"self_attn[._](?:[qkv]|out)_proj$")
_TEXT_WRITTEN = {1024: "sd2", 1280: "sdxl"}
"""Widths of text encoders that one family alone has. CLIP-L's 768 is SD 1's and SDXL's first."""

_ONLY_SDXL = re.compile(
    r"transformer_blocks[._][1-9]|up_blocks[._]0[._]attentions|output_blocks[._][0-2][._]1[._](?:proj|transf)"
)
"""Deeper transformers, and attention in the first block on the way up."""
_NOT_SDXL = re.compile(
    r"(?:input|output)_blocks[._](?:9|1\d)[._]|input_blocks[._][12][._]1[._](?:proj|transf)"
    r"|down_blocks[._]0[._]attentions|down_blocks[._]3[._]|up_blocks[._]3[._]"
)
"""SD 1 and 2 have one level more, and attention in the first one."""
_NAMED_AS_SDXL = ("lora_te1_", "lora_te2_", "text_encoder_2.", "text_encoders.clip_g.")
_LIKE_SDXL = ("lora_unet_input_blocks", "lora_unet_output_blocks", "lora_unet_middle_block")
_VERSIONS = (
    ("sd_v1", "sd1"),
    ("sd_v2", "sd2"),
    ("sdxl_base_v1", "sdxl"),
    ("stable-diffusion-v1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("stable-diffusion-xl", "sdxl"),
)
"""How ``ss_base_model_version`` and ``modelspec.architecture`` begin, by family."""


def family_name(layers: Layers, metadata: Mapping[str, str]) -> str:
    """The family as ``models`` names it (sd1, sd2, sdxl); empty where nothing gives it away.

    ``layers``: by their name in the file, the type and shape (or the tensor) of every role.
    """
    said = next((name for text in _said(metadata) for start, name in _VERSIONS if text.startswith(start)), "")

    # What was written about a file may be wrong, its shapes cannot: they are asked first.
    if told := _by_width(layers):
        return told
    if _any(layers, _NOT_SDXL):
        return said if said != "sdxl" else ""
    if _any(layers, _ONLY_SDXL):
        return "sdxl"
    if any(name.startswith(_NAMED_AS_SDXL) for name in layers):
        return said or "sdxl"
    if said:
        return said
    if any(name.startswith(_LIKE_SDXL) for name in layers):
        return "sdxl"
    # A text encoder alone, as wide as CLIP-L, under a name that is not SDXL's.
    return "sd1" if set(_widths(layers, _WRITES_TEXT)) == {768} and all(map(is_text_layer, layers)) else ""


def family_of_layers(layers: Layers, metadata: Mapping[str, str]) -> str:
    """The family for people: ``SD 1.x``, what the file says of another one, or that it is unknown."""
    if name := family_name(layers, metadata):
        return _TITLES[name]
    if said := next(iter(_said(metadata)), ""):
        return said
    width = next(iter(_widths(layers, _READS_TEXT)), None) or next(iter(_widths(layers, _WRITES_TEXT)), None)
    return "an unknown model" if width is None else f"a model that reads text of width {width}"


def _by_width(layers: Layers) -> str:
    """What the widths say, those of the U-Net's attention to text before those of text encoders."""
    for pattern, families in ((_READS_TEXT, _TEXT_READ), (_WRITES_TEXT, _TEXT_WRITTEN)):
        for width, _ in _widths(layers, pattern).most_common():
            if width in families:
                return families[width]
    return ""


def _widths(layers: Layers, pattern: re.Pattern[str]) -> Counter[int]:
    """How many layers, of those with such a name, read how many channels; the most frequent first."""
    found = (_width(roles) for name, roles in layers.items() if pattern.search(name))
    return Counter(width for width in found if width is not None)


def _any(layers: Layers, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(name) for name in layers if not is_text_layer(name))


def _said(metadata: Mapping[str, str]) -> list[str]:
    texts = (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", ""))
    return [text for text in texts if text]


def _width(roles: Mapping[str, Shaped]) -> int | None:
    """How many channels a linear layer reads, as far as its tensors tell."""

    def columns(names: tuple[str, ...]) -> int | None:
        return next((roles[name].shape[1] for name in names if name in roles and len(roles[name].shape) > 1), None)

    for layout in layouts().values():
        counts = [columns(names) for names in layout.columns]
        if counts and None not in counts:
            return prod(count for count in counts if count is not None)
    return None
