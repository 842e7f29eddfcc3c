"""What a person starts is left within a piece of the work, leaves nothing half-done, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from controls import Asked, asked_to_stop_at, unfinished
from loraloom.control import Interrupted, Request
from loraloom.data.settings import DatasetSettings
from loraloom.events import Event, ImageSaved, Listener, PieceFinished, ignore
from loraloom.formats import file_hashes
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.models.family import FAMILIES
from loraloom.studio import library, read_back
from loraloom.studio.class_images import ClassImages, make_class_images
from loraloom.studio.datasets import check_dataset, preview_captions
from loraloom.studio.grids import GridResult, plan_grid, read_axis, run_grid
from loraloom.studio.images import generate_images
from random_loras import random_lora

SMALL = {"width": 32, "height": 40, "steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    write_tensors(path, FAMILIES.load("sd1")().toy(seed=2))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> DatasetSettings:
    """Seven pictures of three shapes, with captions."""
    folder = tmp_path / "data" / "1_thing"
    folder.mkdir(parents=True)
    for number in range(7):
        Image.new("RGB", (64 + 8 * (number % 3), 64), (30 * number, 9, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}", encoding="utf-8")
    return DatasetSettings(folder=folder.parent, resolution=64)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "cache_folder", lambda: tmp_path / "cache")


class StopAfter:
    """A control that pauses once, and wishes a stop as soon as so many events of a kind were heard."""

    def __init__(self, kind: type[Event], count: int) -> None:
        self.heard: list[Event] = []
        self._kind, self._count = kind, count
        self._pauses = iter([Request.PAUSE])

    def __call__(self) -> Request:
        done = sum(isinstance(event, self._kind) for event in self.heard)
        return next(self._pauses, Request.STOP if done >= self._count else Request.GO)


def test_images(checkpoint: Path, tmp_path: Path) -> None:
    settings = GenerateSettings.parse({**SMALL, "prompt": "a cat", "count": 3, "output_folder": tmp_path / "out"})
    control = StopAfter(ImageSaved, 1)
    with pytest.raises(Interrupted):
        generate_images(checkpoint, settings, listener=control.heard.append, control=control)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000-5.png"]
    assert unfinished(tmp_path) == []


def test_a_grid(checkpoint: Path, tmp_path: Path) -> None:
    axes, cells = plan_grid(checkpoint, {**SMALL, "prompt": "a cat"}, [read_axis("cfg_scale=2,3,5")])

    def paint(listener: Listener, control: StopAfter | Asked) -> GridResult:
        return run_grid(tmp_path / "grid", axes, cells, listener=listener, control=control)

    control = StopAfter(ImageSaved, 1)
    with pytest.raises(Interrupted):
        paint(control.heard.append, control)
    assert len(list((tmp_path / "grid" / "images").iterdir())) == 1
    assert not (tmp_path / "grid" / "sheet.png").exists()
    assert unfinished(tmp_path) == []
    assert paint(ignore, Asked(Request.PAUSE, Request.GO)).painted == 2
    assert (tmp_path / "grid" / "sheet.png").exists()


def test_class_images(checkpoint: Path, pictures: DatasetSettings, tmp_path: Path) -> None:
    settings = GenerateSettings.parse({**SMALL, "prompt": "a thing"})

    def paint(folder: str, listener: Listener, control: StopAfter | Asked) -> ClassImages:
        return make_class_images(
            checkpoint, pictures, settings, count=4, folder=tmp_path / folder, listener=listener, control=control
        )

    control = StopAfter(ImageSaved, 2)
    with pytest.raises(Interrupted):
        paint("left", control.heard.append, control)
    assert sorted(path.suffix for path in (tmp_path / "left").iterdir()) == [".png", ".png", ".txt", ".txt"]
    assert unfinished(tmp_path) == []
    again = paint("left", ignore, Asked(Request.GO))
    assert (again.found, again.painted) == (2, 2)
    paint("whole", ignore, Asked(Request.PAUSE, Request.GO))
    left, whole = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("left", "whole"))
    assert left == whole


def test_the_check_of_a_dataset(pictures: DatasetSettings) -> None:
    control = StopAfter(PieceFinished, 3)
    with pytest.raises(Interrupted):
        check_dataset(pictures, listener=control.heard.append, control=control)
    assert control.heard == [PieceFinished("pictures", number, 7) for number in (1, 2, 3)]
    paused = check_dataset(pictures, control=Asked(Request.PAUSE, Request.GO))
    assert paused == check_dataset(pictures)


def test_captions(pictures: DatasetSettings) -> None:
    control = StopAfter(PieceFinished, 10)
    with pytest.raises(Interrupted):
        preview_captions(pictures, listener=control.heard.append, control=control)
    assert control.heard[7:] == [PieceFinished("captions", number, 7) for number in (1, 2, 3)]
    assert preview_captions(pictures, control=Asked(Request.PAUSE, Request.GO)) == preview_captions(pictures)


@pytest.mark.parametrize("hashes", [False, True])
def test_a_scan_keeps_what_it_has_read(tmp_path: Path, hashes: bool) -> None:
    models, index = tmp_path / "models", tmp_path / "index.sqlite"
    models.mkdir()
    for seed in range(5):
        write_tensors(models / f"{seed}.safetensors", random_lora("sd1", seed, conv=False).file_tensors())
    control = StopAfter(PieceFinished, 2)
    with pytest.raises(Interrupted):
        library.scan([models], hashes=hashes, index=index, listener=control.heard.append, control=control)
    assert control.heard == [PieceFinished("files", number, 5) for number in (1, 2)]
    assert len(library.search([], index=index)) == 2
    report = library.scan([models], hashes=hashes, index=index, control=Asked(Request.PAUSE, Request.GO))
    assert (report.files, report.read, report.added) == (5, 3, 3)
    assert len(library.search([], index=index)) == 5


def test_a_reader_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "reader_installed", lambda: True)
    write_tensors(tmp_path / "a.safetensors", random_lora("sd1", 1, conv=False).file_tensors())
    heard: list[Event] = []
    with pytest.raises(Interrupted):
        read_back.read_back_now([tmp_path / "a.safetensors"], heard.append, asked_to_stop_at(3))
    assert heard == []
