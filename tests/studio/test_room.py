"""A disk that takes nothing is found out before the work, by every command that writes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import OutputError
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.studio import weights
from loraloom.studio.demo import run_demo
from loraloom.studio.grids import plan_grid, read_axis, run_grid
from loraloom.studio.images import generate_images, pictures_need
from random_loras import random_lora
from toys import toy_tensors

Work = Callable[[Path], object]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_tensors(folder / "base.safetensors", toy_tensors("sd1"))
    write_tensors(folder / "lora.safetensors", random_lora("sd1", conv=False).file_tensors())
    return folder


def extract(folder: Path) -> object:
    base, options = folder / "base.safetensors", {"conv_rank": None, "to_residual": None, "min_difference": 0.0}
    return weights.extract_lora(base, base, folder / "out.safetensors", rank=3, precision="fp16", **options)


def grid(folder: Path) -> object:
    axes, cells = plan_grid(folder / "base.safetensors", {"prompt": "a cat"}, [read_axis("steps=3,5,7")])
    return run_grid(folder / "grid", axes, cells)


def lora(folder: Path) -> Path:
    return folder / "lora.safetensors"


WORKS: dict[str, tuple[Work, str]] = {
    "generate": (
        lambda folder: generate_images(folder / "base.safetensors", GenerateSettings(output_folder=folder)),
        "loraloom.studio.painter._load",
    ),
    "grid": (grid, "loraloom.studio.painter._load"),
    "demo": (lambda folder: run_demo(folder / "demo"), "loraloom.studio.demo.job.make_checkpoint"),
    "extract": (extract, "loraloom.weights.extract.extract_lora"),
    "resize": (
        lambda folder: weights.resize_lora(lora(folder), folder / "out.safetensors", rank=2),
        "loraloom.weights.resize.resize_lora",
    ),
    "convert": (
        lambda folder: weights.convert_lora(lora(folder), folder / "out.safetensors"),
        "loraloom.weights.convert.convert_lora",
    ),
    "combine": (
        lambda folder: weights.merge_files(None, [weights.weighted_lora(lora(folder))] * 2, folder / "out.safetensors"),
        "loraloom.weights.combine.combine_loras",
    ),
    "merge": (
        lambda folder: weights.merge_loras(
            folder / "base.safetensors", [weights.weighted_lora(lora(folder))], folder / "out.ckpt"
        ),
        "loraloom.weights.merge.merge",
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_read_only_disk_is_found_out_first(name: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> AbstractContextManager[Path]:
        raise OSError(errno.EROFS, "Read-only file system")

    def begun(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the work was begun")

    work, first = WORKS[name]
    before = sorted(inputs.iterdir())
    monkeypatch.setattr("loraloom.formats.room.unfinished_file", refuse)
    monkeypatch.setattr(first, begun)
    with pytest.raises(OutputError, match="the disk is mounted read-only"):
        work(inputs)
    assert sorted(inputs.iterdir()) == before


def test_how_much_pictures_take(tmp_path: Path) -> None:
    one = GenerateSettings(width=512, height=768, count=5)
    assert pictures_need(tmp_path, [one]).nbytes == 5 * 589_824
    larger = one.model_copy(update={"hires_scale": 1.5})
    assert pictures_need(tmp_path, [larger]).nbytes == 5 * 1_327_104
