"""The weight tools and the library as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from loraloom.formats.tensors import open_tensors, write_tensors

Command = Callable[..., Any]


def test_loras_into_a_lora_and_back_to_a_smaller_one(command: Command, files: Path) -> None:
    lora = files / "lora-sd1.safetensors"
    outcome = command("merge", f"{lora}:0.5", f"{lora}:0.3", "-o", "sum.safetensors", "--block-weights", "OUTALL")
    assert (outcome.code, outcome.err) == (0, "")
    assert "rank 4" in outcome.out
    small = command("merge", lora, lora, "-o", "small.safetensors", "--rank", 1)
    assert re.search(r"rank 1; left out: \d+\.\d+% of the norm", small.out)
    resized = command(
        "resize", "sum.safetensors", "-o", "r.safetensors", "--rank", 2, "--dynamic", "sv_fro", "--dynamic-param", 0.9
    )
    assert re.search(r"kept energy: \d+\.\d+%", resized.out)
    assert command("resize", lora, "-o", "x.safetensors", "--rank", 2, "--dynamic", "sv_fro").code == 1
    assert command("merge", files / "sd1.safetensors", lora, "-o", "x.safetensors", "--rank", 2).code == 1
    assert not Path("x.safetensors").exists()


def test_extract_what_was_merged(command: Command, files: Path) -> None:
    base, lora = files / "sd1.safetensors", files / "lora-sd1.safetensors"
    command("merge", base, f"{lora}:0.8", "-o", "tuned.safetensors")
    outcome = command("extract", base, "tuned.safetensors", "-o", "back.safetensors", "--rank", 2, "--layers")
    assert outcome.code == 0, outcome.err
    assert re.search(r"residual \(relative norm\): 0\.0\d%", outcome.out)
    assert "attn1_to_q: rank 2" in outcome.out
    assert command("merge", base, "back.safetensors", "-o", "again.safetensors").code == 0


def test_merge_checkpoints(command: Command, files: Path) -> None:
    base, lora = files / "sd1.safetensors", files / "lora-sd1.safetensors"
    command("merge", base, lora, "-o", "tuned.safetensors")
    outcome = command("merge-checkpoints", base, "tuned.safetensors", "-o", "half.ckpt", "--precision", "fp16")
    assert outcome.code == 0, outcome.err
    assert re.search(r"(\d+) of (\d+) tensors merged", outcome.out)
    added = command(
        "merge-checkpoints", base, "tuned.safetensors", "-o", "same.safetensors", "--difference", base, "--vae", base
    )
    assert added.code == 0, added.err
    one, two = open_tensors(Path("tuned.safetensors")), open_tensors(Path("same.safetensors"))
    assert all(float((one[name].float() - two[name].float()).abs().max()) < 1e-5 for name in one)
    failed = command("merge-checkpoints", base, files / "sdxl.safetensors", "-o", "no.safetensors")
    assert "one family" in failed.err


def test_metadata(command: Command, files: Path) -> None:
    lora = files / "lora-sd1.safetensors"
    Image.new("RGB", (64, 64), (9, 9, 9)).save("p.png")
    arguments = (
        "--set",
        "title=Ink",
        "--trigger",
        "inkd",
        "--preview",
        "p.png",
        "-o",
        "named.safetensors",
        "--sidecar",
    )
    assert command("metadata", lora, *arguments).code == 0
    assert json.loads(Path("named.json").read_text(encoding="utf-8"))["activation text"] == "inkd"
    assert Path("named.preview.png").exists()
    assert "modelspec.title = Ink" in command("metadata", "named.safetensors").out
    assert command("metadata", "named.safetensors", "--remove", "title", "--in-place").code == 0
    assert "modelspec.title" not in command("metadata", "named.safetensors").out
    assert "where should the result go" in command("metadata", lora, "--trigger", "x").err
    assert "not KEY=VALUE" in command("metadata", lora, "--set", "x", "--in-place").err


def test_what_a_file_says_of_itself_steers_no_terminal(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A title of escape characters, colours or turned text: shown as such by all that print metadata."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    said = {
        "modelspec.title": "a\x1b]0;own\x07b",
        "modelspec.trigger_phrase": "\u202egnp",
        "modelspec.description": "first\nsecond\x9b2J",
        "key\x1b[2J": "x",
    }
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    ones = {f"{layer}.lora_down.weight": torch.ones(2, 3), f"{layer}.lora_up.weight": torch.ones(5, 2)}
    path = tmp_path / "models" / "x.safetensors"
    path.parent.mkdir()
    write_tensors(path, ones, metadata=said)
    printed = [
        command("inspect", path, "--metadata").out,
        command("metadata", path).out,
        command("library", "scan", path.parent).out + command("library", "search", "x").out,
        command("library", "show", "x").out,
    ]
    for text in printed:
        assert not set(text) & set("\x1b\x07\x9b\u202e")
        assert "\\u202egnp" in text
    assert "first\nsecond\\x9b2J" in printed[1]


def test_library(command: Command, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    first, second = command("library", "scan", files), command("library", "scan", files)
    assert first.code == second.code == 0
    assert "cut.safetensors" in first.out
    assert " 0 read" in second.out
    assert "lora-sdxl.safetensors" in command("library", "search", "lora", "--family", "sdxl").out
    assert "kind: checkpoint" in command("library", "show", "sd1").out
    assert "files forgotten" in command("library", "forget", files).out
    assert command("library", "search").out.strip() == "0 found"
    assert command("library", "scan", files / "nowhere").code == 1
