"""Names of the real layouts and of small models: one to one, reversible, nothing left over, kohya's names exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from layouts import LAYOUTS, part_shapes, read_layout
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.models.names import (
    Pair,
    PartKind,
    checkpoint_shape,
    checkpoint_tensor,
    is_extra,
    pairs_from_checkpoint,
    pairs_from_diffusers,
)
from loraloom.models.targets import clip_targets, open_clip_targets, unet_targets

Shapes = dict[str, tuple[int, ...]]

PARTS: dict[str, dict[str, PartKind]] = {
    "sd15": {
        "model.diffusion_model.": "unet",
        "first_stage_model.": "vae",
        "cond_stage_model.transformer.text_model.": "clip",
    },
    "sd21": {
        "model.diffusion_model.": "unet",
        "first_stage_model.": "vae",
        "cond_stage_model.model.": "open_clip",
    },
    "sdxl": {
        "model.diffusion_model.": "unet",
        "first_stage_model.": "vae",
        "conditioner.embedders.0.transformer.text_model.": "clip",
        "conditioner.embedders.1.model.": "open_clip",
    },
}
EXTRAS = {"sd15": 13, "sd21": 13, "sdxl": 2}
FULL_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_SIZES: dict[str, tuple[int, int, int, int]] = {  # width, hidden, layers, projection
    "conditioner.embedders.1.model.": (1280, 5120, 32, 1280),
    "cond_stage_model.model.": (1024, 4096, 24, 1024),
    "cond_stage_model.transformer.text_model.": (768, 3072, 12, 768),
}

ALL_PARTS = [(layout, prefix, kind) for layout, parts in PARTS.items() for prefix, kind in parts.items()]


def diffusers_shapes(pairs: Sequence[Pair], shapes: Shapes) -> Shapes:
    return {pair.diffusers: pair.diffusers_shape(shapes[pair.checkpoint]) for pair in pairs}


def module_shapes(module: torch.nn.Module) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_of_a_real_file_belongs_to_one_part_or_is_a_known_extra(layout: str) -> None:
    named: list[str] = []
    for prefix, kind in PARTS[layout].items():
        shapes = part_shapes(layout, prefix)
        named += [prefix + key for key in {pair.checkpoint for pair in pairs_from_checkpoint(kind, shapes)}]
    assert len(named) == len(set(named))
    left = set(read_layout(layout)) - set(named)
    assert len(left) == EXTRAS[layout]
    assert all(is_extra(key) for key in left)
    assert not any(is_extra(key) for key in named)


@pytest.mark.parametrize(("layout", "prefix", "kind"), ALL_PARTS)
def test_diffusers_names_are_reversible(layout: str, prefix: str, kind: PartKind) -> None:
    shapes = part_shapes(layout, prefix)
    pairs = pairs_from_checkpoint(kind, shapes)
    theirs = diffusers_shapes(pairs, shapes)
    assert len(theirs) == len(pairs)
    back = pairs_from_diffusers(kind, theirs)
    assert set(back) == set(pairs)
    for key in {pair.checkpoint for pair in back}:
        assert checkpoint_shape([pair for pair in back if pair.checkpoint == key], theirs) == shapes[key]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unet_names_and_shapes_are_those_of_diffusers(layout: str) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(**FULL_UNETS[layout])
    shapes = part_shapes(layout, "model.diffusion_model.")
    assert diffusers_shapes(pairs_from_checkpoint("unet", shapes), shapes) == module_shapes(model)


def test_vae_names_and_shapes_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        model = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    shapes = part_shapes("sd15", "first_stage_model.")
    assert diffusers_shapes(pairs_from_checkpoint("vae", shapes), shapes) == module_shapes(model)


def test_vae_names_of_older_diffusers_are_read() -> None:
    shapes = part_shapes("sd15", "first_stage_model.")
    pairs = pairs_from_checkpoint("vae", shapes)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(key: str) -> str:
        return next((key.replace(f".{new}.", f".{old}.") for new, old in older.items() if f".{new}." in key), key)

    theirs = {rename(key): shape for key, shape in diffusers_shapes(pairs, shapes).items()}
    back = pairs_from_diffusers("vae", theirs)
    assert sum("query" in pair.diffusers for pair in back) == 4
    assert {pair.checkpoint: checkpoint_shape([pair], theirs) for pair in back} == shapes


def clip_oracle(prefix: str) -> Shapes:
    width, hidden, layers, projection = CLIP_SIZES[prefix]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=projection,
    )
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    return {key: shape for key, shape in module_shapes(model).items() if not key.endswith("position_ids")}


@pytest.mark.parametrize(("layout", "prefix", "kind"), [part for part in ALL_PARTS if part[1] in CLIP_SIZES])
def test_text_encoder_names_and_shapes_are_those_of_transformers(layout: str, prefix: str, kind: PartKind) -> None:
    shapes = part_shapes(layout, prefix)
    found = diffusers_shapes(pairs_from_checkpoint(kind, shapes), shapes)
    expected = clip_oracle(prefix)
    if kind == "clip":
        expected.pop("text_projection.weight")
    assert found == expected


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_text_encoder_names_without_text_model_in_front_are_read(kind: PartKind) -> None:
    prefix = next(prefix for _, prefix, found in ALL_PARTS if found == kind)
    layout = next(layout for layout, found, _ in ALL_PARTS if found == prefix)
    shapes = part_shapes(layout, prefix)
    pairs = pairs_from_checkpoint(kind, shapes)
    bare = [pair.diffusers.removeprefix("text_model.") for pair in pairs]
    back = pairs_from_diffusers(kind, dict.fromkeys(bare, (1, 1)))
    assert sorted((p.checkpoint, p.index) for p in back) == sorted((p.checkpoint, p.index) for p in pairs)


def test_unknown_tensors_are_left_out() -> None:
    odd: Shapes = {"odd.weight": (1,), "input_blocks.x.0.weight": (1,), "down_blocks.0.odd.0.weight": (1,), "odd": ()}
    for kind in ("unet", "open_clip"):
        assert pairs_from_checkpoint(kind, odd) == []
        assert pairs_from_diffusers(kind, odd) == []


@pytest.mark.parametrize("change", ["same", "pointwise", "transposed", "rows"])
def test_tensors_change_there_and_back(change: Any) -> None:
    shape = (6, 4, 1, 1) if change == "pointwise" else (6, 4)
    tensor = torch.randn(shape)
    count = 3 if change == "rows" else 1
    pairs = [Pair("ours", f"theirs.{index}", change, index, count) for index in range(count)]
    theirs = {pair.diffusers: pair.to_diffusers(tensor) for pair in pairs}
    assert all(t.is_contiguous() for t in theirs.values())
    assert {key: tuple(t.shape) for key, t in theirs.items()} == diffusers_shapes(pairs, {"ours": shape})
    shuffled = pairs[::-1]
    assert torch.equal(checkpoint_tensor(shuffled, theirs.__getitem__), tensor)
    assert checkpoint_shape(shuffled, {key: tuple(t.shape) for key, t in theirs.items()}) == shape
    if change == "transposed":
        x = torch.randn(2, 6)
        torch.testing.assert_close(torch.nn.functional.linear(x, theirs["theirs.0"]), x @ tensor)
    if change == "rows":
        assert torch.equal(theirs["theirs.1"], tensor[2:4])


# ------------------------------------------------------------------------------------ adapter targets


def targets(layout: str, part: str) -> list[AdapterTarget]:
    if part == "unet":
        return unet_targets(part_shapes(layout, "model.diffusion_model."), sai_names=layout == "sdxl")
    if layout == "sd21":
        shapes = part_shapes(layout, "cond_stage_model.model.")
        return open_clip_targets(shapes, part=part, prefix="cond_stage_model.model.", kohya="lora_te", layers=23)
    if part == "text_encoder_2":
        prefix = "conditioner.embedders.1.model."
        return open_clip_targets(part_shapes(layout, prefix), part=part, prefix=prefix, kohya="lora_te2")
    prefix = next(prefix for prefix in PARTS[layout] if prefix.endswith("text_model."))
    kohya = "lora_te" if layout == "sd15" else "lora_te1"
    return clip_targets(part_shapes(layout, prefix), part=part, prefix=prefix, kohya=kohya)


ALL_TARGETS = [
    (layout, part)
    for layout in LAYOUTS
    for part in ("unet", "text_encoder", "text_encoder_2")
    if part != "text_encoder_2" or layout == "sdxl"
]


def parameters(found: Sequence[AdapterTarget], rank: int = 8) -> float:
    """Millions of LoRA parameters."""
    return sum(rank * (target.shape[0] + math.prod(target.shape[1:])) for target in found) / 1e6


@pytest.mark.parametrize(
    ("layout", "encoders", "unet", "extended"),
    [("sd15", 72, 192, 278), ("sd21", 138, 192, 278), ("sdxl", 264, 722, 788)],
)
def test_as_many_layers_as_kohya(layout: str, encoders: int, unet: int, extended: int) -> None:
    found = targets(layout, "unet")
    assert len(found) == extended
    assert sum(not target.extended for target in found) == unet
    parts = ["text_encoder", "text_encoder_2"] if layout == "sdxl" else ["text_encoder"]
    assert sum(len(targets(layout, part)) for part in parts) == encoders


@pytest.mark.parametrize(
    ("layout", "encoders", "unet", "extended"),
    [("sd15", 1.327, 3.391, 8.407), ("sd21", 3.391, 3.457, None), ("sdxl", 7.225, 21.279, 24.594)],
)
def test_as_many_parameters_as_kohya(layout: str, encoders: float, unet: float, extended: float | None) -> None:
    found = targets(layout, "unet")
    assert round(parameters([target for target in found if not target.extended]), 3) == unet
    if extended is not None:
        assert round(parameters(found), 3) == extended
    parts = ["text_encoder", "text_encoder_2"] if layout == "sdxl" else ["text_encoder"]
    assert round(sum(parameters(targets(layout, part)) for part in parts), 3) == encoders


@pytest.mark.parametrize(
    ("layout", "part", "module", "name", "block"),
    [
        (
            "sd15",
            "unet",
            "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            1,
        ),
        (
            "sd15",
            "unet",
            "input_blocks.8.1.transformer_blocks.0.attn2.to_out.0",
            "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_out_0",
            8,
        ),
        ("sd15", "unet", "input_blocks.3.0.op", "lora_unet_down_blocks_0_downsamplers_0_conv", 3),
        ("sd15", "unet", "input_blocks.11.0.in_layers.2", "lora_unet_down_blocks_3_resnets_1_conv1", 11),
        ("sd15", "unet", "middle_block.1.proj_in", "lora_unet_mid_block_attentions_0_proj_in", 12),
        ("sd15", "unet", "middle_block.2.out_layers.3", "lora_unet_mid_block_resnets_1_conv2", 12),
        ("sd15", "unet", "output_blocks.2.1.conv", "lora_unet_up_blocks_0_upsamplers_0_conv", 15),
        ("sd15", "unet", "output_blocks.5.2.conv", "lora_unet_up_blocks_1_upsamplers_0_conv", 18),
        ("sd15", "unet", "output_blocks.3.0.skip_connection", "lora_unet_up_blocks_1_resnets_0_conv_shortcut", 16),
        ("sd15", "unet", "output_blocks.0.0.emb_layers.1", "lora_unet_up_blocks_0_resnets_0_time_emb_proj", 13),
        (
            "sd21",
            "unet",
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj",
            "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
            24,
        ),
        (
            "sdxl",
            "unet",
            "input_blocks.4.1.transformer_blocks.1.ff.net.2",
            "lora_unet_input_blocks_4_1_transformer_blocks_1_ff_net_2",
            5,
        ),
        (
            "sdxl",
            "unet",
            "middle_block.1.transformer_blocks.9.attn2.to_v",
            "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v",
            11,
        ),
        ("sdxl", "unet", "output_blocks.5.2.conv", "lora_unet_output_blocks_5_2_conv", 18),
        ("sdxl", "unet", "output_blocks.8.0.emb_layers.1", "lora_unet_output_blocks_8_0_emb_layers_1", 21),
        (
            "sd15",
            "text_encoder",
            "encoder.layers.11.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_11_self_attn_q_proj",
            11,
        ),
        (
            "sd21",
            "text_encoder",
            "transformer.resblocks.22.attn.out_proj",
            "lora_te_text_model_encoder_layers_22_self_attn_out_proj",
            22,
        ),
        (
            "sd21",
            "text_encoder",
            "transformer.resblocks.0.attn.k",
            "lora_te_text_model_encoder_layers_0_self_attn_k_proj",
            0,
        ),
        ("sdxl", "text_encoder", "encoder.layers.3.mlp.fc1", "lora_te1_text_model_encoder_layers_3_mlp_fc1", 3),
        (
            "sdxl",
            "text_encoder_2",
            "transformer.resblocks.31.mlp.c_proj",
            "lora_te2_text_model_encoder_layers_31_mlp_fc2",
            31,
        ),
    ],
)
def test_kohya_names_and_blocks(layout: str, part: str, module: str, name: str, block: int) -> None:
    by_module = {target.module: target for target in targets(layout, part)}
    assert (by_module[module].name, by_module[module].block) == (name, block)


def test_sdxl_files_with_diffusers_names_are_accepted() -> None:
    aliases = {alias for target in targets("sdxl", "unet") for alias in target.aliases}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q" in aliases
    assert "lora_unet_up_blocks_0_attentions_2_transformer_blocks_9_ff_net_0_proj" in aliases
    assert "lora_unet_down_blocks_0_resnets_0_conv1" in aliases


@pytest.mark.parametrize(("layout", "part"), ALL_TARGETS)
def test_targets_name_tensors_and_modules_that_are_there(layout: str, part: str) -> None:
    found = targets(layout, part)
    real = read_layout(layout)
    names = [name for target in found for name in (target.name, *target.aliases)]
    assert len(names) == len(set(names))
    assert len({target.module for target in found}) == len(found)
    for target in found:
        _, shape = real[target.tensor]
        if target.rows is not None:
            start, stop = target.rows
            assert 0 <= start < stop <= shape[0]
            shape = (stop - start, *shape[1:])
        else:
            assert target.tensor.endswith(f"{target.module}.weight")
        assert shape == target.shape
        kinds = {2: "linear", 4: "conv1x1" if shape[2:] == (1, 1) else "conv3x3"}
        assert target.kind == kinds[len(shape)]
        assert target.part == part


def test_rows_of_a_fused_tensor_are_q_k_v_in_turn() -> None:
    found = {target.module: target for target in targets("sd21", "text_encoder")}
    rows = [found[f"transformer.resblocks.5.attn.{name}"].rows for name in "qkv"]
    assert rows == [(0, 1024), (1024, 2048), (2048, 3072)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_module_paths_exist(layout: str) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(**FULL_UNETS[layout])
    for target in targets(layout, "unet"):
        module = model.get_submodule(target.diffusers_name)
        assert isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        assert tuple(module.weight.shape) == target.shape


def test_default_layers_are_exactly_those_in_attention_blocks() -> None:
    for layout in LAYOUTS:
        for target in targets(layout, "unet"):
            inside = target.module.endswith(("proj_in", "proj_out")) or ".transformer_blocks." in target.module
            assert target.extended is not inside
            assert not target.module.startswith(("time_embed", "label_emb", "out.", "input_blocks.0."))
