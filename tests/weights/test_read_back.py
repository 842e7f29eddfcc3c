"""Saved LoRAs read by a program that is not ours: by diffusers, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.events import Event, Notice, WeightsSaved
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.studio.read_back import ReadBack, read_back_now
from loraloom.weights.convert import convert_lora
from loraloom.weights.read_back import read_back
from random_loras import random_lora

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
MakeFile = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def saved(folder: Path, family: str, *, conv: bool = False) -> Path:
    path = folder / f"{family}.safetensors"
    metadata = {"ss_base_model_version": VERSIONS[family]}
    write_tensors(path, random_lora(family, 2, conv=conv).file_tensors(), metadata=metadata)
    return path


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
