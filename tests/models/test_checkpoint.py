"""Opening checkpoints: what is recognised, and what an error says about everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import CheckpointError, FileFormatError, MissingFileError
from loraloom.formats.tensors import TensorInfo, write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import Family
from loraloom.models.loaded import load_model
from toys import toy_tensors

CPU = torch.device("cpu")


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    write_tensors(path, tensors)
    return path


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_checkpoint_is_a_lazy_mapping(family: Family, tmp_path: Path, suffix: str) -> None:
    toy = toy_tensors(family.name)
    checkpoint = open_checkpoint(save(tmp_path / f"model{suffix}", toy))
    assert checkpoint.family.name == family.name
    assert set(checkpoint) == set(toy)
    assert len(checkpoint) == len(toy)
    assert checkpoint.infos == {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in toy.items()}
    assert all(torch.equal(checkpoint[name], toy[name]) for name in toy)
    assert (checkpoint.input_channels, checkpoint.purpose) == (4, "a text-to-image checkpoint")
    assert not checkpoint.is_folder


def test_the_kind_of_file_is_told_by_content(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", toy_tensors("sd1"))
    renamed = path.rename(tmp_path / "model.ckpt")
    assert open_checkpoint(renamed).family.name == "sd1"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (named("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"), "is a LoRA"),
        (named("unet.down_blocks.0.attn1.to_q.lora_A.weight"), "is a LoRA"),
        (named("0", "1", "2", "3"), "is a LoRA, not a checkpoint"),
        (named("emb_params"), "textual inversion"),
        (named("clip_l", "clip_g"), "textual inversion"),
        (named("control_model.input_blocks.0.0.weight"), "ControlNet"),
        (named("first_stage_model.decoder.conv_in.weight"), "is a VAE only"),
        (named("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"), "is a VAE only"),
        (named("text_model.embeddings.token_embedding.weight"), "text encoder only"),
        (named("cond_stage_model.transformer.text_model.final_layer_norm.weight"), "text encoder only"),
        (named("model.diffusion_model.input_blocks.0.0.weight"), "no text encoder"),
        (named("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "is a U-Net only"),
        (named("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"), "Stable Diffusion 3"),
        (named("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), "Flux"),
        (named("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "Flux"),
        (
            named("model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.0.model.ln_final.weight"),
            "SDXL refiner",
        ),
        (named("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "upscaler"),
        (named("whatever.weight"), "not a known kind of model (1 tensors, the first is 'whatever.weight')"),
    ],
)
def test_errors_say_what_the_file_is(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    path = save(tmp_path / "other.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert said in caught.value.problem
    assert str(path) in caught.value.problem
    assert "\n" not in caught.value.problem
    assert caught.value.hint


def test_missing_file_and_folder_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        open_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(MissingFileError, match="not a Diffusers folder"):
        open_checkpoint(tmp_path)


def test_a_folder_of_another_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a FluxPipeline"):
        open_checkpoint(tmp_path)


def test_truncated_file(toy_file: Callable[[str], Path], tmp_path: Path) -> None:
    data = toy_file("sd1").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileFormatError):
        open_checkpoint(tmp_path / "cut.safetensors")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    toy = {key: tensor for key, tensor in toy_tensors("sd1").items() if key != name}
    with pytest.raises(CheckpointError, match=r"middle_block\.1\.transformer_blocks\.0\.attn1\.to_q"):
        load_model(save(tmp_path / "model.safetensors", toy), device=CPU)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.0.in_layers.2.bias"
    toy = toy_tensors("sd1") | {name: torch.zeros(7)}
    with pytest.raises(CheckpointError, match=r"middle_block\.0\.in_layers\.2\.bias"):
        load_model(save(tmp_path / "model.safetensors", toy), device=CPU)


def test_without_a_vae_it_opens_but_does_not_load(tmp_path: Path) -> None:
    toy = {key: tensor for key, tensor in toy_tensors("sd1").items() if not key.startswith("first_stage_model.")}
    checkpoint = open_checkpoint(save(tmp_path / "model.safetensors", toy))
    assert checkpoint.family.adapter_targets(checkpoint.infos)
    with pytest.raises(CheckpointError, match="holds no VAE"):
        load_model(checkpoint, device=CPU)


def test_inpainting_checkpoints_open_and_refuse_to_denoise(tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    toy = toy_tensors("sd2") | {name: torch.randn(32, 9, 3, 3)}
    model = load_model(save(tmp_path / "model.safetensors", toy), device=CPU)
    assert model.checkpoint.purpose == "an inpainting checkpoint"
    assert model.targets
    with pytest.raises(CheckpointError, match="is an inpainting checkpoint"):
        model.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([1]), model.encode_text([""]))
