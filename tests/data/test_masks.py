"""Masks: found where they should be, cut as their pictures are, averaged over latent pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraloom.data.dataset import load_dataset
from loraloom.data.masks import MaskCache, load_mask
from loraloom.data.sample import Dataset, Sample
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, SettingsError


def picture(path: Path, size: tuple[int, int] = (64, 64), shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 20, 20)).save(path)


def mask(path: Path, size: tuple[int, int] = (64, 64), white: tuple[int, int, int, int] = (0, 0, 32, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, 0)
    image.paste(255, white)
    image.save(path)


def load(folder: Path, **settings: object) -> Dataset:
    return load_dataset(DatasetSettings.parse({"folder": folder / "data", "resolution": 64, **settings}))


def kinds(dataset: Dataset) -> list[str]:
    return sorted(problem.kind for problem in dataset.problems if problem.kind.startswith("mask"))


def by_name(dataset: Dataset) -> dict[str, Sample]:
    return {sample.path.name: sample for sample in dataset.samples}


def test_masks_of_a_folder(tmp_path: Path) -> None:
    for index, name in enumerate(["1_x/a.png", "1_x/b.jpg", "1_x/in/c.png", "1_x/d.png", "1_y/a.png"]):
        picture(tmp_path / "data" / name, shade=index)
    for name in ["1_x/a.png", "1_x/in/c.webp", "B.png", "1_y/a-masklabel.png", "1_x/orphan.png"]:
        mask(tmp_path / "masks" / name)
    dataset = load(tmp_path, masks="folder", mask_folder=tmp_path / "masks")
    found = {sample.name: sample.mask_path for sample in dataset.samples}
    assert {name: path and path.relative_to(tmp_path / "masks").as_posix() for name, path in found.items()} == {
        "1_x/a.png": "1_x/a.png",
        "1_x/b.jpg": "B.png",
        "1_x/in/c.png": "1_x/in/c.webp",
        "1_x/d.png": None,
        "1_y/a.png": "1_y/a-masklabel.png",
    }
    assert kinds(dataset) == ["mask-missing", "mask-orphan"]


def test_a_mask_folder_inside_the_dataset_is_no_concept(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    mask(tmp_path / "data" / "masks" / "a.png")
    dataset = load(tmp_path, masks="folder", mask_folder=tmp_path / "data" / "masks")
    assert [sample.name for sample in dataset.samples] == ["a.png"]
    assert dataset.samples[0].has_mask
    picture(tmp_path / "data" / "1_x" / "a.png")
    dataset = load(tmp_path, masks="folder", mask_folder=tmp_path / "data" / "masks")
    assert "folder-name" not in {problem.kind for problem in dataset.problems}


@pytest.mark.parametrize("name", ["a-masklabel.png", "a.mask.png", "a-MaskLabel.PNG"])
def test_masks_beside_pictures_are_never_pictures(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "data" / "1_x" / "a.png")
    picture(tmp_path / "data" / "1_x" / "a-condlabel.png")
    mask(tmp_path / "data" / "1_x" / name)
    dataset = load(tmp_path, masks="beside")
    assert sorted(by_name(dataset)) == ["a.png"]
    assert by_name(dataset)["a.png"].mask_path == tmp_path / "data" / "1_x" / name
    assert kinds(dataset) == []
    unused = load(tmp_path)
    assert not any(sample.has_mask for sample in unused.samples)
    assert kinds(unused) == ["mask-unused"]


@pytest.mark.parametrize("name", ["gone-masklabel.png", "gone.mask.png", "gone-MaskLabel.PNG"])
def test_a_mask_whose_picture_is_gone_is_not_trained_as_one(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "data" / "1_x" / "a.png")
    mask(tmp_path / "data" / "1_x" / "a.mask.png")
    mask(tmp_path / "data" / "1_x" / name)
    dataset = load(tmp_path, masks="beside")
    assert sorted(by_name(dataset)) == ["a.png"]
    (problem,) = dataset.problems[:1]
    assert (problem.severity, problem.kind, problem.path.name) == ("warning", "mask-orphan", name)
    # Where no masks are asked for, the name alone does not make it one.
    assert sorted(by_name(load(tmp_path))) == sorted(["a.png", name])


def test_a_mask_is_averaged_over_the_area_of_latent_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "1_x" / "a.png")
    mask(tmp_path / "m" / "a.png", white=(4, 0, 20, 10))
    (sample,) = load(tmp_path, masks="folder", mask_folder=tmp_path / "m").samples
    found = load_mask(sample)
    assert found.shape == (8, 8)
    assert found.dtype == torch.float32
    across = torch.tensor([0.5, 1, 0.5, 0, 0, 0, 0, 0])
    down = torch.tensor([1, 0.25, 0, 0, 0, 0, 0, 0])
    assert torch.allclose(found, down[:, None] * across, atol=1e-3)
    assert torch.equal(load_mask(sample, flipped=True), found.flip(1))
    assert torch.allclose(load_mask(sample, size=(1, 1)), torch.tensor([[160 / 4096]]), atol=1e-4)


def test_a_mask_is_cut_where_its_picture_is(tmp_path: Path) -> None:
    """The mask is the picture's own brightness, so both must show the same after any resize, crop and turn."""
    values = np.kron(np.random.default_rng(0).integers(0, 2, (9, 14)) * 255, np.ones((16, 16))).astype(np.uint8)
    image = Image.fromarray(values, "L")
    (tmp_path / "data" / "1_x").mkdir(parents=True)
    (tmp_path / "m").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").save(tmp_path / "data" / "1_x" / "a.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).resize((288, 448), Image.Resampling.NEAREST).save(
        tmp_path / "m" / "a.png"
    )
    settings: dict[str, object] = {"random_crop": True, "random_crop_zoom": 1.5, "buckets": False, "variants": 4}
    (sample,) = load(tmp_path, masks="folder", mask_folder=tmp_path / "m", **settings).samples
    from loraloom.data.cache import load_pixels

    for variant in range(4):
        pixels = load_pixels(sample, flipped=True, variant=variant).mean(0) / 2 + 0.5
        area = torch.nn.functional.avg_pool2d(pixels[None], 8)[0]
        assert (load_mask(sample, flipped=True, variant=variant) - area).abs().mean() < 0.04
    masks = [load_mask(sample, variant=variant) for variant in range(4)]
    assert len({mask.numpy().tobytes() for mask in masks}) == 4


