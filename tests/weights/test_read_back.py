"""Saved LoRAs read by a program that is not ours: by diffusers, in a process of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.cli.words import worded
from loraloom.events import Event, Notice, WeightsSaved
from loraloom.formats.adapter_writer import write_lora
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.studio.read_back import ReadBack, read_back_now
from loraloom.weights.convert import convert_lora
from loraloom.weights.read_back import read_back
from random_loras import random_lora, targets_of

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
MakeFile = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def saved(folder: Path, family: str, *, conv: bool = False) -> Path:
    path = folder / f"{family}.safetensors"
    metadata = {"ss_base_model_version": VERSIONS[family]}
    write_tensors(path, random_lora(family, 2, conv=conv).file_tensors(), metadata=metadata)
    return path


def several_ranks(family: str) -> dict[str, dict[str, torch.Tensor]]:
    """A LoRA of every layer with ranks 2, 3 and 5 in turn, and alphas that are none of these."""
    random = torch.Generator().manual_seed(8)
    layers = {}
    for number, target in enumerate(targets_of(family)):
        rank, (out, *rest) = (3, 2, 5)[number % 3], target.shape
        layers[target.name] = {
            "down": torch.randn(rank, *rest, generator=random) * 0.1,
            "up": torch.randn(out, rank, *(1 for _ in rest[1:]), generator=random) * 0.1,
            "alpha": torch.tensor((1.0, 0.7, 4.0)[number % 3]),
        }
    return layers


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("to", ["kohya", "diffusers", "pt"])
def test_every_tensor_finds_a_layer(family: str, to: str, tmp_path: Path) -> None:
    path = saved(tmp_path, family, conv=family == "sd1")
    if to == "pt":
        stored = open_tensors(path)
        path = tmp_path / "x.pt"
        write_tensors(path, {key: stored[key].clone() for key in stored}, metadata=stored.metadata)
    if to == "diffusers":
        path = convert_lora(path, tmp_path / "d.safetensors", to="diffusers").path
    report = read_back(path)
    assert (report.used, report.problem) == (report.tensors, ""), report
    assert report.reader.startswith("diffusers ") and not report.is_broken


def test_a_layer_that_diffusers_does_not_have(tmp_path: Path) -> None:
    path = saved(tmp_path, "sd1")
    stored = open_tensors(path)
    tensors = {key: stored[key].clone() for key in stored}
    metadata = dict(stored.metadata)
    del stored
    name = "lora_unet_down_blocks_0_attentions_7_proj_in"
    tensors |= {f"{name}.lora_down.weight": torch.zeros(2, 32), f"{name}.lora_up.weight": torch.zeros(32, 2)}
    write_tensors(path, tensors, metadata=metadata)
    report = read_back(path)
    assert report.is_broken and report.used == report.tensors - 2
    assert "unet.down_blocks.0.attentions.7.proj_in" in report.problem


def test_kinds_that_no_reader_knows(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    write_tensors(tmp_path / "x.safetensors", {f"{name}.diff": torch.zeros(8, 8)})
    report = read_back(tmp_path / "x.safetensors")
    assert not report.is_broken and "diffusers does not read full difference" in report.problem


def test_beside_the_work(tmp_path: Path) -> None:
    """The process that a run starts when it saves; what it found is told."""
    heard: list[Event] = []
    paths = [saved(tmp_path, "sd1"), saved(tmp_path, "sdxl")]
    with ReadBack(heard.append) as follower:
        for path in paths:
            follower(WeightsSaved(str(path), 1, 1, False))
    told = [event.text for event in heard if isinstance(event, Notice)]
    assert len(told) == 2 and all("tensors have a layer" in text for text in told), told
    read_back_now([tmp_path / "missing.safetensors"], heard.append)
    assert isinstance(heard[-1], Notice) and "missing.safetensors was not read back" in heard[-1].text


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_layers_of_several_ranks_keep_their_strength(family: str, tmp_path: Path) -> None:
    """Block ranks, dynamic resize and LoCon: three ranks and alphas in each part."""
    layers, kohya = several_ranks(family), tmp_path / "k.safetensors"
    write_lora(kohya, layers, metadata={"ss_base_model_version": VERSIONS[family]}, dtype=torch.float32)
    written = convert_lora(kohya, tmp_path / "d.safetensors", to="diffusers")
    assert written.written.padded == (2, 5)
    report = read_back(written.path)
    assert (report.used, report.problem) == (report.tensors, "")


def test_another_strength_is_told_by_layer(tmp_path: Path) -> None:
    """As files without one rank were read by most versions of diffusers: here the alphas of the text encoder."""
    layers, path = several_ranks("sd1"), tmp_path / "k.safetensors"
    write_lora(path, layers, metadata={"ss_base_model_version": "sd_v1"}, dtype=torch.float32)
    report = read_back(path)
    assert report.used == report.tensors and report.is_broken
    told = re.search(
        r"(\d+) of (\d+) layers differently, the first: (lora_te\S+) is changed with (\S+) times", report.problem
    )
    assert told is not None and int(told[2]) == len(layers)
    assert 0 < int(told[1]) < len(layers) and float(told[4]) != pytest.approx(1)
    assert "convert --to diffusers" in worded(report.problem)


def test_one_alpha_too_much_in_a_file_of_diffusers(tmp_path: Path) -> None:
    """Its configuration, which new versions read, says another alpha than the rank."""
    path = convert_lora(saved(tmp_path, "sd1"), tmp_path / "d.safetensors", to="diffusers").path
    stored = open_tensors(path)
    tensors, metadata = {key: stored[key].clone() for key in stored}, dict(stored.metadata)
    del stored
    ends = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2"]
    encoder = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    told = {"unet.r": 2, "unet.lora_alpha": 3, "unet.target_modules": ends}
    told |= {"text_encoder.r": 2, "text_encoder.lora_alpha": 2, "text_encoder.target_modules": encoder}
    write_tensors(path, tensors, metadata={**metadata, "lora_adapter_metadata": json.dumps(told)})
    assert read_back(path).problem == ""  # both programs read it, and agree
