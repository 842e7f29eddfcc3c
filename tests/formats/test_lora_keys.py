"""Which key of a file is what, and whether two names mean one tensor."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.dialects import is_text_layer, part_of_layer
from loraloom.formats.entries import TensorInfo
from loraloom.formats.foreign import what_it_is
from loraloom.formats.lora_keys import lora_keys
from loraloom.formats.tensors import write_tensors
from loraloom.weights.identify import identify
from loraloom.weights.inspect import inspect_file

A, B = TensorInfo(torch.float16, (2, 5)), TensorInfo(torch.float16, (3, 2))


def keys_of(*pairs: tuple[str, str]) -> dict[str, TensorInfo]:
    return {key: info for down, up in pairs for key, info in ((down, A), (up, B))}


@pytest.mark.parametrize(
    ("start", "layer"),
    [
        ("unet.mid.attn1.processor.to_out_lora", "unet.mid.attn1.to_out.0"),
        ("text_encoder.layers.0.self_attn.to_q_lora", "text_encoder.layers.0.self_attn.q_proj"),
        ("text_encoder.layers.0.mlp.fc1.lora_linear_layer", "text_encoder.layers.0.mlp.fc1"),
        ("unet.mid.ff.net.2.lora", "unet.mid.ff.net.2"),
    ],
)
def test_an_alpha_belongs_to_the_layer_of_its_factors(start: str, layer: str) -> None:
    """``.alpha`` ends keys of two dialects of diffusers: the one that knows more of the key has it."""
    alpha = f"{start.removesuffix('.lora')}.alpha"
    infos = keys_of((f"{start}.down.weight", f"{start}.up.weight")) | {alpha: TensorInfo(torch.float16, ())}
    found = lora_keys(infos, {})
    assert found is not None
    assert found.problem is None
    assert found.layers == {layer: {"down": f"{start}.down.weight", "up": f"{start}.up.weight", "alpha": alpha}}


@pytest.mark.parametrize(
    ("start", "layer"),
    [
        ("unet.mid.a.lora_{}.default.weight", "unet.mid.a"),
        ("unet.mid.a.lora_{}.default_0.weight", "unet.mid.a"),
        ("unet.mid.a.lora_{}.my style-2.weight", "unet.mid.a"),
        ("unet.mid.a.lora_{}.weight.weight", "unet.mid.a"),
        ("unet.base_model.model.mid.a.lora_{}.weight", "unet.mid.a"),
        ("unet.base_model.model.base_model.model.mid.a.lora_{}.x.weight", "unet.mid.a"),
        ("text_encoder_2.module.mid.a.lora_{}.weight", "text_encoder_2.mid.a"),
        ("base_model.model.mid_block.a.lora_{}.x.weight", "base_model.model.mid_block.a"),
        ("diffusion_model.middle_block.1.a.lora_{}.weight", "diffusion_model.middle_block.1.a"),
        ("unet._orig_mod.mid.a.lora_{}.weight", "unet.mid.a"),
        ("text_encoder.module._orig_mod.mid.a.lora_{}.x.weight", "text_encoder.mid.a"),
        ("lora_unet_mid_a.lora_{}.weight", "lora_unet_mid_a"),
        ("lora_te2_mid_a.lora_{}.weight", "lora_te2_mid_a"),
    ],
)
def test_names_of_adapters_and_wrappers(start: str, layer: str) -> None:
    down, up = start.format("A"), start.format("B")
    found = lora_keys(keys_of((down, up)), {})
    assert found is not None and found.problem is None
    assert found.layers == {layer: {"down": down, "up": up}}


@pytest.mark.parametrize("layer", ["unet.mid_block.a", "text_encoder.mid.a", "base_model.model.up_blocks.0.a"])
def test_factors_of_kohya_behind_the_layers_of_diffusers(layer: str) -> None:
    """ComfyUI reads every pair of the two."""
    down, up, alpha = (f"{layer}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    found = lora_keys(keys_of((down, up)) | {alpha: TensorInfo(torch.float32, ())}, {})
    assert found is not None and found.problem is None
    assert found.layers == {layer: {"down": down, "up": up, "alpha": alpha}}


@pytest.mark.parametrize(("more", "kind"), [("unet.a.lora_E", "AdaLoRA"), ("unet.a.lora_B.bias", "LoRA with biases")])
def test_kinds_of_peft_that_are_refused_by_name(more: str, kind: str) -> None:
    infos = keys_of(("unet.a.lora_A.weight", "unet.a.lora_B.weight")) | {more: TensorInfo(torch.float32, (2, 1))}
    found = lora_keys(infos, {})
    assert found is not None and found.problem is not None
    assert f"holds {kind} layers ({more})" in found.problem


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("text_encoders.clip_h.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2"),
        ("text_encoder_2.encoder.layers.0.mlp.fc1", "text_encoder_2"),
        ("base_model.model.text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("base_model.model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("base_model.model.mid_block.attentions.0.proj_in", "unet"),
        ("base_model.model.time_embedding.linear_1", "unet"),
        ("lycoris_text_model_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("lycoris_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("lycoris_down_blocks_0_attentions_0_proj_in", "unet"),
        ("lycoris_conv_in", "unet"),
        ("diffusion_model.input_blocks.1.1.proj_in", "unet"),
        ("up_blocks.1.attentions.0.proj_in", "unet"),
        ("transformer.single_blocks.0.linear1", ""),
    ],
)
def test_the_part_of_a_layer(name: str, part: str) -> None:
    """One answer for the weights of the two parts, the families, and what ``inspect`` counts."""
    assert part_of_layer(name) == part
    assert is_text_layer(name) == part.startswith("text")


@pytest.mark.parametrize(
    "layer", ["lycoris_te_text_model_encoder_layers_0_mlp_fc1", "base_model.model.model.diffusion_model.out.2"]
)
def test_inspect_names_layers_of_no_known_model(layer: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    infos = keys_of(*((f"{name}.lora_A.weight", f"{name}.lora_B.weight") for name in (layer, "unet.mid_block.a")))
    write_tensors(path, {key: torch.ones(info.shape, dtype=info.dtype) for key, info in infos.items()})
    told = inspect_file(path).facts["no such layers"]
    assert told.startswith(f"1 of 2 layers have names that are in no model which is known here, the first is '{layer}'")


def test_products_with_a_name() -> None:
    shapes = {"w1_a": (3, 2), "w1_b": (2, 5), "w2_a": (3, 2), "w2_b": (2, 5)}
    infos = {f"unet.mid.a.hada_{role}.my_loha": TensorInfo(torch.float32, shape) for role, shape in shapes.items()}
    found = lora_keys(infos, {})
    assert found is not None and found.problem is None
    assert set(found.layers["unet.mid.a"]) == {f"hada_{role}" for role in shapes}


@pytest.mark.parametrize(
    ("infos", "words"),
    [
        (
            keys_of(*((f"unet.a.lora_A.{name}.weight", f"unet.a.lora_B.{name}.weight") for name in ("one", "two"))),
            "holds several adapters .'one', 'two'.",
        ),
        (
            keys_of(
                ("unet.a.lora_A.weight", "unet.a.lora_B.weight"), ("unet.a.lora.down.weight", "unet.a.lora.up.weight")
            ),
            "names one tensor twice: 'unet.a.lora.(down|up).weight' and 'unet.a.lora_[AB].weight'",
        ),
        (
            keys_of(
                ("unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight"),
                ("unet.a.processor.to_q_lora.down.weight", "unet.a.processor.to_q_lora.up.weight"),
            ),
            "names one tensor twice",
        ),
        (keys_of(("lora_unet_a.lora_down.weight", "lora_unet_b.lora_up.weight")), "has no up tensor"),
    ],
)
def test_two_names_for_one_tensor(infos: dict[str, TensorInfo], words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {key: torch.ones(info.shape, dtype=info.dtype) for key, info in infos.items()})
    with pytest.raises(AdapterError, match=words):
        read_adapter_file(path)


@pytest.mark.parametrize("shape", [(), (4,), (4, 2, 1)])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_numbered_layers_that_are_no_matrices(part: str, shape: tuple[int, ...]) -> None:
    down = TensorInfo(torch.float32, (2, 4))
    infos = {f"{part}:{number}:{role}": down for number in range(144) for role in ("up", "down")}
    infos[f"{part}:7:up"] = TensorInfo(torch.float32, shape)
    found = lora_keys(infos, {})
    assert found is not None and found.problem is not None
    assert "belong to no LoRA layer" in found.problem


PIECES = (
    "lora_unet_a", "unet.a", "text_encoder.a", "diffusion_model.a", "model.diffusion_model.a", "x", "unet:0", "0", "1",
    "base_model.model.a", "bundle_emb.w", "first_stage_model.a", "lycoris_a", "transformer.a",
)  # fmt: skip
ENDS = (
    ".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora_A.x.weight", ".weight", ".alpha",
    ".hada_w1_a", ".lokr_w1", ":up", ":down", "", ".lora.up.weight", ".processor.to_q_lora.up.weight", ".diff",
    ".string_to_param.*", ".oft_blocks", ".ia3_l", "_lora.up.weight", ".dora_scale",
)  # fmt: skip


def test_inspect_the_library_and_the_reader_never_contradict_one_another(tmp_path: Path) -> None:
    """Over a thousand small files of mixed keys: who calls a file a LoRA, and who can read it."""
    draw = random.Random(7)
    path = tmp_path / "x.safetensors"
    kinds: dict[str, int] = {}
    for _ in range(1000):
        keys = {draw.choice(PIECES) + draw.choice(ENDS) for _ in range(draw.randint(1, 4))}
        write_tensors(path, {key: torch.ones(draw.choice([(2, 2), (2,), (2, 2, 1, 1)])) for key in keys})
        report = inspect_file(path)
        kinds[report.kind] = kinds.get(report.kind, 0) + 1
        assert (report.kind == "LoRA") == (identify(path).kind == "lora")
        sentence = what_it_is({key: TensorInfo(torch.float32, (2, 2)) for key in keys})
        assert (report.kind == "LoRA") == (sentence == "is a LoRA, not a checkpoint")
        if report.kind == "LoRA" and "cannot be used" not in report.facts:
            read_adapter_file(path)
            continue
        with pytest.raises(AdapterError) as caught:
            read_adapter_file(path)
        if report.kind == "LoRA":
            assert caught.value.problem == f"{path}: {report.facts['cannot be used']}"
        else:
            assert caught.value.problem == f"{path} is not a LoRA file: it {report.title}"
    assert kinds["LoRA"] > 100 and kinds["other"] > 100
