"""A zoo of odd pictures: each is used with the right pixels, or reported with the reason; none is altered."""

from __future__ import annotations

import os
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loraloom.data.cache import load_pixels
from loraloom.data.dataset import load_dataset
from loraloom.data.images import inspect_image, load_picture
from loraloom.data.sample import Dataset, Sample
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, FileError
from loraloom.formats.pictures import SUFFIXES, quiet_decoders, signature
from picture_zoo import (
    BLUE,
    GREEN,
    GREY,
    RED,
    SIZE,
    UNUSABLE,
    USABLE,
    WHITE,
    encoded,
    jpeg,
    jpeg_with,
    pages,
    png,
    png_with,
    quarters,
    tiff,
    webp_with_rest,
    with_alpha,
    zipped_text,
)


def tree_hash(folder: Path) -> str:
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path}{path.lstat().st_mtime_ns}".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("zoo") / "1_zoo"
    folder.mkdir()
    for name, (make, *_) in [*USABLE.items(), *UNUSABLE.items()]:
        (folder / name).write_bytes(make())
    before = tree_hash(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_dataset(DatasetSettings(folder=folder.parent, resolution=64))
    with quiet_decoders():
        for sample in dataset.samples:
            load_pixels(sample, flipped=False)
    assert tree_hash(folder) == before
    return folder, dataset


def sample_named(dataset: Dataset, path: Path) -> Sample:
    (sample,) = [sample for sample in dataset.samples if sample.path == path]
    return sample


def test_the_zoo_is_a_zoo() -> None:
    assert len(USABLE) >= 40
    assert len(UNUSABLE) >= 20


@pytest.mark.parametrize("name", USABLE)
def test_usable_pictures_have_the_right_pixels(zoo: tuple[Path, Dataset], name: str) -> None:
    folder, dataset = zoo
    _, colours, tolerance = USABLE[name]
    sample = sample_named(dataset, folder / name)
    with quiet_decoders():
        pixels = load_pixels(sample, flipped=False)
    width, height = sample.bucket
    assert pixels.shape == (3, height, width)
    assert pixels.dtype == torch.float32
    values = ((pixels + 1) * 127.5).round()
    for index, colour in enumerate(colours):
        x, y = width // 4 + index % 2 * (width // 2), height // 4 + index // 2 * (height // 2)
        assert (values[:, y, x] - torch.tensor(colour)).abs().max() <= tolerance, (index, values[:, y, x], colour)


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_pictures_are_reported(zoo: tuple[Path, Dataset], name: str) -> None:
    folder, dataset = zoo
    found = [problem for problem in dataset.problems if problem.path == folder / name and problem.severity == "error"]
    assert len(found) == 1
    assert UNUSABLE[name][1] in found[0].problem
    assert found[0].hint
    assert not [sample for sample in dataset.samples if sample.path == folder / name]


def test_nothing_is_lost(zoo: tuple[Path, Dataset]) -> None:
    _, dataset = zoo
    errors = [problem for problem in dataset.problems if problem.severity == "error"]
    assert len(dataset.samples) == len(USABLE)
    assert len(errors) == len(UNUSABLE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("png_inside.jpg", "suffix"),
        ("no_suffix", "suffix"),
        ("animated.png", "animated"),
        ("animated.webp", "animated"),
        ("alpha.png", "alpha"),
        ("palette_key.png", "alpha"),
        ("grey_16_key.png", "alpha"),
        ("tiny.png", "caption-missing"),
    ],
)
def test_choices_are_told(zoo: tuple[Path, Dataset], name: str, kind: str) -> None:
    folder, dataset = zoo
    assert [problem for problem in dataset.problems if problem.path == folder / name and problem.kind == kind]


def test_size_is_as_seen(zoo: tuple[Path, Dataset]) -> None:
    folder, dataset = zoo
    for number in range(1, 9):
        assert sample_named(dataset, folder / f"orientation_{number}.jpg").size == SIZE
    assert not [
        problem for problem in dataset.problems if problem.path.name == "mpo.jpg" and problem.kind == "animated"
    ]


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    folder = tmp_path / "1_cat"
    folder.mkdir()
    (folder / "good.png").write_bytes(png())
    (folder / "link.png").symlink_to(folder / "good.png")
    (folder / "dangling.png").symlink_to(folder / "absent.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe_without_suffix")
    (folder / "again").symlink_to(folder)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "._good.png").write_bytes(b"x")
    dataset = load_dataset(DatasetSettings(folder=tmp_path, resolution=64))
    assert [sample.name for sample in dataset.samples] == ["1_cat/good.png", "1_cat/link.png"]
    reported = {problem.path.name: problem.problem for problem in dataset.problems if problem.severity == "error"}
    assert set(reported) == {"dangling.png", "loop.png", "pipe.png"}
    assert "is a pipe" in reported["pipe.png"]
    assert [problem.path.name for problem in dataset.problems if problem.kind == "folder-loop"] == ["again"]


