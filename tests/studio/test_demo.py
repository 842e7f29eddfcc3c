"""The README's main job, run as the command runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from loraloom.errors import OutputError
from loraloom.formats.image_info import read_parameters
from loraloom.models.checkpoint import open_checkpoint
from loraloom.studio.demo import run_demo


def test_the_whole_job(tmp_path: Path) -> None:
    said: list[str] = []
    shown: list[Path] = []
    result = run_demo(tmp_path / "demo", say=said.append, show_dataset=shown.append, epochs=1)
    assert [line[0] for line in said if line[:1].isdigit()] == ["1", "2", "3", "4", "5"]
    assert shown == [tmp_path / "demo" / "dataset"]
    assert (shown[0] / "LICENSE.md").exists()
    with safe_open(result.lora, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "openmoji"
        assert file.metadata()["ss_steps"] == "60"
    assert len(result.previews) == 4
    assert result.lora_pixel_difference > 8
    assert result.merge_pixel_difference <= 1
    assert result.merge_latent_difference < 1e-3
    assert open_checkpoint(result.merged_checkpoint).family.name == "sd1"
    for path in (result.image_without, result.image_with, result.image_merged):
        with Image.open(path) as image:
            assert image.size == (128, 128)
    parameters = read_parameters(result.image_with)
    assert parameters is not None and "<lora:openmoji-style:0.8>" in parameters


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
