"""How strongly a LoRA acts on a layer, by its name in files of every dialect."""

from __future__ import annotations

import pytest

from loraloom.adapters.block_weights import parse_block_weights
from loraloom.adapters.strength import FULL, LoraStrength
from loraloom.errors import AdapterError
from loraloom.models.family import FAMILIES

UNET = (
    "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_q",
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q",
    "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn1.to_q",
)
TEXT = ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1")


def test_a_layer_has_the_weight_of_its_part_times_that_of_its_block() -> None:
    strength = LoraStrength(0.7, -0.3, parse_block_weights("BASE=0.2,OUT05=1.6"))
    assert [strength.of(layer) for layer in UNET] == [pytest.approx(0.7 * 1.6)] * 3
    assert [strength.of(layer) for layer in TEXT] == [pytest.approx(-0.3 * 0.2)] * 2
    assert [LoraStrength(0.7, -0.3).of(layer) for layer in (UNET[0], TEXT[0])] == [0.7, -0.3]
    assert (FULL.of(UNET[0]), FULL.of(TEXT[0])) == (1.0, 1.0)


def test_a_preset_means_the_blocks_of_the_family() -> None:
    preset = LoraStrength(0.7, 0.3, parse_block_weights("OUTS"))
    with pytest.raises(ValueError, match="until the family is known"):
        preset.of(UNET[0])
    layer = "lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_q"
    lists = {family: FAMILIES.load(family).preset_blocks for family in ("sd1", "sd2", "sdxl")}
    assert {family: preset.listed(count).of(layer) for family, count in lists.items()} == {
        "sd1": 0.0, "sd2": 0.0, "sdxl": 0.7,
    }  # fmt: skip
    assert preset.listed(17).listed(12) == preset.listed(17)


def test_a_block_without_a_weight_is_an_error_at_any_weight() -> None:
    strength = LoraStrength(0.0, 0.0, parse_block_weights(",".join(["0.4"] * 12)))
    with pytest.raises(AdapterError, match="name no weight for block OUT09"):
        strength.of("lora_unet_output_blocks_9_1_proj_in")
