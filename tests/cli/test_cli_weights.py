"""``merge`` and ``inspect`` as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loraloom.formats.tensors import open_tensors

Command = Callable[..., Any]


def test_merge(command: Command, files: Path) -> None:
    output = files / "out.safetensors"
    outcome = command("merge", files / "sd1.safetensors", f"{files / 'lora-sd1.safetensors'}:0.5:0.8", "-o", output)
    assert outcome.code == 0
    assert outcome.err == ""
    applied, wrote = outcome.out.splitlines()
    count = re.search(r"(\d+) of (\d+) layers applied", applied)
    assert count
    assert count[1] == count[2]
    changed = re.search(r"out\.safetensors: (\d+) of (\d+) tensors changed", wrote)
    assert changed
    before, after = open_tensors(files / "sd1.safetensors"), open_tensors(output)
    differing = sum(not torch.equal(before[name], after[name]) for name in before)
    assert (int(changed[1]), int(changed[2])) == (differing, len(before))
    assert ":0.5:0.8" in after.metadata["modelspec.merged_from"]


def test_merge_of_several_with_a_precision_into_a_ckpt(command: Command, files: Path) -> None:
    lora = files / "lora-sd1.safetensors"
    outcome = command(
        "merge", files / "sd1.safetensors", f"{lora}:0.5", f"{lora}:0:1", "--precision", "fp16", "-o", "merged.ckpt"
    )
    assert outcome.code == 0
    tensors = torch.load("merged.ckpt", weights_only=True)["state_dict"]
    assert tensors["model.diffusion_model.out.2.weight"].dtype == torch.float16
    assert tensors["alphas_cumprod"].dtype == torch.float32


def test_a_weight_without_effect_is_told(command: Command, files: Path) -> None:
    lora = files / "lora-sd1.safetensors"
    outcome = command("merge", files / "sd1.safetensors", lora, f"{lora}:0", "-o", "merged.ckpt")
    assert outcome.code == 0
    assert "changes nothing" in outcome.err


def test_inspect(command: Command, files: Path) -> None:
    outcome = command("inspect", *(files / f"{name}.safetensors" for name in ("sd1", "lora-sd1", "vae")))
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("text-to-image checkpoint, Stable Diffusion 1", "a LoRA for", "rank", "is a VAE only", "prediction"):
        assert words in outcome.out, words


def test_inspect_prints_metadata_and_hashes_when_asked(command: Command, files: Path) -> None:
    command("merge", files / "sd1.safetensors", files / "lora-sd1.safetensors", "-o", "merged.safetensors")
    plain, told = command("inspect", "merged.safetensors"), command("inspect", "merged.safetensors", "-m", "--hash")
    assert "--metadata prints them" in plain.out
    assert "loraloom.merged = [" in told.out
    assert re.search(r"hash +[0-9a-f]{10} \(AutoV2\)", told.out)
    assert "AutoV2" not in plain.out


def test_inspect_layers_and_json(command: Command, files: Path) -> None:
    told = command("inspect", files / "lora-sd1.safetensors", "--layers")
    assert told.code == 0 and "effective rank" in told.out and "OUT11" in told.out
    data = json.loads(command("inspect", files / "lora-sd1.safetensors", "--layers", "--json", "--hash").out)
    assert data[0]["kind"] == "LoRA" and data[0]["anatomy"]["blocks"][0]["block"] == "TE"
    assert "AutoV3" in data[0]["facts"]["hash"]
