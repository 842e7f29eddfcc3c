"""Autoencoders from files of their own: original and diffusers names, out of checkpoints and folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraloom.errors import CheckpointError, MissingFileError
from loraloom.formats.tensors import write_tensors
from loraloom.models.loaded import load_model
from loraloom.models.names import pairs_from_checkpoint
from loraloom.models.vae_file import read_vae, replace_vae
from toys import toy_tensors

PREFIX = "first_stage_model."


@pytest.fixture
def other() -> dict[str, torch.Tensor]:
    """The VAE of another toy, under its own names."""
    tensors = {key: value for key, value in toy_tensors("sd1").items() if key.startswith(PREFIX)}
    generator = torch.Generator().manual_seed(9)
    return {
        key.removeprefix(PREFIX): value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in tensors.items()
    }


def in_diffusers_names(vae: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for pair in pairs_from_checkpoint("vae", {key: tuple(value.shape) for key, value in vae.items()}):
        value = vae[pair.checkpoint]
        found[pair.diffusers] = value[:, :, 0, 0] if pair.change == "pointwise" else value
    return found


@pytest.mark.parametrize("form", ["original", "prefixed", "diffusers", "checkpoint", "ckpt"])
def test_every_form_gives_the_same_pictures(tmp_path: Path, other: dict[str, torch.Tensor], form: str) -> None:
    write_tensors(tmp_path / "toy.safetensors", toy_tensors("sd1"))
    path = tmp_path / ("vae.ckpt" if form == "ckpt" else "vae.safetensors")
    prefixed = {PREFIX + key: value for key, value in other.items()}
    tensors = {
        "original": other,
        "ckpt": other,
        "prefixed": prefixed,
        "diffusers": in_diffusers_names(other),
        "checkpoint": {**toy_tensors("sd1"), **prefixed},
    }[form]
    write_tensors(path, tensors)
    model = load_model(tmp_path / "toy.safetensors", device=torch.device("cpu"))
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    before = model.decode_latents(latents)
    replace_vae(model, path)
    after = model.decode_latents(latents)
    assert not torch.equal(before, after)
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_files_without_one_say_so(tmp_path: Path) -> None:
    write_tensors(tmp_path / "lora.safetensors", {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="holds no VAE"):
        read_vae(tmp_path / "lora.safetensors")
    with pytest.raises(MissingFileError):
        read_vae(tmp_path / "gone.safetensors")
