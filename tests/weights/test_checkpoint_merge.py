"""Merged checkpoints against plain arithmetic on all tensors at once."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.adapters.block_weights import parse_block_weights
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import CheckpointError, OutputError
from loraloom.events import Event, Notice
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.checkpoint import Checkpoint
from loraloom.models.names import is_extra, pairs_from_checkpoint
from loraloom.weights.checkpoint_merge import RECIPE_KEY, CheckpointWeight, merge_checkpoints
from loraloom.weights.extract import extract_lora
from loraloom.weights.merge import LoraWeight, merge
from random_loras import random_lora, targets_of
from toys import toy_tensors

Write = Callable[..., Path]
UNET = "model.diffusion_model."


def other(family: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point() and not is_extra(name)
        else tensor
        for name, tensor in toy_tensors(family).items()
    }


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, dict[str, Tensor]], Path]:
    def write(name: str, tensors: dict[str, Tensor]) -> Path:
        write_tensors(tmp_path / name, tensors)
        return tmp_path / name

    return write


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_weighted_sum_of_three(family: str, checkpoint: Write, written: Write, tmp_path: Path) -> None:
    a, b, c = toy_tensors(family), other(family, 1), other(family, 2)
    files = [CheckpointWeight(written("b.safetensors", b), 0.3), CheckpointWeight(written("c.ckpt", c), 0.25)]
    report = merge_checkpoints(checkpoint(family), files, tmp_path / "out.safetensors")
    found = open_tensors(tmp_path / "out.safetensors")
    assert set(found) == set(a)
    for name, tensor in a.items():
        if is_extra(name) or not tensor.is_floating_point():
            assert torch.equal(found[name], tensor), name
        else:
            wanted = 0.45 * tensor.double() + 0.3 * b[name].double() + 0.25 * c[name].double()
            torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)
    assert report.missing == report.left_out == {}
    recipe = json.loads(found.metadata[RECIPE_KEY])
    assert (recipe["way"], [each["weight"] for each in recipe["others"]]) == ("weighted sum", [0.3, 0.25])


def test_add_difference_in_half_precision(checkpoint: Write, written: Write, tmp_path: Path) -> None:
    a, b, c = toy_tensors("sd1"), other("sd1", 1), other("sd1", 2)
    merge_checkpoints(
        checkpoint("sd1"),
        [CheckpointWeight(written("b.safetensors", b), 0.8)],
        tmp_path / "out.ckpt",
        difference=written("c.safetensors", c),
        precision="fp16",
    )
    found = open_tensors(tmp_path / "out.ckpt")
    for name, tensor in a.items():
        if not is_extra(name) and tensor.is_floating_point():
            wanted = (tensor.double() + 0.8 * (b[name].double() - c[name].double())).half()
            assert found[name].dtype == torch.float16
            torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-4)


def _in_diffusers_names(vae: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pairs = pairs_from_checkpoint("vae", {name: tuple(tensor.shape) for name, tensor in vae.items()})
    return {pair.diffusers: vae[pair.checkpoint] for pair in pairs}


@pytest.mark.parametrize("diffusers_names", [False, True])
def test_block_weights_and_another_vae(
    checkpoint: Write, written: Write, tmp_path: Path, diffusers_names: bool
) -> None:
    a, b = toy_tensors("sd1"), other("sd1", 1)
    vae = {name.removeprefix("first_stage_model."): t for name, t in other("sd1", 5).items() if "first_stage" in name}
    merge_checkpoints(
        checkpoint("sd1"),
        [CheckpointWeight(written("b.safetensors", b), 1.0)],
        tmp_path / "out.safetensors",
        blocks=parse_block_weights("BASE=0,IN01=0.5"),
        vae=written("vae.safetensors", _in_diffusers_names(vae) if diffusers_names else vae),
    )
    found = open_tensors(tmp_path / "out.safetensors")
    for name, tensor in found.items():
        if is_extra(name) or not tensor.is_floating_point():
            continue
        if name.startswith("first_stage_model."):
            assert torch.equal(tensor, vae[name.removeprefix("first_stage_model.")])
            continue
        inside = name.startswith(tuple(UNET + part for part in ("input_blocks.", "middle_block.", "output_blocks.")))
        share = 0.5 if name.startswith(f"{UNET}input_blocks.1.") else float(inside)
        torch.testing.assert_close(tensor, a[name] + share * (b[name] - a[name]), rtol=1e-5, atol=1e-6)


def test_an_inpainting_model_keeps_its_extra_channels(written: Write, checkpoint: Write, tmp_path: Path) -> None:
    name = f"{UNET}input_blocks.0.0.weight"
    wide = dict(toy_tensors("sd1"))
    wide[name] = torch.cat([wide[name], torch.ones(wide[name].shape[0], 5, 3, 3)], dim=1)
    b = other("sd1", 1)
    first, second = written("inpaint.safetensors", wide), written("b.safetensors", b)
    merge_checkpoints(first, [CheckpointWeight(second, 0.5)], tmp_path / "out.safetensors")
    found = open_tensors(tmp_path / "out.safetensors")[name]
    torch.testing.assert_close(found[:, :4], (wide[name][:, :4] + b[name]) / 2)
    assert torch.equal(found[:, 4:], wide[name][:, 4:])
    with pytest.raises(CheckpointError, match="inpainting"):
        merge_checkpoints(second, [CheckpointWeight(first, 0.5)], tmp_path / "no.safetensors")


def test_names_that_differ_are_told(written: Write, checkpoint: Write, tmp_path: Path) -> None:
    b = other("sd1", 1)
    gone = next(name for name in b if name.startswith("first_stage_model.encoder"))
    del b[gone]
    b["model.more"] = torch.ones(2)
    heard: list[Event] = []
    path = written("b.safetensors", b)
    report = merge_checkpoints(
        checkpoint("sd1"), [CheckpointWeight(path, 0.5)], tmp_path / "out.safetensors", listener=heard.append
    )
    assert report.missing == {str(path): (gone,)}
    assert report.left_out == {str(path): ("model.more",)}
    assert len([event for event in heard if isinstance(event, Notice)]) == 2
    assert torch.equal(open_tensors(tmp_path / "out.safetensors")[gone], toy_tensors("sd1")[gone])


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool], ids=str)
def test_weights_of_whole_numbers_are_refused_by_every_tool(
    dtype: torch.dtype, written: Write, checkpoint: Write, write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """Another program quantized them, and only it knows their scales."""
    name = next(t.tensor for t in targets_of("sd1") if t.name.endswith("attn1_to_q"))
    odd = written("odd.safetensors", {**toy_tensors("sd1"), name: toy_tensors("sd1")[name].to(dtype)})
    sound, output = checkpoint("sd1"), tmp_path / "out.safetensors"
    lora = write_lora("lora.safetensors", random_lora("sd1", 4))
    for run in (
        lambda: merge(odd, [LoraWeight(lora, LoraStrength(0.3, 0.3))], output),
        lambda: merge_checkpoints(odd, [CheckpointWeight(sound, 0.3)], output),
        lambda: merge_checkpoints(sound, [CheckpointWeight(odd, 0.3)], output),
        lambda: extract_lora(sound, odd, output, rank=3),
        lambda: extract_lora(odd, sound, output, rank=3),
    ):
        with pytest.raises(CheckpointError, match=rf"odd\.safetensors: the tensor {re.escape(name)} holds"):
            run()
        assert not output.exists()


def test_what_cannot_be_merged(written: Write, checkpoint: Write, tmp_path: Path) -> None:
    first, output = checkpoint("sd1"), tmp_path / "out.safetensors"
    name = f"{UNET}out.2.weight"
    nan = written("nan.safetensors", {**toy_tensors("sd1"), name: toy_tensors("sd1")[name] * float("nan")})
    with pytest.raises(CheckpointError, match=rf"nan\.safetensors: the tensor {re.escape(name)} .*NaN"):
        merge_checkpoints(first, [CheckpointWeight(nan, 0.5)], output)
    heard: list[Event] = []
    parts = parse_block_weights("BASE=0")
    unchanged = CheckpointWeight(first, 0.3)
    merge_checkpoints(nan, [unchanged], tmp_path / "kept.safetensors", blocks=parts, listener=heard.append)
    assert any(isinstance(event, Notice) and name in event.text for event in heard)
    with pytest.raises(CheckpointError, match="one family"):
        merge_checkpoints(first, [CheckpointWeight(checkpoint("sdxl"), 0.5)], output)
    with pytest.raises(CheckpointError, match="nothing would change"):
        merge_checkpoints(first, [CheckpointWeight(first, 0.0)], output)
    with pytest.raises(OutputError, match="one of the inputs"):
        merge_checkpoints(first, [CheckpointWeight(nan, 0.5)], nan)
    assert not output.exists()


def test_one_tensor_at_a_time(
    monkeypatch: pytest.MonkeyPatch, written: Write, checkpoint: Write, tmp_path: Path
) -> None:
    """Of the tensors handed out, at most those of one sum are alive at any time."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    get = Checkpoint.__getitem__

    def counted(self: Checkpoint, name: str) -> Tensor:
        nonlocal most
        tensor = get(self, name).clone()
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    second = written("b.safetensors", other("sd1", 1))
    monkeypatch.setattr(Checkpoint, "__getitem__", counted)
    gc.collect()
    merge_checkpoints(checkpoint("sd1"), [CheckpointWeight(second, 0.5)], tmp_path / "out.safetensors")
    assert most <= 4
