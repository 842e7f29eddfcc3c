"""Block numbers against kohya's numbering, told from the names in LoRA files by the rules of sd-scripts."""

from __future__ import annotations

import re

import pytest

from layouts import part_shapes
from loraloom.adapters.blocks import BLOCK_COUNTS, BLOCK_SECTIONS, block_index
from loraloom.errors import AdapterError, UnknownNameError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.models.targets import unet_targets

PREFIX = "model.diffusion_model."
LAYOUTS = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}


def targets(family: str) -> list[AdapterTarget]:
    return unet_targets(part_shapes(LAYOUTS[family], PREFIX), sai_names=family == "sdxl")


def number_of_the_name(name: str, family: str) -> int:
    """The block as it follows from a layer's name in a LoRA file: diffusers' names for SD, the checkpoint's for XL."""
    if family == "sdxl":
        section, number = re.fullmatch(r"lora_unet_(input|middle|output)_blocks?_(\d+)_.*", name).groups()  # type: ignore[union-attr]
        return {"input": 1, "middle": 10, "output": 13}[section] + int(number)
    if "_mid_block_" in name:
        return 12
    direction, level, kind, number = re.search(r"(up|down)_blocks_(\d+)_([a-z]+)_(\d+)_", name).groups()  # type: ignore[union-attr]
    inside = 2 if kind in ("upsamplers", "downsamplers") else int(number)
    return {"down": 1, "up": 13}[direction] + 3 * int(level) + inside


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_layer_of_a_full_model_is_in_the_block_its_name_says(family: str) -> None:
    for target in targets(family):
        block = block_index(target, family)
        assert block == number_of_the_name(target.name, family) == target.block
    touched = {block_index(target, family) for target in targets(family)}
    # Embeddings, first convolution and output layer take no LoRA.
    empty = {0, 1, 22} if family == "sdxl" else {0}
    assert touched == set(range(BLOCK_COUNTS[family])) - empty


def test_counts_are_those_of_block_wise_ranks() -> None:
    assert BLOCK_COUNTS == {"sd1": 25, "sd2": 25, "sdxl": 23}
    sections = BLOCK_SECTIONS["sdxl"]
    assert (sections.down, sections.mid, sections.up) == (9, 3, 9)
    sections = BLOCK_SECTIONS["sd1"]
    assert (sections.down, sections.mid, sections.up) == (12, 1, 12)


def at(module: str, part: str = "unet") -> AdapterTarget:
    return AdapterTarget(part, module, "layer", (), module, module, None, (4, 4), "linear", 0)


def test_a_text_encoder_has_none() -> None:
    assert block_index(at("encoder.layers.3.mlp.fc1", "text_encoder_2"), "sdxl") is None


def test_a_shorter_model_keeps_the_numbers_of_the_full_one() -> None:
    assert block_index(at("middle_block.1.proj_in"), "sd1") == 12
    assert block_index(at("output_blocks.0.0.in_layers.2"), "sd1") == 13


@pytest.mark.parametrize(
    "module", ["input_blocks.12.0.op", "output_blocks.12.0", "out.2", "time_embed.0", "input_blocks.x"]
)
def test_a_layer_outside_the_blocks_is_an_error(module: str) -> None:
    with pytest.raises(AdapterError, match="none of the 25 blocks"):
        block_index(at(module), "sd1")


def test_a_family_without_numbered_blocks_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="flux"):
        block_index(at("input_blocks.1.1"), "flux")
