"""One function says which family a LoRA was made for, from widths first."""

from __future__ import annotations

import pytest
import torch

from loraloom.formats.entries import TensorInfo
from loraloom.formats.lora_family import family_name, family_of_layers
from random_loras import targets_of


def layers(*names: str, width: int = 320) -> dict[str, dict[str, TensorInfo]]:
    info = {"down": TensorInfo(torch.float16, (8, width)), "up": TensorInfo(torch.float16, (320, 8))}
    return dict.fromkeys(names, info)


SGM_SD1 = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
TEXT = "text_model_encoder_layers_3_self_attn_k_proj"


@pytest.mark.parametrize(
    ("found", "said", "family"),
    [
        (layers(SGM_SD1, width=768), {}, "sd1"),
        (layers(SGM_SD1, width=1024), {}, "sd2"),
        (layers("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v", width=2048), {}, "sdxl"),
        # the width is a fact of the tensors, whatever names and metadata say
        (layers(SGM_SD1, width=768), {"ss_base_model_version": "sdxl_base_v1-0"}, "sd1"),
        (layers(f"lora_te1_{TEXT}", SGM_SD1, width=768), {}, "sd1"),
        (layers("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", width=2048), {}, "sdxl"),
        (layers("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", width=2048), {}, "sdxl"),
        # other widths: blocks that one family alone has
        (layers("lora_unet_input_blocks_1_1_proj_in"), {}, ""),
        (layers("lora_unet_input_blocks_1_1_proj_in"), {"ss_base_model_version": "sd_v1"}, "sd1"),
        (
            layers("lora_unet_output_blocks_11_1_proj_in"),
            {"modelspec.architecture": "stable-diffusion-v2-512/lora"},
            "sd2",
        ),
        (layers("lora_unet_input_blocks_7_1_transformer_blocks_4_ff_net_2"), {}, "sdxl"),
        (layers("lora_unet_up_blocks_0_attentions_1_proj_out"), {"ss_base_model_version": "sd_v1"}, "sdxl"),
        (layers("lora_unet_input_blocks_4_1_proj_in"), {}, "sdxl"),
        (layers("lora_unet_input_blocks_4_1_proj_in"), {"ss_base_model_version": "sd_v1"}, "sd1"),
        # text encoders
        (layers(f"lora_te_{TEXT}", width=768), {}, "sd1"),
        (layers(f"lora_te_{TEXT}", width=1024), {}, "sd2"),
        (layers(f"lora_te1_{TEXT}", width=768), {}, "sdxl"),
        (layers(f"lora_te1_{TEXT}", width=768), {"ss_base_model_version": "sd_v1"}, "sd1"),
        (layers(f"lora_te2_{TEXT}", width=1280), {"ss_base_model_version": "sd_v1"}, "sdxl"),
        (
            layers("text_encoders.clip_g.transformer.text_model.encoder.layers.3.self_attn.k_proj", width=1280),
            {},
            "sdxl",
        ),
        (layers("lora_unet_down_blocks_1_attentions_0_proj_in"), {}, ""),
    ],
)
def test_widths_first(found: dict[str, dict[str, TensorInfo]], said: dict[str, str], family: str) -> None:
    assert family_name(found, said) == family


@pytest.mark.parametrize("roles", ["lora", "loha", "lokr", "full"])
def test_widths_of_every_kind(roles: str) -> None:
    shapes = {
        "lora": {"down": (4, 1024), "up": (320, 4)},
        "loha": {"hada_w1_a": (320, 4), "hada_w1_b": (4, 1024), "hada_w2_a": (320, 4), "hada_w2_b": (4, 1024)},
        "lokr": {"lokr_w1": (8, 16), "lokr_w2_a": (40, 3), "lokr_w2_b": (3, 64)},
        "full": {"diff": (320, 1024)},
    }[roles]
    info = {role: TensorInfo(torch.float16, shape) for role, shape in shapes.items()}
    assert family_of_layers({SGM_SD1: info}, {}) == "SD 2.x"


def test_sdxl_by_its_own_layers() -> None:
    """Small models have other widths; their blocks are SDXL's all the same."""
    found = layers(*(target.name for target in targets_of("sdxl")), width=48)
    assert family_name(found, {}) == "sdxl"
    assert family_of_layers(
        layers("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", width=48), {}
    ) == ("a model that reads text of width 48")
