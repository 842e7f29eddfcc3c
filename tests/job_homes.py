"""Homes for tests of jobs: a few drawings, and settings of runs of the embedded base that take seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from loraloom.studio.home import Home
from loraloom.training.settings import TrainSettings

PICTURES = Path(__file__).parent / "data_files" / "embedded_base" / "openmoji"


def home_with_drawings(folder: Path) -> Home:
    """A home whose ``datasets/drawings`` holds three drawings."""
    home = Home.open(folder)
    (home.datasets / "drawings").mkdir()
    for path in sorted(PICTURES.glob("*.png"))[:3]:
        shutil.copy(path, home.datasets / "drawings" / path.name)
    return home


def run_settings(base: Path, name: str = "mystyle", *more: str) -> TrainSettings:
    """Settings of a short run on the drawings of a home."""
    given = [
        f"checkpoint='{base}'",
        "dataset.folder=datasets/drawings",
        f"name={name}",
        "device=cpu",
        "steps=6",
        "saving.every_epochs=0",
        "saving.read_back=false",
        *more,
    ]
    return TrainSettings.load(None, given)


TIMES = {"modelspec.date", "ss_session_id", "ss_training_started_at", "ss_training_finished_at"}
"""What a file says of when it was trained."""


def lora(path: Path) -> tuple[dict[str, Any], bytes]:
    """A LoRA file: its header but for the times in it, and the bytes of its tensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {name: text for name, text in header["__metadata__"].items() if name not in TIMES}
    return header, data[8 + size :]