def test_alpha_is_a_mask(tmp_path: Path) -> None:
    (tmp_path / "data" / "1_x").mkdir(parents=True)
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 64, 16))
    image.save(tmp_path / "data" / "1_x" / "a.png")
    picture(tmp_path / "data" / "1_x" / "b.png")
    dataset = load(tmp_path, masks="alpha", background="#00ff00")
    clear, solid = by_name(dataset)["a.png"], by_name(dataset)["b.png"]
    assert clear.has_mask
    assert not solid.has_mask
    assert torch.equal(load_mask(clear)[:2], torch.ones(2, 8))
    assert torch.equal(load_mask(clear)[2:], torch.zeros(6, 8))
    assert torch.equal(load_mask(solid), torch.ones(8, 8))
    assert any("not learned" in problem.problem for problem in dataset.problems if problem.kind == "alpha")
    assert not load(tmp_path).samples[0].has_mask


def test_odd_masks_are_reported(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / "data" / "1_x" / f"{name}.png", shade=ord(name))
    mask(tmp_path / "m" / "a.png", size=(64, 32))
    mask(tmp_path / "m" / "b.png", white=(0, 0, 0, 0))
    (tmp_path / "m" / "c.png").write_bytes((tmp_path / "m" / "a.png").read_bytes()[:60])
    mask(tmp_path / "m" / "d.png", size=(128, 128), white=(0, 0, 128, 128))
    dataset = load(tmp_path, masks="folder", mask_folder=tmp_path / "m")
    assert kinds(dataset) == ["mask", "mask-black", "mask-shape"]
    assert not by_name(dataset)["c.png"].has_mask
    assert float(load_mask(by_name(dataset)["a.png"]).mean()) == pytest.approx(0.5)


def test_regularization_images_need_no_masks(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "1_x" / "a.png")
    picture(tmp_path / "data" / "reg" / "1_y" / "b.png", shade=3)
    mask(tmp_path / "m" / "a.png")
    assert kinds(load(tmp_path, masks="folder", mask_folder=tmp_path / "m")) == []


def test_a_mask_folder_is_needed_and_must_exist(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "1_x" / "a.png")
    with pytest.raises(SettingsError, match="needs mask_folder"):
        load(tmp_path, masks="folder")
    with pytest.raises(DatasetError, match="does not exist"):
        load(tmp_path, masks="folder", mask_folder=tmp_path / "nothing")
    said = [problem for problem in load(tmp_path, mask_folder=tmp_path).problems if problem.kind == "settings"]
    assert "mask_folder has no effect" in said[0].problem


def test_the_cache_gives_what_was_loaded(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "1_x" / "a.png")
    mask(tmp_path / "m" / "a.png")
    (sample,) = load(tmp_path, masks="folder", mask_folder=tmp_path / "m").samples
    cache = MaskCache()
    first = cache.get(sample, flipped=True, variant=0, size=(8, 8))
    (tmp_path / "m" / "a.png").unlink()
    assert cache.get(sample, flipped=True, variant=0, size=(8, 8)) is first
    with pytest.raises(DatasetError, match=r"a\.png"):
        cache.get(sample, flipped=False, variant=0, size=(8, 8))
