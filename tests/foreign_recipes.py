"""Files of other programs that tests read as recipes, and what is asked of each of them."""

from __future__ import annotations

from pathlib import Path

from loraloom.recipes.recipe import Recipe
from loraloom.training.settings import TrainSettings

FILES = Path(__file__).parent / "data_files" / "recipes"
"""Recorded files of each program."""


def mapped(recipe: Recipe) -> dict[str, tuple[str, object]]:
    return {entry.key: (entry.path, entry.value) for entry in recipe.mapped}


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def settings_again(recipe: Recipe, tmp_path: Path, *overrides: str) -> TrainSettings:
    """Through the settings file, as a person would go."""
    path = written(tmp_path, "run.toml", recipe.to_toml())
    return TrainSettings.load(path, overrides)


def lora_with(tmp_path: Path, **metadata: str) -> Path:
    import torch

    from loraloom.formats.tensors import write_tensors

    keys = {"ss_sd_model_name": "a.ckpt", "ss_learning_rate": "3e-4", **metadata}
    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)}, metadata=keys)
    return tmp_path / "l.safetensors"
