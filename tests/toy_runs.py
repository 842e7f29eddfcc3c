"""Pictures and settings of a tiny run."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from loraloom.training.settings import TrainSettings

__all__ = ["toy_settings", "write_pictures"]


def write_pictures(folder: Path) -> Path:
    """Four 64 px pictures in two concept folders of ``folder``, two of them without a caption file."""
    colours = {"2_red": ["#d02020", "#e05050"], "1_blue": ["#2030c0", "#4060e0"]}
    for concept, shades in colours.items():
        (folder / concept).mkdir(parents=True)
        for index, shade in enumerate(shades):
            Image.new("RGB", (64, 64), shade).save(folder / concept / f"{index}.png")
    (folder / "2_red" / "0.txt").write_text("a red square, bright", encoding="utf-8")
    (folder / "2_red" / "1.txt").write_text("a pale red square", encoding="utf-8")
    return folder


def toy_settings(checkpoint: Path, pictures: Path, output: Path, *overrides: str) -> TrainSettings:
    """Settings of a tiny run; ``key=value`` overrides go on top."""
    base = [
        f"checkpoint='{checkpoint}'",
        f"output='{output}'",
        f"dataset.folder='{pictures}'",
        "dataset.resolution=64",
        "adapter.rank=2",
        "epochs=1",
        "batch_size=2",
        "device=cpu",
        "optimizer.lr=1e-3",
    ]
    return TrainSettings.load(None, [*base, *overrides])
