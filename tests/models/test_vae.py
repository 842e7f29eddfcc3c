"""The VAE against diffusers' with the same weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from layouts import LAYOUTS, part_shapes
from loraloom.errors import CheckpointError
from loraloom.models.names import checkpoint_tensor, pairs_from_diffusers
from loraloom.models.vae import VAE


def oracle(levels: int = 4) -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
    )
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=spread)
    return model.double().eval().requires_grad_(False)


def checkpoint_of(model: AutoencoderKL) -> dict[str, Tensor]:
    tensors = model.state_dict()
    pairs = pairs_from_diffusers("vae", {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    assert {pair.diffusers for pair in pairs} == set(tensors)
    return {pair.checkpoint: checkpoint_tensor([pair], tensors.__getitem__) for pair in pairs}


def loaded(tensors: dict[str, Tensor]) -> VAE:
    with torch.device("meta"):
        vae = VAE.from_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    vae.load_state_dict(tensors, assign=True)
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize(("levels", "size"), [(4, (32, 32)), (4, (40, 24)), (2, (12, 20))])
def test_encoding_and_decoding_equal_diffusers(levels: int, size: tuple[int, int]) -> None:
    model = oracle(levels)
    vae = loaded(checkpoint_of(model))
    pixels = torch.rand(2, 3, *size, dtype=torch.float64) * 2 - 1
    mean, std = vae.encode(pixels)
    expected = model.encode(pixels).latent_dist
    assert mean.shape == (2, 4, size[0] >> (levels - 1), size[1] >> (levels - 1))
    torch.testing.assert_close(mean, expected.mean, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(std, expected.std, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(vae.decode(mean), model.decode(mean).sample, rtol=1e-11, atol=1e-11)


def test_single_precision_is_within_float_tolerance() -> None:
    model = oracle()
    vae, model = loaded(checkpoint_of(model)).float(), model.float()
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    mean, _ = vae.encode(pixels)
    expected = model.encode(pixels).latent_dist.mean
    assert (mean - expected).abs().max() < 1e-5 * expected.abs().max()
    image, their_image = vae.decode(expected), model.decode(expected).sample
    assert (image - their_image).abs().max() < 1e-5 * their_image.abs().max()


def test_attention_may_be_linear_in_the_file() -> None:
    tensors = checkpoint_of(oracle())
    matrices = {key: t.flatten(1) if ".attn_1." in key and t.ndim == 4 else t for key, t in tensors.items()}
    assert sum(matrices[key].ndim != tensors[key].ndim for key in tensors) == 8
    pixels = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    for one, other in zip(loaded(tensors).encode(pixels), loaded(matrices).encode(pixels), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("log_variance", "std"), [(100.0, 10.0), (-100.0, -15.0), (2.0, 1.0)])
def test_log_variance_is_clamped(log_variance: float, std: float) -> None:
    tensors = checkpoint_of(oracle())
    tensors["quant_conv.weight"] = torch.zeros_like(tensors["quant_conv.weight"])
    tensors["quant_conv.bias"] = torch.tensor([0.0] * 4 + [log_variance] * 4, dtype=torch.float64)
    _, found = loaded(tensors).encode(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full_like(found, std).exp())


def test_gradient_reaches_the_pixels() -> None:
    model = oracle(2)
    vae = loaded(checkpoint_of(model))
    pixels = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(vae.decode(vae.encode(pixels)[0]).sum(), pixels)
    (theirs,) = torch.autograd.grad(model.decode(model.encode(pixels).latent_dist.mean).sample.sum(), pixels)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_modules_carry_exactly_the_keys_and_shapes_of_the_real_file(layout: str) -> None:
    shapes = part_shapes(layout, "first_stage_model.")
    with torch.device("meta"):
        vae = VAE.from_shapes(shapes)
    assert {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()} == shapes


def test_a_missing_tensor_is_named() -> None:
    shapes = part_shapes("sd15", "first_stage_model.")
    shapes.pop("decoder.conv_in.weight")
    with torch.device("meta"), pytest.raises(CheckpointError) as caught:
        VAE.from_shapes(shapes)
    assert "first_stage_model.decoder.conv_in.weight" in caught.value.problem
