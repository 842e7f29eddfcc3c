"""``import``, ``train --import`` and ``train --like`` as they are typed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loraloom.formats.tensors import write_tensors
from loraloom.settings import setting_rows
from loraloom.training.settings import TrainSettings

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests" / "data_files" / "recipes"


def kohya(files: Path, *more: str) -> Path:
    lines = [
        f"pretrained_model_name_or_path = '{files / 'sd1.safetensors'}'",
        f"train_data_dir = '{files / 'pictures'}'",
        'resolution = "64"',
        "network_dim = 2",
        "max_train_steps = 2",
        'output_name = "red"',
        "xformers = true",
        "netwrok_alpha = 3",
        *more,
    ]
    path = files / "kohya.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_import_writes_settings_and_accounts_for_every_key(command: Command, files: Path, tmp_path: Path) -> None:
    outcome = command("import", kohya(files), "-o", tmp_path / "run.toml", "seed=5")
    assert outcome.code == 0, outcome.err
    assert "network_dim -> adapter.rank = 2" in outcome.out
    assert "xformers: not needed" in outcome.out
    assert "netwrok_alpha: not known; the nearest name is network_alpha" in outcome.out
    settings = TrainSettings.load(tmp_path / "run.toml")
    assert (settings.adapter.rank, settings.seed, settings.name) == (2, 5, "red")
    again = command("import", kohya(files), "-o", tmp_path / "run.toml")
    assert again.code == 1 and "exists already" in again.err


def test_without_a_file_the_settings_go_to_the_output_alone(command: Command, files: Path, tmp_path: Path) -> None:
    outcome = command("import", kohya(files))
    (tmp_path / "run.toml").write_text(outcome.out, encoding="utf-8")
    assert TrainSettings.load(tmp_path / "run.toml").steps == 2
    assert "not carried over" in outcome.err


def test_what_is_still_needed_is_said(command: Command) -> None:
    outcome = command("import", RECIPES / "concepts_list.json")
    assert outcome.code == 0 and "still needed: checkpoint" in outcome.err
    assert "# Required, not in that file: checkpoint" in outcome.out


def test_wrong_values_are_told_together(command: Command, files: Path) -> None:
    outcome = command("import", kohya(files, "clip_skip = 99", 'optimizer_type = "Nonsense"'))
    assert outcome.code == 1
    assert "clip_skip = 99" in outcome.err and "'Nonsense'" in outcome.err


def test_train_by_a_recipe_and_then_like_its_lora(command: Command, files: Path) -> None:
    outcome = command("train", "--import", kohya(files), f"output={files / 'runs'}", "device=cpu", "name=one")
    assert outcome.code == 0, outcome.err
    assert "xformers: not needed" in outcome.err
    assert "network_dim -> adapter.rank = 2" in outcome.err, "what was taken over too"
    lora = files / "runs" / "one" / "weights" / "one.safetensors"
    assert lora.is_file()

    refused = command("train", "--like", lora)
    assert refused.code == 1
    assert "does not say checkpoint (it was sd1.safetensors)" in refused.err
    assert "does not say dataset.folder" in refused.err
    outcome = command(
        "train", "--like", lora, f"checkpoint={files / 'sd1.safetensors'}", f"dataset.folder={files / 'pictures'}",
        f"output={files / 'runs'}", "device=cpu", "name=two", "steps=1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    settings = TrainSettings.load(files / "runs" / "two" / "settings.toml")
    assert (settings.adapter.rank, settings.dataset.resolution) == (2, 64)


def test_what_a_stranger_wrote_steers_no_terminal(command: Command, tmp_path: Path) -> None:
    evil = "\x1b]0;mine\x07\x1b[2J"
    keys = {"ss_optimizer": f"{evil}this.Thing", "ss_training_comment": f"a{evil}", f"ss_wobble{evil}": "1"}
    keys |= {"ss_sd_model_name": f"x{evil}", "ss_network_dim": f"3{evil}", "ss_lr_scheduler": f"{evil}\nno"}
    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)}, metadata=keys)
    refused = command("import", tmp_path / "l.safetensors")
    given = ("adapter.rank=3", "lr_schedule.name=linear", "checkpoint=a.ckpt", "dataset.folder=x")
    outcome = command("import", tmp_path / "l.safetensors", "-o", tmp_path / "run.toml", *given)
    assert (refused.code, outcome.code) == (1, 0), outcome.err
    assert "\x1b" not in refused.out + refused.err + outcome.out + outcome.err
    assert TrainSettings.load(tmp_path / "run.toml").saving.comment == f"a{evil}"


def test_one_file_of_settings_only(command: Command, files: Path) -> None:
    outcome = command("train", "run.toml", "--import", kohya(files))
    assert outcome.code == 1 and "settings come from one file" in outcome.err
    outcome = command("train", "--like", kohya(files))
    assert outcome.code == 1 and "is not a LoRA file" in outcome.err


def test_the_page_has_every_name() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_coming_from import PAGE, with_table
    finally:
        sys.path.pop(0)
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "run python tools/make_coming_from.py"
    rows = {row.path for row in setting_rows(TrainSettings)}
    groups = {row.partition(".")[0] for row in rows if "." in row}
    named = {name for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text) if name.partition(".")[0] in groups}
    assert len(named) > 80 and named <= rows
