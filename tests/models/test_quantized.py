"""Weights in 8 and 4 bits: how far off, against bitsandbytes, in the layers, moved, saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from loraloom.events import Event, Notice
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.layers import Conv2d, Linear
from loraloom.models.loaded import load_model
from loraloom.models.quantized import QuantizedWeight, quantizable
from loraloom.models.saving import save_checkpoint
from toys import toy_tensors

CPU = torch.device("cpu")
METHODS = pytest.mark.parametrize("method", ["int8", "nf4"])


def normal_weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.02


def test_int8_is_off_by_at_most_half_a_step_of_its_row() -> None:
    weight = normal_weight(40, 300)
    weight[3] = 0
    quantized = QuantizedWeight.quantize(weight, "int8")
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((quantized.dequantize() - weight).abs() <= 0.5001 * step + 1e-12).all())
    assert quantized.stored_bytes == 40 * 300 + 40 * 4


def test_nf4_is_bit_for_bit_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = normal_weight(96, 64 * 5)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = QuantizedWeight.quantize(weight, "nf4")
    assert torch.equal(ours.codes, codes.flatten())
    assert torch.equal(ours.dequantize(), functional.dequantize_4bit(codes, state))
    assert ours.stored_bytes == weight.numel() // 2 + weight.numel() // 64 * 4


@METHODS
@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 3, 3), (64, 64)])
def test_any_shape_comes_back(method: str, shape: tuple[int, ...]) -> None:
    weight = normal_weight(*shape)
    dense = QuantizedWeight.quantize(weight, method).dequantize(torch.float64)
    assert dense.shape == weight.shape
    assert dense.dtype == torch.float64
    assert float((dense - weight).norm() / weight.norm()) < {"int8": 0.01, "nf4": 0.12}[method]


@METHODS
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_layers_compute_with_the_dense_values(method: str, stored: torch.dtype) -> None:
    linear, convolution = Linear(64, 96).to(stored), Conv2d(16, 32, 3, padding=1).to(stored)
    for layer, x in ((linear, torch.randn(3, 64)), (convolution, torch.randn(2, 16, 5, 5))):
        quantized = QuantizedWeight.quantize(layer.weight, method)
        results = []
        for weight in (quantized, quantized.dequantize(x.dtype)):
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias.requires_grad_(False)
            given = x.clone().requires_grad_(True)
            output = layer(given)
            output.square().sum().backward()
            results.append((output.detach(), given.grad))
        torch.testing.assert_close(results[0], results[1])


@METHODS
def test_it_stays_quantized_when_moved_and_is_dense_in_any_other_operation(method: str) -> None:
    weight = QuantizedWeight.quantize(normal_weight(64, 64), method)
    parameter = nn.Parameter(weight, requires_grad=False)
    assert isinstance(parameter, QuantizedWeight)
    moved = parameter.detach().to("meta")
    assert isinstance(moved, QuantizedWeight)
    assert moved.codes.device.type == "meta"
    assert type(parameter[:3]) is torch.Tensor
    assert torch.equal(parameter[:3], weight.dequantize()[:3])


@METHODS
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_quantized_model_answers_nearly_the_same_and_saves_what_it_read(
    method: str, family: str, tmp_path: Path
) -> None:
    path = tmp_path / "toy.safetensors"
    write_tensors(path, toy_tensors(family))
    events: list[Event] = []
    models = [
        load_model(path, device=CPU, prediction="epsilon", quantize=quantize, listener=events.append)  # type: ignore[arg-type]
        for quantize in ("none", method)
    ]
    noisy, timestep = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        answers = [model.denoise(noisy, timestep, model.encode_text(["a cat"])) for model in models]
    error = float((answers[0] - answers[1]).norm() / answers[0].norm())
    assert 0 < error < {"int8": 0.05, "nf4": 0.5}[method]
    assert any(isinstance(event, Notice) and f"quantize={method}" in event.text for event in events)
    assert all(isinstance(models[1].unet.get_parameter(name), QuantizedWeight) for name in quantizable(models[0].unet))
    assert not any(isinstance(weight, QuantizedWeight) for weight in models[1].vae.parameters())
    save_checkpoint(models[1], tmp_path / "again.safetensors")
    first, second = open_tensors(path), open_tensors(tmp_path / "again.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
