"""Block weights: every layer of every family is in a named block, and lists and presets mean what people know."""

from __future__ import annotations

import pytest

from loraloom.adapters.block_weights import LISTS, PRESETS, block_name, parse_block_weights
from loraloom.adapters.blocks import BLOCK_SECTIONS, block_index
from loraloom.errors import AdapterError, SettingsError
from loraloom.models.family import FAMILIES
from random_loras import targets_of


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_block_names_agree_with_the_module_paths(family: str) -> None:
    sections = BLOCK_SECTIONS[family]
    names = set()
    for target in targets_of(family):
        index = block_index(target, family)
        if index is None:
            assert block_name(target.name) == "BASE"
            continue
        index -= sections.before
        if index < sections.down:
            wanted = f"IN{index:02d}"
        elif index < sections.down + sections.mid:
            wanted = "MID"
        else:
            wanted = f"OUT{index - sections.down - sections.mid:02d}"
        spelled = [f"{start}{target.diffusers_name}" for start in ("unet.", "base_model.model.", "")]
        spelled += [f"diffusion_model.{target.module}", f"lycoris_{target.diffusers_name.replace('.', '_')}"]
        for name in (target.name, *target.aliases, *spelled):
            assert block_name(name) == wanted, name
        names.add(wanted)
    assert len(names) > 5


def test_lists_are_of_the_known_lengths() -> None:
    assert {count: len(names) for count, names in LISTS.items()} == {12: 12, 17: 17, 20: 20, 26: 26}
    assert LISTS[17][1:8] == ("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID")


def test_a_list_gives_each_block_its_number() -> None:
    weights = parse_block_weights(",".join(str(number) for number in range(17)))
    attention = "attentions_0_transformer_blocks_0_attn1_to_q"
    assert weights.of("lora_te_text_model_encoder_layers_0_mlp_fc1") == 0
    assert weights.of(f"lora_unet_down_blocks_0_{attention}") == 1
    assert weights.of(f"lora_unet_mid_block_{attention}") == 7
    assert weights.of(f"lora_unet_up_blocks_3_{attention}") == 14
    with pytest.raises(AdapterError, match="IN03"):
        weights.of("lora_unet_down_blocks_0_downsamplers_0_conv")


@pytest.mark.parametrize(
    ("preset", "blocks"),
    [
        ("INS", "BASE IN01 IN02"),
        ("IND", "BASE IN05 IN07 IN08"),
        ("MIDD", "BASE IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06"),
        ("OUTD", "BASE OUT03 OUT04 OUT05 OUT06"),
        ("OUTS", "BASE OUT07 OUT08 OUT09 OUT10 OUT11"),
    ],
)
def test_presets_of_sd1(preset: str, blocks: str) -> None:
    weights = parse_block_weights(preset.lower()).listed(FAMILIES.load("sd1").preset_blocks)
    given = {block for block in LISTS[17] if weights.of(_layer(block))}
    if preset == "IND":
        given.discard("MID")
    assert given == set(blocks.split())


def _layer(block: str) -> str:
    if block in ("BASE", "MID"):
        return {"BASE": "lora_te_x", "MID": "lora_unet_middle_block_1_x"}[block]
    section = "input" if block.startswith("IN") else "output"
    return f"lora_unet_{section}_blocks_{int(block[-2:])}_1_x"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_cover_every_layer(preset: str) -> None:
    for family in ("sd1", "sdxl"):
        weights = parse_block_weights(preset).listed(FAMILIES.load(family).preset_blocks)
        values = {weights.of(target.name) for target in targets_of(family)}
        assert values <= {0.0, 1.0}
        assert values == {"NONE": {0.0}, "ALL": {1.0}}.get(preset, {0.0, 1.0})


def test_named_blocks_and_halves() -> None:
    weights = parse_block_weights("mid=0.25, OUT03=0")
    assert [weights.of(_layer(block)) for block in ("BASE", "MID", "OUT03", "IN01")] == [1, 0.25, 0, 1]
    assert parse_block_weights("ALL0.5").of(_layer("MID")) == 0.5


@pytest.mark.parametrize("text", ["", "1,2,3", "OUTX", "MID=x", "MIDDLE=1", ",".join(["nan"] * 17)])
def test_what_is_no_list_is_said(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_block_weights(text)
