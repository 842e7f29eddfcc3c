"""Folder layouts: what is used, under which name, and what is said about it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Dataset
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError


def make(folder: Path, *names: str) -> None:
    """Pictures of different content under ``folder``."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        level = sum(name.encode()) % 256
        Image.new("RGB", (64, 64), (level, 255 - level, len(name))).save(path, "PNG")


def load(folder: Path, **values: object) -> Dataset:
    return load_dataset(DatasetSettings.parse({"folder": folder, "resolution": 64, **values}))


def concepts(dataset: Dataset) -> list[tuple[str, str, int, bool]]:
    return [(c.label, c.name, c.repeats, c.is_regularization) for c in dataset.concepts]


def names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset.samples]


def kinds(dataset: Dataset) -> list[str]:
    return sorted({problem.kind for problem in dataset.problems} - {"caption-missing", "captions-none"})


def test_the_guides_layout(tmp_path: Path) -> None:
    make(tmp_path, "2_HighRes/a.png", "1_LowRes/b.png", "6_photo_of_a_cat/c.png")
    (tmp_path / "regularization_images").mkdir()
    dataset = load(tmp_path)
    assert concepts(dataset) == [
        ("1_LowRes", "LowRes", 1, False),
        ("2_HighRes", "HighRes", 2, False),
        ("6_photo_of_a_cat", "photo_of_a_cat", 6, False),
    ]
    assert names(dataset) == ["1_LowRes/b.png", "2_HighRes/a.png", "6_photo_of_a_cat/c.png"]
    assert kinds(dataset) == ["regularization"]
    assert dataset.draws_per_epoch == 9


def test_one_concept_folder_itself(tmp_path: Path) -> None:
    make(tmp_path, "10_cat/a.png", "5_dog/b.png")
    dataset = load(tmp_path / "10_cat")
    assert concepts(dataset) == [("10_cat", "cat", 10, False)]
    assert names(dataset) == ["10_cat/a.png"]
    assert kinds(dataset) == ["layout"]


def test_a_concept_folder_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "10_cat/a.png")
    monkeypatch.chdir(tmp_path / "10_cat")
    assert concepts(load(Path())) == [("10_cat", "cat", 10, False)]
    monkeypatch.chdir(tmp_path)
    assert names(load(Path("10_cat"))) == names(load(Path())) == ["10_cat/a.png"]


def test_a_flat_folder(tmp_path: Path) -> None:
    make(tmp_path, "pictures/b.png", "pictures/a.png")
    dataset = load(tmp_path / "pictures", repeats=7)
    assert concepts(dataset) == [("pictures", "pictures", 7, False)]
    assert names(dataset) == ["a.png", "b.png"]
    assert kinds(dataset) == ["layout"]


def test_kohyas_project_folder(tmp_path: Path) -> None:
    make(tmp_path, "img/10_cat/a.png", "reg/1_animal/r.png", "log/x.png", "model/y.png")
    dataset = load(tmp_path)
    assert concepts(dataset) == [("10_cat", "cat", 10, False), ("1_animal", "animal", 1, True)]
    assert names(dataset) == ["10_cat/a.png", "reg/1_animal/r.png"]
    assert dataset.folder == tmp_path / "img"
    assert dataset.regularization_folder == tmp_path / "reg"
    assert kinds(dataset) == ["layout", "regularization"]


