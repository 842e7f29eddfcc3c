"""Saving a model, a checkpoint or plain tensors: same keys, same bits, in every form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.errors import CheckpointError, OutputError
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import Family
from loraloom.models.loaded import load_model
from loraloom.models.saving import save_checkpoint
from toys import toy_tensors

CPU = torch.device("cpu")
ToyFile = Callable[[str], Path]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("keep", [True, False])
def test_load_then_save_gives_the_same_keys_and_bits(family: Family, tmp_path: Path, suffix: str, keep: bool) -> None:
    toy = family.toy()  # SDXL's is fp16
    write_tensors(tmp_path / f"model{suffix}", toy, metadata={"modelspec.title": "toy"})
    model = load_model(tmp_path / f"model{suffix}", device=CPU, keep_file_precision=keep)
    save_checkpoint(model, tmp_path / f"copy{suffix}")
    copy = open_tensors(tmp_path / f"copy{suffix}")
    assert set(copy) == set(toy)
    assert all(copy[name].dtype == toy[name].dtype and torch.equal(copy[name], toy[name]) for name in toy)
    assert copy.metadata == {"modelspec.title": "toy"}


def test_from_one_form_to_the_other_and_back(family: Family, toy_file: ToyFile, tmp_path: Path) -> None:
    save_checkpoint(open_checkpoint(toy_file(family.name)), tmp_path / "model.ckpt")
    save_checkpoint(open_checkpoint(tmp_path / "model.ckpt"), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == toy_file(family.name).read_bytes()


def test_torch_reads_the_ckpt(family: Family, tmp_path: Path) -> None:
    save_checkpoint(toy_tensors(family.name), tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], tensor) for name, tensor in toy_tensors(family.name).items())


def test_conversion_leaves_tables_and_whole_numbers(tmp_path: Path, toy_file: ToyFile) -> None:
    save_checkpoint(open_checkpoint(toy_file("sd1")), tmp_path / "half.safetensors", dtype=torch.float16)
    half, toy = open_tensors(tmp_path / "half.safetensors"), toy_tensors("sd1")
    assert torch.equal(half["betas"], toy["betas"])
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert torch.equal(half[positions], toy[positions])
    weights = [name for name in toy if name.startswith(("model.", "first_", "cond_")) and name != positions]
    assert all(torch.equal(half[name], toy[name].half()) for name in weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_what_a_model_predicts_survives_saving(toy_file: ToyFile, tmp_path: Path, name: str, suffix: str) -> None:
    model = load_model(toy_file(name), device=CPU, prediction="v", zero_terminal_snr=True)
    save_checkpoint(model, tmp_path / f"v{suffix}", metadata={"other": "text"})
    again = load_model(tmp_path / f"v{suffix}", device=CPU)
    assert (again.prediction, again.schedule.zero_terminal_snr) == ("v", True)


def test_a_changed_model_is_saved_changed(toy_file: ToyFile, tmp_path: Path) -> None:
    model = load_model(toy_file("sd1"), device=CPU)
    with torch.no_grad():
        model.unet.get_parameter("out.2.bias").fill_(5.0)
    save_checkpoint(model, tmp_path / "model.safetensors")
    saved, toy = open_tensors(tmp_path / "model.safetensors"), toy_tensors("sd1")
    changed = [name for name in saved if not torch.equal(saved[name], toy[name])]
    assert changed == ["model.diffusion_model.out.2.bias"]
    assert torch.equal(open_tensors(toy_file("sd1"))[changed[0]], toy[changed[0]])


def test_bad_output(toy_file: ToyFile, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(toy_file("sd1"))
    with pytest.raises(OutputError):
        save_checkpoint(checkpoint, tmp_path / "model.txt")
    with pytest.raises(OutputError):
        save_checkpoint(checkpoint, tmp_path / "nowhere" / "folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(OutputError, match="not an empty folder"):
        save_checkpoint(checkpoint, tmp_path / "full")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
    with pytest.raises(CheckpointError):
        save_checkpoint({"some.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
