"""Captions that lie near pictures without one: named, offered with the setting that reads them, never used unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from loraloom.data.dataset import load_dataset
from loraloom.data.problems import Problem
from loraloom.data.settings import DatasetSettings

PICTURES = ("one.png", "two.png", "three.png")
LINES = "\n".join(json.dumps({"file_name": name, "text": f"a fox, {name}"}) for name in PICTURES[:2])
BY_NAME = json.dumps({name: {"caption": f"a fox, {name}"} for name in PICTURES})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "set" / "5_fox"
    pictures.mkdir(parents=True)
    for index, name in enumerate(PICTURES):
        Image.new("RGB", (64, 64), (90, 10, 20 * index)).save(pictures / name)
    return pictures


def warnings(folder: Path, **settings: object) -> list[Problem]:
    dataset = load_dataset(DatasetSettings.parse({"folder": folder.parent, "resolution": 64, **settings}))
    return [problem for problem in dataset.problems if problem.kind.startswith("captions-")]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


# what lies there -> (how it is made in the folder of pictures, the file that is named, words of the note, of the hint)
LYING: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "a table with a slip in its name": (
        lambda f: write(f / "metadata.json1", LINES),
        "metadata.json1",
        "has captions of 2 of the 3 pictures",
        "set captions.table=",
    ),
    "a table of sd-scripts": (
        lambda f: write(f / "metadata.json", BY_NAME), "metadata.json", "3 of the 3", "set captions.table="
    ),
    "a table one folder up": (
        lambda f: write(f.parent / "captions.csv", "file;prompt\none.png;a fox\n"),
        "captions.csv", "1 of the 3", "set cap"
    ),
    "a table of tabs": (
        lambda f: write(f / "list.tsv", "image\tcaption\ntwo.png\ta fox\n"),
        "list.tsv", "1 of the 3", "set captions.table"
    ),
    "a table that is not understood": (
        lambda f: write(f / "metadata.json", '[{"file_name": "one.png", "breed": "fox"}]'),
        "metadata.json", "its columns are 'file_name', 'breed'", "description"
    ),
    "a table of other pictures": (
        lambda f: write(f / "captions.json", '{"other.png": "a fox"}'),
        "captions.json", "none of which is here", "compare"
    ),
    "a table in a form that is not read": (
        lambda f: write(f / "metadata.parquet", "PAR1"), "metadata.parquet", ".parquet files are not read", "as CSV"
    ),
    "a folder of captions beside": (
        lambda f: write(f.parent / "captions" / "one.txt", "a fox"), "captions", "holds 1 files", "copy them into 5_fox"
    ),
    "a folder of captions inside": (
        lambda f: write(f / "tags" / "two.txt", "a fox"), "tags", "holds 1 files", "copy them into 5_fox"
    ),
    "a JSON for each picture": (
        lambda f: write(f / "one.json", '{"tags": ["fox"]}'), "one.json", ".json files with the names", "metadata.jsonl"
    ),
    "a JSON for each picture, by its whole name": (
        lambda f: write(f / "one.png.json", "{}"), "one.png.json", ".json files with the names", "metadata.jsonl"
    ),
    "another ending": (
        lambda f: write(f / "two.tags", "fox"), "two.tags", ".tags files with the names", "set caption_extensions=.tags"
    ),
    "captions of other names": (
        lambda f: write(f / "picture-01.txt", "a fox"), "picture-01.txt", "the name of no picture", "give each the name"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LYING)
def test_what_lies_near_is_named(case: str, folder: Path) -> None:
    make, name, note, hint = LYING[case]
    make(folder)
    first, *near = warnings(folder)
    assert first.kind == "captions-none" and "has 3 pictures and no caption" in first.problem
    assert {problem.severity for problem in [first, *near]} == {"warning"}
    (found,) = [problem for problem in near if problem.path.name == name]
    assert note in found.problem and hint in found.hint, found


@pytest.mark.parametrize("case", ["a table with a slip in its name", "a table of sd-scripts", "another ending"])
def test_what_is_offered_works(case: str, folder: Path) -> None:
    make, name, *_ = LYING[case]
    make(folder)
    (found,) = [problem for problem in warnings(folder) if problem.path.name == name]
    key, _, value = found.hint.removeprefix("set ").partition("=")
    settings = {"captions": {"table": value}} if key == "captions.table" else {key: value}
    assert warnings(folder, **settings) == []
    dataset = load_dataset(DatasetSettings.parse({"folder": folder.parent, "resolution": 64, **settings}))
    assert any(sample.caption.startswith("fox") or "a fox" in sample.caption for sample in dataset.samples)


def test_a_table_that_is_an_error_is_not_named_twice(folder: Path) -> None:
    write(folder / "metadata.csv", "file_name,breed\none.png,fox\n")
    settings = DatasetSettings.parse({"folder": folder.parent, "resolution": 64})
    problems = load_dataset(settings, allow_empty=True).problems
    assert [problem.kind for problem in problems if problem.path.name == "metadata.csv"] == ["caption-table"]


def test_with_one_caption_or_another_source_nothing_is_looked_for(folder: Path) -> None:
    write(folder / "metadata.json", BY_NAME)
    assert warnings(folder, captions={"source": "folder"}) == []
    assert warnings(folder, captions={"source": "filename"}) == []
    write(folder / "one.txt", "a fox")
    assert warnings(folder) == []


def test_nothing_near_is_a_warning_too(folder: Path) -> None:
    (problem,) = warnings(folder)
    assert problem.path == folder and "all of them are trained as 'fox'" in problem.problem
    assert problem.hint == "set captions.source=folder if that is meant"


def test_names_that_are_captions_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "1_x"
    folder.mkdir(parents=True)
    for index, name in enumerate(("a red fox in snow", "two cats, sleeping", "an old house")):
        Image.new("RGB", (64, 64), (9, 9, index)).save(folder / f"{name}.png")
    _, found = warnings(folder)
    assert found.hint == "set captions.source=filename to use them"


def test_numbered_pictures_have_no_captions_for_names(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "1_x"
    folder.mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (64, 64), (9, 9, index)).save(folder / f"IMG of holiday {index}.png")
    assert [problem.kind for problem in warnings(folder)] == ["captions-none"]


def test_pictures_in_folders_beside_keep_their_captions(folder: Path) -> None:
    """Another concept's captions, often of the same numbers, are not offered."""
    other = folder.parent / "2_cat"
    other.mkdir()
    Image.new("RGB", (64, 64)).save(other / "one.png")
    write(other / "one.txt", "a cat")
    assert [problem.kind for problem in warnings(folder)] == ["captions-none"]


@pytest.mark.parametrize(
    ("name", "note", "hint"),
    [
        ("multiply.txt", "EveryDream's way to set repeats", "10_name"),
        ("cond_dropout.txt", "captions are left out", "captions.dropout"),
        ("Flip_p.txt", "mirrored", "flip=true"),
    ],
)
@pytest.mark.parametrize("captioned", [False, True])
def test_everydreams_settings_are_no_captions(name: str, note: str, hint: str, captioned: bool, folder: Path) -> None:
    write(folder / name, "0.3")
    if captioned:
        write(folder / "one.txt", "a fox")
    dataset = load_dataset(DatasetSettings.parse({"folder": folder.parent, "resolution": 64}))
    (found,) = [problem for problem in dataset.problems if problem.path.name == name]
    assert found.severity == "warning" and note in found.problem and hint in found.hint
