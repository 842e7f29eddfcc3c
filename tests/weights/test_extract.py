"""A LoRA extracted from two checkpoints is the change between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.adapters.attach import read_adapters
from loraloom.errors import AdapterError, CheckpointError
from loraloom.events import Event, Notice
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.weights.extract import EXTRACTED_KEY, extract_lora
from loraloom.weights.merge import LoraWeight, merge
from random_loras import random_lora, targets_of
from toys import toy_tensors

Write = Callable[..., Path]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_known_change_is_found_again(family: str, checkpoint: Write, write_lora: Write, tmp_path: Path) -> None:
    known = random_lora(family, 1)
    tuned, output = tmp_path / "tuned.safetensors", tmp_path / "out.safetensors"
    merge(checkpoint(family), [LoraWeight(write_lora("a.safetensors", known))], tuned)
    report = extract_lora(checkpoint(family), tuned, output, rank=2, precision="float")
    found = {target.name: adapter.delta() for target, adapter in read_adapters(output, targets_of(family)).items()}
    assert len(found) == len(known)
    for target, adapter in known.items():
        delta = adapter.delta()
        assert float((found[target.name] - delta).norm() / delta.norm()) < 1e-3, target.name
    assert report.residual < 1e-3
    assert report.outside == 0.0
    record = json.loads(open_tensors(output).metadata[EXTRACTED_KEY])
    assert record["residual"] == pytest.approx(report.residual, abs=1e-6)


def test_the_residual_is_what_merging_back_leaves(checkpoint: Write, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors, noisy = toy_tensors("sd1"), {}
    changed = {target.tensor for target in targets_of("sd1") if "attn1" in target.module}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * 0.01 if name in changed else None
        noisy[name] = tensor if noise is None else tensor + noise
    tuned, output, back = (tmp_path / f"{name}.safetensors" for name in ("tuned", "lora", "back"))
    write_tensors(tuned, noisy)
    report = extract_lora(checkpoint("sd1"), tuned, output, rank=4, precision="float")
    assert {layer.name for layer in report.layers} == {t.name for t in targets_of("sd1") if t.tensor in changed}
    assert report.unchanged == len(targets_of("sd1")) - len(report.layers)
    merge(checkpoint("sd1"), [LoraWeight(output)], back)
    merged = open_tensors(back)
    left = sum(float((merged[name] - noisy[name]).norm()) ** 2 for name in changed)
    whole = sum(float((tensors[name] - noisy[name]).norm()) ** 2 for name in changed)
    assert report.residual == pytest.approx((left / whole) ** 0.5, rel=1e-3)
    adaptive = extract_lora(checkpoint("sd1"), tuned, output, rank=64, to_residual=0.5, precision="float")
    assert all(layer.residual <= 0.5 for layer in adaptive.layers)
    assert len({layer.rank for layer in adaptive.layers}) > 1
    for layer in adaptive.layers:
        name, rows = next((t.tensor, t.rows) for t in targets_of("sd1") if t.name == layer.name)
        assert rows is None
        values = torch.linalg.svdvals((noisy[name] - tensors[name]).flatten(1))
        shares = 1 - (values**2).cumsum(0) / (values**2).sum()
        assert layer.rank == int((shares > 0.25).sum()) + 1


def test_what_a_lora_cannot_hold_is_told(checkpoint: Write, tmp_path: Path) -> None:
    heard: list[Event] = []
    tensors = dict(toy_tensors("sd1"))
    for name in ("model.diffusion_model.out.0.weight", "model.diffusion_model.input_blocks.1.1.proj_in.weight"):
        tensors[name] = tensors[name] + 0.1
    write_tensors(tmp_path / "tuned.safetensors", tensors)
    report = extract_lora(
        checkpoint("sd1"), tmp_path / "tuned.safetensors", tmp_path / "out.safetensors", listener=heard.append
    )
    assert 0 < report.outside < 1
    assert any(isinstance(event, Notice) and "out.0.weight" in event.text for event in heard)


def test_pairs_that_make_no_lora(checkpoint: Write, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="is Stable Diffusion"):
        extract_lora(checkpoint("sd1"), checkpoint("sdxl"), output)
    with pytest.raises(AdapterError, match="differs from"):
        extract_lora(checkpoint("sd1"), checkpoint("sd1", suffix=".ckpt"), output)
    name = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    tensors = dict(toy_tensors("sd1"))
    write_tensors(tmp_path / "nan.safetensors", tensors | {name: tensors[name] * float("nan")})
    with pytest.raises(CheckpointError, match="NaN"):
        extract_lora(checkpoint("sd1"), tmp_path / "nan.safetensors", output)
    write_tensors(tmp_path / "huge.safetensors", tensors | {name: torch.full_like(tensors[name], 3e38)})
    with pytest.raises(CheckpointError, match=r"huge\.safetensors: the tensor .* by more than float32 can add up"):
        extract_lora(checkpoint("sd1"), tmp_path / "huge.safetensors", output)
    assert not output.exists()
