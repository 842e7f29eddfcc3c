from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraloom.training.settings import TrainSettings

MakeSettings = Callable[..., TrainSettings]


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
