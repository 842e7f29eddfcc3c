"""Captions of many pictures in one file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from loraloom.data.caption_table import CaptionTable
from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Dataset
from loraloom.data.settings import ConceptSettings, DatasetSettings
from loraloom.errors import DatasetError, FileError, FileFormatError, LoraloomError, MissingFileError


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


PAIRS = (("one.png", "a fox"), ("two.png", "a cat"))
LINES = '{"file_name": "one.png", "text": "a fox"}\n\n{"file_name": "two.png", "text": "a cat"}\n'
JSON = json.dumps({"/data/img/one.png": {"caption": "a fox"}, "D:\\img\\two.png": {"caption": "a cat"}})
FORMS = {
    "lines": LINES,
    "lines of sd-scripts": '{"image_path": "D:\\\\img\\\\one.png", "caption": "a fox", "image_size": [64, 64]}\n'
    '{"image_path": "two.png", "tags": "a cat"}\n',
    "json": JSON,
    "json by stem": json.dumps({"one": {"tags": "a fox", "train_resolution": [64, 64]}, "two": "a cat"}),
    "csv": 'file_name,text\none.png,a fox\ntwo.png,"a cat"\n',
    "blanks": 'file_name, text\none.png, "a fox"\ntwo.png, a cat\n',
    "capitals and semicolons": "File_Name;Text\none.png;a fox\ntwo.png;a cat\n",
    "another word": "image,description\none.png,a fox\ntwo.png,a cat\n",
    "blanks in names": '"File Name","Caption"\n"one.png","a fox"\n"two.png","a cat"\n',
    "single quotes": "'file_name','prompt'\n'one.png','a fox'\n'two.png','a cat'\n",
    "bars": "image_name| comment_number| comment\none.png| 0| a fox\ntwo.png| 0| a cat\n",
    "Excel": "sep=;\r\nfilename;tags\r\none.png;a fox\r\ntwo.png;a cat\r\n",
    "comma in the text": "id;file_name;caption\n1;one.png;a fox\n2;two.png;a cat\n",
    "no names": "one.png,a fox\ntwo.png,a cat\n",
    "blank lines": "\n\nfile_name,text\n\none.png,a fox\n,\ntwo.png,a cat\n\n",
    "by stem": "key,url,caption\none,http://x/9.jpg,a fox\ntwo,http://x/8.jpg,a cat\n",
    "list": json.dumps([{"filename": "one.png", "prompt": "a fox"}, {"filename": "two.png", "prompt": "a cat"}]),
    "list in a table": json.dumps({"version": 3, "rows": [{"image": n, "text": t} for n, t in PAIRS]}, indent=2),
    "columns": json.dumps({"file_name": [name for name, _ in PAIRS], "text": [text for _, text in PAIRS]}),
    "numbered columns": json.dumps(
        {"Image": dict(enumerate(n for n, _ in PAIRS)), "Caption": {0: "a fox", 1: "a cat"}}
    ),
    "COCO": json.dumps(
        {
            "images": [{"id": 30 + i, "file_name": name} for i, (name, _) in enumerate(PAIRS)],
            "annotations": [{"id": i, "image_id": 30 + i, "caption": text} for i, (_, text) in enumerate(PAIRS)],
        }
    ),
    "lines with capitals": '{"File Name": "one.png", "Prompt": "a fox"}\n{"File Name": "two.png", "Prompt": "a cat"}\n',
    "lists of texts": '{"file_name": "one.png", "captions": ["a fox"]}\n{"file_name": "two.png", "tags": ["a cat"]}\n',
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


def test_one_that_lies_there_and_cannot_be_used_stops_the_run(folder: Path) -> None:
    """Training goes on without it only where every picture has a file of its own."""
    (folder / "metadata.jsonl").write_text('{"file_name": "one.png"\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"metadata\.jsonl cannot be used, and pictures without a caption need it"):
        load(folder)
    for name in ("one", "two", "three"):
        (folder / f"{name}.txt").write_text(f"its own, {name}", encoding="utf-8")
    dataset = load(folder)
    assert captions(dataset)["one.png"] == "its own, one"
    (problem,) = [problem for problem in dataset.problems if problem.kind == "caption-table"]
    assert problem.severity == "warning" and problem.path.name == "metadata.jsonl"


@pytest.mark.parametrize("text", ["file_name;breed\none.png;fox\n", '{"file_name": "one.png", "breed": "fox"}\n'])
def test_a_table_without_captions_lists_its_columns(text: str, folder: Path) -> None:
    name = "metadata.csv" if ";" in text else "metadata.jsonl"
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match="its columns are 'file_name', 'breed'") as caught:
        load(folder)
    assert "file_name" in caught.value.hint and "description" in caught.value.hint
    settings = DatasetSettings.model_validate({"folder": folder, "resolution": 64})
    report = load_dataset(settings, allow_empty=True)
    assert [problem.severity for problem in report.problems if problem.kind == "caption-table"] == ["error"]
    (folder / name).rename(folder / "other.txt2")
    assert captions(load(folder))["one.png"] == "img"


@pytest.mark.parametrize("name", ["Metadata.CSV", "METADATA.csv"])
def test_the_name_of_a_table_in_any_case(name: str, folder: Path) -> None:
    (folder / name).write_text("File_Name;Text\none.png;a fox\n", encoding="utf-8")
    assert captions(load(folder))["one.png"] == "a fox"


def test_a_folder_called_like_a_table_or_a_caption_is_told(folder: Path) -> None:
    (folder / "one.txt").mkdir()
    problems = load(folder).problems
    (problem,) = [problem for problem in problems if problem.kind == "caption-unreadable"]
    assert (problem.severity, problem.path.name) == ("error", "one.txt") and "is a folder" in problem.problem
    (folder / "metadata.jsonl").mkdir()
    with pytest.raises(DatasetError, match=r"metadata\.jsonl cannot be used.*is a folder"):
        load(folder)


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
        ("file_name,breed\na.png,x\n", "its columns are 'file_name', 'breed'"),
        (
            "picture_no;text\n7;x\n",
            "does not name a column file_name; its first line has the columns 'picture_no', 'text'",
        ),
        ('{"source": "a.png", "words": "x"}\n{"source": "b.png", "words": "y"}', "its columns are 'source', 'words'"),
        ('[{"file_name": "a.png", "breed": "x"}]', "gives no picture a caption; its columns are 'file_name', 'breed'"),
        ('{"a.png": {"breed": "x"}, "b.png": {}}', "its columns are 'breed'"),
        ("file_name,text\na.png,\nb.png,\n", "gives no picture a caption"),
        ("text,file_name\na, b,c.png\n", "line 2 has 3 cells for 2 columns"),
        ('file_name,text\na.png,x\nb.png,"never closed\nc.png,y\n', "line 3: its quotation marks are not closed"),
        ("[1, 2]", "entry 1 is not a row"),
        ('file_name,text\na.png,"' + "y" * 200_000 + '"\n', "field larger than field limit"),
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


def test_commas_without_quotes_belong_to_the_last_column(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\none.png,a fox, red, snow\ntwo.png,a cat\n", encoding="utf-8")
    assert captions(load(folder))["one.png"] == "a fox, red, snow"
    (folder / "metadata.csv").write_text("one.png,a fox, red, snow\n", encoding="utf-8")
    assert captions(load(folder))["one.png"] == "a fox, red, snow"


def test_several_rows_of_one_picture_are_lines(folder: Path) -> None:
    rows = "image|comment_number|comment\none.png|0|a fox\none.png|1|a red fox\none.png#2|2|foxy\n"
    (folder / "metadata.csv").write_text(rows, encoding="utf-8")
    (sample,) = [sample for sample in load(folder).samples if sample.path.name == "one.png"]
    assert sample.lines == ("a fox", "a red fox", "foxy")


def test_a_row_without_a_caption_leaves_its_picture_to_others(folder: Path) -> None:
    """Nothing is trained without words because a table has a hole; an empty text is one, and told."""
    rows = [{"file_name": "one.png", "text": None}, {"file_name": "two.png", "text": "a cat"}]
    rows.append({"file_name": "three.png", "text": " "})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "one.txt").write_text("its own file", encoding="utf-8")
    dataset = load(folder)
    assert captions(dataset) == {"one.png": "its own file", "two.png": "a cat", "three.png": ""}
    (problem,) = [problem for problem in dataset.problems if problem.kind == "caption-empty"]
    assert problem.severity == "warning" and "three.png" in problem.problem


def test_very_long_captions_are_cut_and_told(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "one.png", "text": "x" * 9000}), encoding="utf-8")
    dataset = load(folder)
    assert len(captions(dataset)["one.png"]) == 8192
    assert ["one.png" in problem.problem for problem in dataset.problems if problem.kind == "caption-long"] == [True]


def test_a_table_has_a_limit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("loraloom.data.caption_table._MOST_BYTES", 60)
    (folder / "t.csv").write_text("file_name,text\none.png," + "y" * 40, encoding="utf-8")
    with pytest.raises(FileFormatError, match="larger than 60 bytes"):
        CaptionTable.read(folder / "t.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_and_devices_are_no_tables(folder: Path) -> None:
    os.mkfifo(folder / "metadata.csv")
    with pytest.raises(DatasetError, match=r"metadata\.csv cannot be used.*is a pipe"):
        load(folder)
    with pytest.raises(FileError, match=r"captions\.table: /dev/zero: is a device"):
        CaptionTable.read(Path("/dev/zero"))


def test_a_table_of_other_pictures_is_a_warning(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\nother.png,a fox\n", encoding="utf-8")
    found = [problem for problem in load(folder).problems if problem.kind == "caption-orphan"]
    assert [(problem.severity, problem.path.name) for problem in found] == [("warning", "metadata.csv")]
    assert "none of which is here; one is called other.png" in found[0].problem


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name,text,text\none.png,a fox,a cat\n", "has the column 'text' twice"),
        ("File Name,file_name,text\none.png,two.png,a cat\n", "has the column 'file_name' twice"),
        ('{"file_name": "one.png", "text": "a fox", "text": "a cat"}\n', "holds 'text' twice"),
        (LINES + '{"file_name": "three.png", "text": "a", "text": "b"}\n', "line 4: holds 'text' twice"),
        ('{"one.png": "a fox", "one.png": "a cat"}', "holds 'one.png' twice"),
        ('{"file_name": "one.png", "captions": [{"xyz": "a fox"}]}\n', "caption and tags are text"),
        ("file_name,text\n", "has no row with a picture"),
    ],
)
def test_what_would_lose_a_caption_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "table").write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError) as error:
        CaptionTable.read(tmp_path / "table")
    assert said in error.value.problem


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ('{"captions": ["a fox", null, 7]}', ("a fox", "7")),
        ('{"sentences": [{"raw": "a fox", "tokens": ["a", "fox"]}, {"caption": "foxy"}]}', ("a fox", "foxy")),
    ],
)
def test_lists_of_texts_in_all_their_forms(value: str, lines: tuple[str, ...], folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "one.png", ' + value[1:], encoding="utf-8")
    (sample,) = [sample for sample in load(folder).samples if sample.path.name == "one.png"]
    assert sample.lines == lines


def kinds(dataset: Dataset, path: Path) -> list[str]:
    return [problem.kind for problem in dataset.problems if problem.path == path]


def test_what_a_table_says_and_is_not_used_is_told(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_bytes('file_name,text\none.png,"a café\nby night"\ntwo.png,a\ntwo.png,b\n'.encode("latin-1"))
    assert kinds(load(folder), table) == ["caption-encoding", "caption-lines"]
    (told,) = [problem for problem in load(folder).problems if problem.kind == "caption-lines"]
    assert told.problem == "has several lines for 2 pictures, such as one.png; the first are used"
    assert kinds(load(folder, captions={"lines": "random"}), table) == ["caption-encoding"]
    (folder / "metadata.jsonl").write_text(LINES, encoding="utf-8")
    assert kinds(load(folder), table) == ["caption-table"]
    assert kinds(load(folder, captions={"table": folder / "metadata.jsonl"}), table) == []


def test_a_text_file_that_is_named_as_the_table_belongs_to_all_pictures(folder: Path) -> None:
    table = folder / "captions.txt"
    table.write_text("one.png\ta fox\ntwo.png\ta cat\n", encoding="utf-8")
    assert kinds(load(folder), table) == ["captions-nearby"]
    dataset = load(folder, captions={"table": table})
    assert kinds(dataset, table) == []
    assert captions(dataset)["one.png"] == "a fox"