def test_folders_without_repeats(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.png", "dog/b.png", "samples/z.png")
    dataset = load(tmp_path, repeats=3)
    assert concepts(dataset) == [("cat", "cat", 3, False), ("dog", "dog", 3, False)]
    assert kinds(dataset) == ["folder-name"]


def test_folders_without_repeats_beside_ones_with_them(tmp_path: Path) -> None:
    make(tmp_path, "2_cat/a.png", "dog/b.png", "10-bird/c.png", "loose.png")
    (tmp_path / "empty").mkdir()
    dataset = load(tmp_path)
    assert names(dataset) == ["2_cat/a.png"]
    warnings = [problem for problem in dataset.problems if problem.severity == "warning"]
    found = {problem.path.name: problem for problem in warnings if problem.kind != "captions-none"}
    assert set(found) == {"dog", "10-bird", tmp_path.name}
    assert "1_dog" in found["dog"].hint


def test_folders_inside_a_concept_belong_to_it(tmp_path: Path) -> None:
    make(tmp_path, "2_cat/a.png", "2_cat/indoors/b.png", "2_cat/indoors/deep/c.png", "2_cat/.git/d.png")
    (tmp_path / "2_cat/indoors/b.txt").write_text("a cat inside", encoding="utf-8")
    dataset = load(tmp_path)
    assert names(dataset) == ["2_cat/a.png", "2_cat/indoors/b.png", "2_cat/indoors/deep/c.png"]
    assert [sample.caption for sample in dataset.samples] == ["cat", "a cat inside", "cat"]
    assert kinds(dataset) == ["nested-folder"]


@pytest.mark.parametrize("name", ["regularization_images", "Regularization", "reg", "REG", "class_images"])
def test_regularization_inside_or_beside(tmp_path: Path, name: str) -> None:
    make(tmp_path / "data", "1_cat/a.png")
    make(tmp_path / "data", f"{name}/r.png")
    inside = load(tmp_path / "data")
    assert [sample.name for sample in inside.regularization] == [f"{name}/r.png"]
    assert load(tmp_path / "data" / "1_cat").regularization == inside.regularization
    (tmp_path / "data" / name).rename(tmp_path / name)
    beside = load(tmp_path / "data")
    assert [sample.name for sample in beside.regularization] == [f"{name}/r.png"]
    assert load(tmp_path / "data", use_regularization=False).regularization == ()


def test_regularization_in_a_flat_folder(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "reg/2_person/r.png", "reg/stray.png")
    dataset = load(tmp_path)
    assert names(dataset) == ["a.png", "reg/2_person/r.png"]
    assert dataset.samples[1].repeats == 2
    assert "loose-images" in kinds(dataset)


def test_regularization_by_setting(tmp_path: Path) -> None:
    make(tmp_path, "data/1_cat/a.png", "elsewhere/1_cat/a.png", "data/reg/x.png")
    dataset = load(tmp_path / "data", regularization_folder=tmp_path / "elsewhere")
    assert [sample.identity for sample in dataset.samples] == ["1_cat/a.png", "regularization:elsewhere/1_cat/a.png"]
    with pytest.raises(DatasetError, match="absent does not exist"):
        load(tmp_path / "data", regularization_folder=tmp_path / "absent")


def test_the_same_folder_may_hold_both_kinds_under_one_name(tmp_path: Path) -> None:
    make(tmp_path, "data/1_cat/a.png", "1_cat/a.png")
    dataset = load(tmp_path / "data", regularization_folder=tmp_path / "1_cat")
    assert len({sample.identity for sample in dataset.samples}) == 2


def test_odd_repeats(tmp_path: Path) -> None:
    make(tmp_path, "0_unused/a.png", "20240131_holiday/b.png", "007_bond/c.png", "3_/d.png", "12345678901_x/e.png")
    dataset = load(tmp_path)
    assert concepts(dataset) == [
        ("007_bond", "bond", 7, False),
        ("12345678901_x", "12345678901_x", 1, False),
        ("20240131_holiday", "20240131_holiday", 1, False),
        ("3_", "", 3, False),
    ]
    assert kinds(dataset) == ["folder-name", "zero-repeats"]


def test_order_and_names_do_not_depend_on_the_file_system(tmp_path: Path) -> None:
    plain, decomposed = "\u00e9.png", "e\u0301.png"
    files = [f"1_x/{name}" for name in ("b.png", "B.png", "a.png", "a-1.png", "Z.png", plain, "z/a.png")]
    make(tmp_path / "one", *files)
    make(tmp_path / "two", *(unicodedata.normalize("NFD", name) for name in reversed(files)))
    assert names(load(tmp_path / "one")) == names(load(tmp_path / "two"))
    assert names(load(tmp_path / "one")) == sorted(files)
    make(tmp_path / "two", f"1_x/{plain}")
    both = load(tmp_path / "two")
    assert len({sample.identity for sample in both.samples}) == len(both.samples) == len(files) + 1
    assert decomposed in {sample.path.name for sample in both.samples}
    assert "same-name" in kinds(both)


def test_undecodable_names(tmp_path: Path) -> None:
    make(tmp_path, "1_x/a.png")
    (tmp_path / "1_x/a.png").rename(tmp_path / "1_x" / "\udcff\udcfe.png")
    dataset = load(tmp_path)
    assert dataset.samples[0].name.encode() == rb"1_x/\xff\xfe.png"
    assert all(str(problem).encode() for problem in dataset.problems)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "store/a.png", "data/1_own/b.png")
    (tmp_path / "data/5_linked").symlink_to(tmp_path / "store")
    (tmp_path / "data/1_own/loop").symlink_to(tmp_path / "data/1_own")
    dataset = load(tmp_path / "data")
    assert names(dataset) == ["1_own/b.png", "5_linked/a.png"]
    assert "folder-loop" in kinds(dataset)


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        ((), "absent", "does not exist"),
        (("x/a.png",), "x/a.png", "is a file"),
        ((), "", "no pictures"),
        (("notes.md",), "", "no pictures"),
        (("0_cat/a.png",), "", "0 repeats"),
        (("a/1_x/a.png", "b/1_x/a.png"), "", "several datasets: a, b"),
    ],
)
def test_nothing_to_train_on(tmp_path: Path, files: tuple[str, ...], given: str, words: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            make(tmp_path, name)
        else:
            (tmp_path / name).write_text("x", encoding="utf-8")
    with pytest.raises(DatasetError, match=words) as error:
        load(tmp_path / given)
    assert error.value.hint
    assert "\n" not in error.value.problem


def test_only_broken_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match=r"2 could not be read, the first is a\.png, which is empty"):
        load(tmp_path)


def test_other_files_are_no_trouble(tmp_path: Path) -> None:
    make(tmp_path, "1_x/a.png")
    (tmp_path / "1_x" / "a.txt").write_text("a fox", encoding="utf-8")
    for name in ("a.npz", "metadata.json", "Thumbs.db", ".DS_Store", "a.json"):
        (tmp_path / "1_x" / name).write_bytes(b"\0\1\2")
    assert kinds(load(tmp_path)) == []


def test_a_resolution_off_the_grid_is_told(tmp_path: Path) -> None:
    make(tmp_path, "1_x/a.png")
    dataset = load(tmp_path, resolution=100, buckets=False)
    assert dataset.samples[0].bucket == (96, 96)
    assert kinds(dataset) == ["resolution"]


@pytest.mark.parametrize("suffix", [".ppm", ".pcx", ".TGA"])
def test_pictures_of_forms_that_are_not_read_are_listed(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / f"a{suffix}")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    problems = load_dataset(DatasetSettings(folder=tmp_path, resolution=64)).problems
    assert [problem.path.name for problem in problems if problem.kind == "image"] == [f"a{suffix}"]
    told = {".ppm": "is a PPM file", ".pcx": "is a PCX file"}.get(suffix, "is not an image")
    assert any(told in problem.problem for problem in problems)
