from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from loraloom.formats.tensors import write_tensors
from loraloom.training.settings import TrainSettings
from toys import toy_tensors

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Toy checkpoint file of a family, written once a session."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def path(family: str) -> Path:
        file = folder / f"{family}.safetensors"
        if not file.exists():
            write_tensors(file, toy_tensors(family))
        return file

    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four 64 px pictures in two concept folders, two of them without a caption file."""
    colours = {"2_red": ["#d02020", "#e05050"], "1_blue": ["#2030c0", "#4060e0"]}
    for folder, shades in colours.items():
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for index, shade in enumerate(shades):
            Image.new("RGB", (64, 64), shade).save(tmp_path / "pictures" / folder / f"{index}.png")
    (tmp_path / "pictures" / "2_red" / "0.txt").write_text("a red square, bright", encoding="utf-8")
    (tmp_path / "pictures" / "2_red" / "1.txt").write_text("a pale red square", encoding="utf-8")
    return tmp_path / "pictures"


@pytest.fixture
def make_settings(tmp_path: Path, pictures: Path, checkpoints: Callable[[str], Path]) -> MakeSettings:
    """Settings of a tiny run; ``key=value`` overrides go on top."""

    def make(*overrides: str, family: str = "sd1") -> TrainSettings:
        base = [
            f"checkpoint='{checkpoints(family)}'",
            f"output='{tmp_path / 'runs'}'",
            f"dataset.folder='{pictures}'",
            "dataset.resolution=64",
            "adapter.rank=2",
            "epochs=1",
            "batch_size=2",
            "device=cpu",
            "optimizer.lr=1e-3",
        ]
        return TrainSettings.load(None, [*base, *overrides])

    return make