def test_background_and_flip(tmp_path: Path) -> None:
    path = tmp_path / "1_x" / "a.png"
    path.parent.mkdir()
    path.write_bytes(png(with_alpha()))
    (sample,) = load_dataset(DatasetSettings(folder=tmp_path, resolution=64, background="#204060")).samples
    plain, flipped = (load_pixels(sample, flipped=flip) for flip in (False, True))
    assert torch.equal(flipped, plain.flip(2))
    width, height = sample.bucket
    corner = ((plain[:, height * 3 // 4, width // 4] + 1) * 127.5).round()
    assert corner.tolist() == [0x20, 0x40, 0x60]


def test_entirely_transparent_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(Image.new("RGBA", SIZE, (200, 0, 0, 0))))
    dataset = load_dataset(DatasetSettings(folder=tmp_path, resolution=64))
    assert [problem.severity for problem in dataset.problems if problem.kind == "alpha"] == ["warning"]
    assert load_pixels(dataset.samples[0], flipped=False).unique().tolist() == [1.0]


def test_resizing_agrees_with_pillow_and_crops_the_centre(tmp_path: Path) -> None:
    noise = Image.effect_noise((300, 200), 80).convert("RGB")
    noise.save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", bucket=(96, 96), background=WHITE)
    reference = noise.resize((144, 96), Image.Resampling.LANCZOS).crop((24, 0, 120, 96))
    difference = np.asarray(picture, np.int16) - np.asarray(reference, np.int16)
    assert np.abs(difference).max() <= 4
    assert np.abs(difference).mean() < 0.6


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_decoded_small_look_the_same(tmp_path: Path, orientation: int) -> None:
    noise = Image.effect_noise((150, 100), 80).convert("RGB").resize((1500, 1000), Image.Resampling.BICUBIC)
    noise.save(tmp_path / "a.jpg", quality=95)
    bucket = (152, 104) if orientation == 1 else (104, 152)
    picture = load_picture(tmp_path / "a.jpg", bucket=bucket, background=WHITE, orientation=orientation)
    upright = noise if orientation == 1 else noise.transpose(Image.Transpose.ROTATE_270)
    upright.save(tmp_path / "b.png")
    reference = load_picture(tmp_path / "b.png", bucket=bucket, background=WHITE)
    difference = np.abs(np.asarray(picture, np.int16) - np.asarray(reference, np.int16))
    assert difference.mean() < 2
    assert difference.max() <= 16


def test_a_changed_file_is_not_trained(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    (sample,) = load_dataset(DatasetSettings(folder=tmp_path, resolution=64)).samples
    path.write_bytes(png(quarters((BLUE, RED, GREEN, GREY))))
    with pytest.raises(DatasetError, match=r"a\.png was changed"):
        load_pixels(sample, flipped=False)
    path.unlink()
    with pytest.raises(DatasetError, match=r"a\.png: does not exist"):
        load_pixels(sample, flipped=False)


def test_frames_and_pages_are_remarks(zoo: tuple[Path, Dataset]) -> None:
    """The first frame or page is used, and said; a still GIF and a TIFF of one page need no remark."""
    _, dataset = zoo
    found = {(problem.kind, problem.path.name, problem.severity) for problem in dataset.problems}
    assert {entry for entry in found if entry[0] in ("animated", "pages")} == {
        *(("animated", f"animated.{kind}", "info") for kind in ("png", "webp")),
        ("animated", "anim.gif", "info"),
        ("animated", "frame_damaged.gif", "info"),
        ("pages", "pages.tif", "info"),
    }
    sample = next(sample for sample in dataset.samples if sample.path.name == "pages.tif")
    assert sample.size == SIZE, "of the first page"


def test_a_mask_may_be_no_larger_than_a_picture(tmp_path: Path) -> None:
    from picture_zoo import claims

    for folder in ("1_cat", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "1_cat" / "a.png").write_bytes(png())
    (tmp_path / "masks" / "a.png").write_bytes(claims(1200, 700))
    settings = {"folder": tmp_path, "resolution": 64, "max_megapixels": 0.7}
    dataset = load_dataset(DatasetSettings.parse({**settings, "masks": "folder", "mask_folder": tmp_path / "masks"}))
    (problem,) = [problem for problem in dataset.problems if problem.kind == "mask"]
    assert "1200 x 700 pixels, more than max_megapixels=0.7" in problem.problem
    assert dataset.samples[0].mask_path is None


def test_max_megapixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(Image.new("1", (1100, 1000))))
    assert inspect_image(path, max_megapixels=1.2).size == (1100, 1000)
    with pytest.raises(FileError, match="max_megapixels=1"):
        inspect_image(path, max_megapixels=1)


def test_signatures() -> None:
    assert signature(b"") == ""
    for name, (make, *_) in USABLE.items():
        assert signature(make()[:64]) in SUFFIXES, name


SEEDS = [jpeg(), png(), png(quarters().quantize(4)), encoded(quarters(), "WEBP"), encoded(quarters(), "BMP")]
SEEDS.append(encoded(quarters(), "AVIF"))
SEEDS += [encoded(quarters(), "GIF"), tiff(), tiff(compression="tiff_lzw"), tiff(compression="tiff_deflate"), pages()]
SEEDS += [png_with(zipped_text(size=99)), webp_with_rest(flags=4, rest=b"XMP \4\0\0\0abcd"), jpeg_with((0xE2, b"MPF"))]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1))
def test_mutations_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, edits: list[tuple[float, int]], keep: float
) -> None:
    """Whatever bytes a file holds: facts, or a FileError; and a picture that passes can be loaded."""
    data = bytearray(seed)
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    if keep < 0.2:
        data = data[: int(keep * 5 * len(data))]
    path = tmp_path_factory.getbasetemp() / "mutation.bin"
    path.write_bytes(data)
    try:
        inspect_image(path, max_megapixels=4)
    except FileError:
        return
    assert load_picture(path, bucket=(64, 64), background=WHITE, max_megapixels=4).size == (64, 64)
