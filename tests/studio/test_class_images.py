from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from loraloom.cli.main import app
from loraloom.data.dataset import load_dataset
from loraloom.data.settings import DatasetSettings
from loraloom.errors import SettingsError
from loraloom.events import Event, ImageSaved, Notice
from loraloom.formats.image_info import parse_parameters, read_parameters
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.studio.class_images import ClassImages, make_class_images
from toys import toy_tensors

Make = Callable[..., ClassImages]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("class images") / "toy.safetensors"
    write_tensors(path, toy_tensors("sd1"))
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "3_ann").mkdir(parents=True)
    for index, size in enumerate([(64, 64), (64, 96), (64, 64), (64, 64), (64, 64)]):
        Image.new("RGB", size, "#405060").save(folder / "3_ann" / f"{index}.png")
        (folder / "3_ann" / f"{index}.txt").write_text(f"ann, woman, number {index}", encoding="utf-8")
    return folder


@pytest.fixture
def make(checkpoint: Path, dataset: Path) -> Make:
    def run(prompt: str, **options: object) -> ClassImages:
        settings = GenerateSettings(prompt=prompt, steps=1, cfg_scale=1, device="cpu", batch_size=2, model_hash=False)
        return make_class_images(checkpoint, DatasetSettings(folder=dataset, resolution=64), settings, **options)  # type: ignore[arg-type]

    return run


def assert_same_series(folder: Path, other: Path) -> None:
    """The same files with the same texts; of a batch of another size, pixels may be rounded otherwise."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name.endswith(".txt"):
            assert (folder / name).read_bytes() == (other / name).read_bytes()
        else:
            assert read_parameters(folder / name) == read_parameters(other / name)
            with Image.open(folder / name) as first, Image.open(other / name) as second:
                difference = np.asarray(first).astype(int) - np.asarray(second).astype(int)
            assert np.abs(difference).max() <= 2


def test_there_is_one_for_each_picture_in_its_shape_and_training_finds_them(make: Make, dataset: Path) -> None:
    result = make("photo of a woman")
    assert result == ClassImages(dataset / "regularization_images" / "1_photo of a woman", 0, 5)
    images = sorted(result.folder.glob("*.png"))
    assert [Image.open(path).size for path in images] == [(64, 64), (48, 80), (64, 64), (64, 64), (64, 64)]
    assert {path.with_suffix(".txt").read_text(encoding="utf-8") for path in images} == {"photo of a woman\n"}
    found = load_dataset(DatasetSettings(folder=dataset, resolution=64)).regularization
    assert len(found) == 5 and {sample.caption for sample in found} == {"photo of a woman"}


def test_an_interrupted_series_ends_with_the_images_of_an_uninterrupted_one(make: Make, tmp_path: Path) -> None:
    whole = make("a woman", count=7, folder=tmp_path / "whole")

    def interrupt(event: Event) -> None:
        if isinstance(event, ImageSaved) and event.done % 3 == 0:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make("a woman", count=7, folder=tmp_path / "parts", listener=interrupt)
    (tmp_path / "parts" / "00001-1.png").unlink()  # and one was lost
    last = make("a woman", count=7, folder=tmp_path / "parts")
    assert (whole.painted, last.found, last.painted) == (7, 5, 2)
    assert_same_series(whole.folder, last.folder)
    assert make("a woman", count=7, folder=tmp_path / "parts").painted == 0
    assert make("a woman", count=9, folder=tmp_path / "parts").painted == 2


def test_a_persons_own_pictures_count_and_stay(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "mine.jpg")
    before = (folder / "mine.jpg").read_bytes()
    assert make("a woman", count=3, folder=folder) == ClassImages(folder, 1, 2)
    assert (folder / "mine.jpg").read_bytes() == before


def test_filewords_are_the_captions_without_the_trigger(make: Make, tmp_path: Path) -> None:
    result = make("photo of [filewords]", folder=tmp_path / "out", trigger="ann", count=6)
    prompts = [parse_parameters(read_parameters(path) or "").prompt for path in sorted(result.folder.glob("*.png"))]
    assert prompts == [f"photo of woman, number {index % 5}" for index in range(6)]


def test_pictures_of_another_prompt_are_kept_and_said(make: Make, tmp_path: Path) -> None:
    make("a woman", count=2, folder=tmp_path / "out")
    events: list[Event] = []
    assert make("a girl", count=3, folder=tmp_path / "out", listener=events.append).painted == 1
    assert [event.text[:17] for event in events if isinstance(event, Notice)][:1] == ["2 of the pictures"]


def test_an_empty_prompt_is_refused(make: Make) -> None:
    with pytest.raises(SettingsError, match="class prompt is empty"):
        make("  ")


def test_the_command(checkpoint: Path, dataset: Path) -> None:
    arguments = ["dataset", "class-images", str(checkpoint), str(dataset), "a woman", "--count", "2"]
    result = CliRunner().invoke(app, [*arguments, "steps=1", "cfg_scale=1", "device=cpu", "dataset.resolution=64"])
    assert result.exit_code == 0, result.output
    assert "0 pictures were there, 2 painted" in result.output
