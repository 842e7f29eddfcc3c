"""Captions of many pictures in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from loraloom.data.caption_table import CaptionTable
from loraloom.data.dataset import Dataset, load_dataset
from loraloom.data.settings import ConceptSettings, DatasetSettings
from loraloom.errors import FileFormatError, LoraloomError, MissingFileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "img"
    pictures.mkdir()
    for index, name in enumerate(("one.png", "two.png", "three.png")):
        Image.new("RGB", (64, 64), (90, 10, 20 * index)).save(pictures / name)
    return pictures


def captions(dataset: Dataset) -> dict[str, str]:
    return {sample.path.name: sample.caption for sample in dataset.samples}


def load(folder: Path, **settings: Any) -> Dataset:
    return load_dataset(DatasetSettings.model_validate({"folder": folder, "resolution": 64, **settings}))


LINES = '{"file_name": "one.png", "text": "a fox"}\n\n{"file_name": "two.png", "text": "a cat"}\n'
JSON = json.dumps({"/data/img/one.png": {"caption": "a fox"}, "D:\\img\\two.png": {"caption": "a cat"}})
FORMS = {
    "lines": LINES,
    "lines of sd-scripts": '{"image_path": "D:\\\\img\\\\one.png", "caption": "a fox", "image_size": [64, 64]}\n'
    '{"image_path": "two.png", "tags": "a cat"}\n',
    "json": JSON,
    "json by stem": json.dumps({"one": {"tags": "a fox", "train_resolution": [64, 64]}, "two": "a cat"}),
    "csv": 'file_name,text\none.png,a fox\ntwo.png,"a cat"\n',
    "tabs": "file_name\ttext\none.png\ta fox\ntwo.png\ta cat\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_form(form: str, encoding: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(FORMS[form].encode(encoding))
    (folder / "one.txt").write_text("not this", encoding="utf-8")
    dataset = load(folder, captions={"table": path})
    assert captions(dataset) == {"one.png": "a fox", "two.png": "a cat", "three.png": "img"}
    assert {p.path.name for p in dataset.problems if p.kind == "caption-missing"} == {"three.png"}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_one_that_lies_in_the_folder_is_found(name: str, folder: Path) -> None:
    (folder / name).write_text(FORMS["lines" if name.endswith("l") else "csv"], encoding="utf-8")
    (folder / "two.txt").write_text("its own file", encoding="utf-8")
    dataset = load(folder)
    assert captions(dataset) == {"one.png": "a fox", "two.png": "its own file", "three.png": "img"}
    assert captions(load(folder, captions={"source": "filename"}))["one.png"] == "one"


def test_one_that_lies_there_and_cannot_be_used_is_told(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "one.png"\n', encoding="utf-8")
    dataset = load(folder)
    assert captions(dataset)["one.png"] == "img"
    (problem,) = [problem for problem in dataset.problems if problem.kind == "caption-table"]
    assert problem.severity == "warning" and problem.path.name == "metadata.jsonl"


def test_captions_and_tags_and_lines(folder: Path) -> None:
    rows = {
        "one": {"caption": "a fox\na red fox", "tags": "snow, winter"},
        "two": {"caption": "", "tags": ["x", "y"]},
        "three": {"tags": None, "caption": ""},
    }
    path = folder.parent / "meta.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    dataset = load(folder, captions={"table": path})
    lines = {sample.path.stem: sample.lines for sample in dataset.samples}
    assert lines == {
        "one": ("a fox, snow, winter", "a red fox, snow, winter"), "two": ("x, y",), "three": ("",)
    }  # fmt: skip


def test_pictures_of_one_name_are_told_apart(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        Image.new("RGB", (64, 64), (9, 9, ord(name))).save(folder / name / "same.png")
    rows = [{"file_name": f"{name}/same.png", "text": name} for name in "ab"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = {sample.name: sample.caption for sample in load(folder).samples}
    assert found["a/same.png"] == "a" and found["b/same.png"] == "b"


def test_a_concept_has_a_table_of_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text(LINES, encoding="utf-8")
    concept = {"folder": str(folder), "caption_table": "table.jsonl"}
    (tmp_path / "run.toml").write_text(
        f"resolution = 64\n[[concepts]]\nfolder = '{concept['folder']}'\ncaption_table = 'table.jsonl'\n",
        encoding="utf-8",
    )
    settings = DatasetSettings.load(tmp_path / "run.toml", [])
    assert settings.concepts[0].caption_table == tmp_path / "table.jsonl", "relative to the settings file"
    assert captions(load_dataset(settings))["one.png"] == "a fox"
    with pytest.raises(ValueError, match="caption_table"):
        ConceptSettings.model_validate({"folder": "x", "captions": {"table": "y"}})


def test_rows_without_a_picture_are_counted(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(LINES + '{"file_name": "gone.png", "text": "x"}', encoding="utf-8")
    told = [problem.problem for problem in load(folder).problems if problem.kind == "caption-orphan"]
    assert told == ["has captions of 1 pictures that are not there, such as gone.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("just words\n", "does not name a column"),
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": 3}', "line 2"),
        ('{"file_name": "a.png", "text": "x"}\n[1]', "line 2"),
        ('{"file_name": "a.png", "text": {"x": 1}}', "line 1: caption and tags are text"),
        ('{"a": 1}', "'a' has neither"),
        ('{"a": ', "Expecting value"),
        ("file_name,text\n,x\n", "line 2 names no picture"),
        ('{"a":' * 5000, "t: "),
    ],
)
def test_what_is_no_table(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match=said) as caught:
        CaptionTable.read(path)
    assert str(path) in caught.value.problem


def test_one_that_is_named_and_missing_stops_the_run(folder: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        load(folder, captions={"table": folder / "gone.json"})
    with pytest.raises(FileFormatError):
        load(folder, captions={"table": folder})


@hypothesis_settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_table_or_an_error(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(data)
        try:
            CaptionTable.read(path).of(Path(folder), Path("a.png"))
        except LoraloomError:
            return
