"""Golden micro-runs: the losses of ten steps on a toy model, kept in a file, one file for each area of the trainer.

A refactor must not change them. After a change that is meant to, or a new case, write the files again with

    python tests/golden_runs.py [AREA ...]

and read the difference: only the cases that the change is about may differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from loraloom.events import StepFinished
from loraloom.formats.tensors import write_tensors
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import train
from toys import toy_tensors

__all__ = ["FOLDER", "STEPS", "areas", "cases", "expected", "losses"]

FOLDER = Path(__file__).parent / "training" / "golden"
"""``<area>.json``: {case: {"overrides": [key=value, ...], "losses": [ten floats]}}; this file writes the losses."""
STEPS = 10


@cache
def _material() -> Path:
    """A folder with the SD1 toy checkpoint and four 64 px pictures with captions; gone with the process.

    Beside the pictures: ``masks`` (of three of them), ``transparent`` and ``odd`` pictures for the area data.
    """
    folder = Path(_KEPT.name)
    write_tensors(folder / "toy.safetensors", toy_tensors("sd1"))
    (folder / "pictures" / "1_squares").mkdir(parents=True)
    for index, (colour, size) in enumerate(
        [("#d02020", (64, 64)), ("#e0a050", (64, 64)), ("#2030c0", (64, 80)), ("#30a060", (64, 64))]
    ):
        picture = Image.new("RGB", size, colour)
        picture.paste("#101010", (8 * index, 8, 8 * index + 16, 40))
        picture.save(folder / "pictures" / "1_squares" / f"{index}.png")
        text = f"a square, number {index}, black bar, {colour[1:]}"
        (folder / "pictures" / "1_squares" / f"{index}.txt").write_text(text, encoding="utf-8")
    _more_material(folder)
    return folder


def _more_material(folder: Path) -> None:
    for name in ("masks/1_squares", "transparent/1_squares", "odd/1_squares"):
        (folder / name).mkdir(parents=True)
    for index in range(3):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (8 * index, 8, 8 * index + 24, 48))
        mask.save(folder / "masks" / "1_squares" / f"{index}.png")
        picture = Image.open(folder / "pictures" / "1_squares" / f"{index}.png").resize((64, 64))
        picture.putalpha(mask)
        picture.save(folder / "transparent" / "1_squares" / f"{index}.png")
        (folder / "transparent" / "1_squares" / f"{index}.txt").write_text(f"square {index}", encoding="utf-8")
        picture.convert("RGB").crop((0, 0, 64, 40)).save(
            folder / "odd" / "1_squares" / f"0{index} {'ab'[index % 2]}_c.png"
        )
        text = f"a {{red|green}} thing, num_ber {index}\n(one:1.4) ||| two; three, four_five ||| six"
        (folder / "odd" / "1_squares" / f"0{index} {'ab'[index % 2]}_c.txt").write_text(text, encoding="utf-8")
        mask.save(folder / "odd" / "1_squares" / f"0{index} {'ab'[index % 2]}_c-masklabel.png")


_KEPT = tempfile.TemporaryDirectory(prefix="loraloom-golden-")


def losses(overrides: list[str]) -> list[float]:
    """Loss of each of ten steps of a toy run with these settings (MATERIAL stands for the material's folder)."""
    torch.set_num_threads(1)
    folder = _material()
    settings = TrainSettings.load(
        None,
        [
            f"checkpoint='{folder / 'toy.safetensors'}'",
            f"dataset.folder='{folder / 'pictures'}'",
            "dataset.resolution=64",
            "adapter.rank=2",
            f"steps={STEPS}",
            "batch_size=2",
            "device=cpu",
            "optimizer.lr=1e-3",  # more, and ten steps make another processor's rounding visible
            "saving.every_epochs=0",
            "saving.state=false",
            *(override.replace("MATERIAL", folder.as_posix()) for override in overrides),
        ],
    )
    found: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as run:
        (Path(run) / "weights").mkdir()
        (Path(run) / "previews").mkdir()
        train(
            settings,
            Path(run),
            listener=lambda event: found.append(event.loss) if isinstance(event, StepFinished) else None,
        )
    return found


def areas() -> list[str]:
    """Names of the files."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def cases(area: str) -> dict[str, list[str]]:
    """Overrides of every case of an area."""
    return {name: case["overrides"] for name, case in _read(area).items()}


def expected(area: str, case: str) -> list[float]:
    """The losses on file."""
    numbers: list[float] = _read(area)[case]["losses"]
    return numbers


def _read(area: str) -> dict[str, dict[str, list]]:  # type: ignore[type-arg]
    found: dict[str, dict[str, list]] = json.loads((FOLDER / f"{area}.json").read_text(encoding="utf-8"))  # type: ignore[type-arg]
    return found


def _write(area: str) -> None:
    rows = [
        f"  {json.dumps(name)}: {json.dumps({'overrides': overrides, 'losses': losses(overrides)})}"
        for name, overrides in cases(area).items()
    ]
    (FOLDER / f"{area}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or areas():
        _write(name)
