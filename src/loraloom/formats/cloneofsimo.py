"""LoRAs of cloneofsimo/lora and sd_dreambooth_extension, whose tensors are numbered: which layer each one belongs to.

A ``.pt`` is a list (up, down, up, down, ...), a ``.safetensors`` has keys ``unet:0:up``. The numbers follow the order
in which diffusers 0.10 to 0.11 registered its modules: down, up, middle, attention before res blocks, and in a
transformer block the feed-forward layer between the two attentions (later versions: behind both). Count and shapes
decide which of the two it is, and which layers are there at all. Alpha is not stored and equals the rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loraloom.formats.adapter_kinds import Shaped

__all__ = ["companions", "is_numbered_list", "layer_names", "numbered_key", "pairs_of_list"]

_TRANSFORMERS = 16
_NUMBERED = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)", re.ASCII)


def is_numbered_list(infos: Mapping[str, Shaped]) -> bool:
    """Whether these are the tensors of a list of (up, down) pairs."""
    if not infos or len(infos) % 2 or list(infos) != [str(number) for number in range(len(infos))]:
        return False
    shapes = [tuple(infos[name].shape) for name in infos]
    return all(
        len(up) == len(down) and len(up) in (2, 4) and up[1] == down[0]
        for up, down in zip(shapes[::2], shapes[1::2], strict=True)
    )


def numbered_key(key: str) -> tuple[str, int, str] | None:
    """``unet:3:up`` as (part, number, role); None for another key."""
    match = _NUMBERED.fullmatch(key)
    return None if match is None else (match[1], int(match[2]), match[3])


def pairs_of_list(infos: Mapping[str, Shaped]) -> tuple[str, dict[int, dict[str, str]]]:
    """Part and, by number and role, keys of a list: it is a text encoder's when every layer has one and the same width.

    The U-Net reads text, and its widths differ from level to level.
    """
    widths = {size for key, info in infos.items() for size in [info.shape[int(key) % 2]]}
    part = "text_encoder" if len(widths) == 1 else "unet"
    return part, {number: {"up": str(2 * number), "down": str(2 * number + 1)} for number in range(len(infos) // 2)}


def layer_names(part: str, shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str] | None:
    """kohya's names of numbered layers with these shapes of (up, down); None where they are in no known order."""
    if any(len(up) not in (2, 4) or len(down) not in (2, 4) for up, down in shapes):
        return None

    # These files hold numbers only. A layer of CLIP has four projections, always in this order.
    if part == "text_encoder":
        if len(shapes) % 4 or not shapes:
            return None
        layers = range(len(shapes) // 4)
        projections = ("k_proj", "v_proj", "q_proj", "out_proj")
        return [
            f"lora_te_text_model_encoder_layers_{layer}_self_attn_{name}" for layer in layers for name in projections
        ]

    # The U-Net's may be of transformers alone or of residual blocks too (80 more): only shapes tell versions apart.
    for res_blocks in (0, 80):
        for modules in _TRANSFORMER_MODULES:
            if len(shapes) - res_blocks == _TRANSFORMERS * len(modules):
                names = [f"lora_unet_{name}" for name in _unet_modules(modules, with_res_blocks=res_blocks > 0)]
                if all(_fits(name, *pair) for name, pair in zip(names, shapes, strict=True)):
                    return names
    return None


def _transformer_modules() -> Iterator[tuple[str, ...]]:
    every = ("to_q", "to_k", "to_v", "to_out_0")
    for count in (4, 3):
        first, second = ([f"attn{number}_{name}" for name in every[:count]] for number in (1, 2))
        yield (*first, "ff_net_0_proj", *second)
        yield (*first, *second, "ff_net_0_proj")
        yield (*first, *second)


_TRANSFORMER_MODULES = tuple(_transformer_modules())
"""Layers of a transformer block in the orders that files have; without the output layers in the oldest ones."""


def _unet_modules(modules: Sequence[str], *, with_res_blocks: bool) -> Iterator[str]:
    sections = [(f"down_blocks_{level}", 2 * (level < 3), 2) for level in range(4)]
    sections += [(f"up_blocks_{level}", 3 * (level > 0), 3) for level in range(4)]

    for section, attentions, resnets in [*sections, ("mid_block", 1, 2)]:
        for number in range(attentions):
            yield from (f"{section}_attentions_{number}_transformer_blocks_0_{name}" for name in modules)
        for number in range(resnets if with_res_blocks else 0):
            for name in ("conv1", "time_emb_proj", "conv2"):
                yield f"{section}_resnets_{number}_{name}"
            # A shortcut stands where the width changes: everywhere on the way up, where skips are joined on, and at
            # the first block of two levels on the way down.
            if section.startswith("up") or (section in ("down_blocks_1", "down_blocks_2") and number == 0):
                yield f"{section}_resnets_{number}_conv_shortcut"


def _fits(name: str, up: tuple[int, ...], down: tuple[int, ...]) -> bool:
    """Whether a layer of that name can have these shapes: the place of the feed-forward layer gives the order away."""
    if name.endswith(("conv1", "conv2")):
        return len(down) == 4 and down[2:] == (3, 3)
    if name.endswith("ff_net_0_proj"):
        return up[0] == 8 * down[1]
    if name.endswith(("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn2_to_q", "attn2_to_out_0")):
        return up[0] == down[1]
    return True


def companions(path: Path) -> list[Path]:
    """The files that belong to a U-Net's list: its text encoder's and its embedding, where these exist."""
    if path.suffix.lower() == ".safetensors":
        return []
    names = (f"{path.stem}.text_encoder{path.suffix}", f"{path.stem}_txt{path.suffix}", f"{path.stem}.ti{path.suffix}")
    return [file for name in names if (file := path.with_name(name)).is_file()]
