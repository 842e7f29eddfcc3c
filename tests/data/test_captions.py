"""Odd caption files: the text that is trained and what is said about it."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loraloom.data.captions import CaptionFiles, decode_text, read_caption
from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Dataset
from loraloom.data.settings import DatasetSettings

# bytes of the file -> (text that is used, kinds of problems that are reported)
ODD: dict[str, tuple[bytes, str | None, list[str]]] = {
    "plain": (b"1girl, solo", "1girl, solo", []),
    "newline at the end": (b"1girl, solo\n", "1girl, solo", []),
    "blanks around": (b"  \t1girl,  solo \r\n\r\n", "1girl,  solo", []),
    "UTF-8": ("猫, café".encode(), "猫, café", []),
    "UTF-8 with a mark": (codecs.BOM_UTF8 + b"1girl", "1girl", ["caption-encoding"]),
    "UTF-16": ("1girl, café".encode("utf-16"), "1girl, café", ["caption-encoding"]),
    "UTF-16 big-endian": (codecs.BOM_UTF16_BE + "1girl".encode("utf-16-be"), "1girl", ["caption-encoding"]),
    "UTF-16 without a mark": ("1girl, solo".encode("utf-16-le"), "1girl, solo", ["caption-encoding"]),
    "UTF-32": (codecs.BOM_UTF32_LE + "1girl".encode("utf-32-le"), "1girl", ["caption-encoding"]),
    "Latin-1": ("café, señor".encode("latin-1"), "café, señor", ["caption-encoding"]),
    "Windows quotes": (b"\x93quoted\x94", "“quoted”", ["caption-encoding"]),
    "CRLF": (b"1girl, solo\r\n", "1girl, solo", []),
    "old Mac": (b"1girl\r2girls\r", "1girl", ["caption-lines"]),
    "several lines": (b"first line\nsecond line\n\nthird", "first line", ["caption-lines"]),
    "blank first line": (b"\n\n  \n1girl\n", "1girl", []),
    "empty": (b"", "", ["caption-empty"]),
    "only blanks": (b" \n\t\r\n", "", ["caption-empty"]),
    "only a mark": (codecs.BOM_UTF8, "", ["caption-encoding", "caption-empty"]),
    "a megabyte": (b"tag, " * 200_000, ("tag, " * 2000)[:8192], ["caption-long", "caption-long"]),
    "binary": (bytes(range(32)) * 50, None, ["caption-unreadable"]),
    "zeros": (bytes(100), None, ["caption-unreadable"]),
    "tabs inside": (b"1girl,\tsolo", "1girl, solo", []),
    "one control character": (b"1girl, solo, sitting, \x07standing, x", "1girl, solo, sitting,  standing, x", []),
    "mark inside": ("1girl, \ufeffsolo".encode(), "1girl,  solo", []),
}


def test_at_least_fifteen() -> None:
    assert len(ODD) >= 15


@pytest.mark.parametrize("name", ODD)
def test_odd_captions(tmp_path: Path, name: str) -> None:
    data, text, kinds = ODD[name]
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    caption = read_caption(path)
    assert caption.text == text
    assert [problem.kind for problem in caption.problems] == kinds
    assert all(problem.path == path and problem.hint for problem in caption.problems)
    assert path.read_bytes() == data


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_reported(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(data)
    caption = read_caption(path)
    if caption.text is None:
        assert [problem.severity for problem in caption.problems] == ["error"]
    else:
        assert caption.text == caption.text.strip()
        assert not any(character in caption.text for character in "\r\n\ufeff")


@given(st.text())
def test_utf8_text_comes_back(text: str) -> None:
    data = text.encode()
    if not data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "\0" not in text:
        assert decode_text(data) == (text, "UTF-8")


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for name in ("pipe.txt", "loop.txt", "absent.txt"):
        caption = read_caption(tmp_path / name)
        assert caption.text is None
        assert [problem.kind for problem in caption.problems] == ["caption-unreadable"]


def test_which_file_belongs_to_a_picture() -> None:
    texts = ["a.txt", "a.caption", "b.png.txt", "C.TXT", "cafe\u0301.txt", "sub/a.txt"]
    files = CaptionFiles([Path(text) for text in texts], (".txt", ".caption"))
    assert files.of(Path("a.png")) == [Path("a.txt"), Path("a.caption")]
    assert CaptionFiles([Path("a.txt"), Path("a.caption")], (".caption", ".txt")).of(Path("a.png"))[0] == Path(
        "a.caption"
    )
    assert files.of(Path("b.png")) == [Path("b.png.txt")]
    assert files.of(Path("c.jpg")) == [Path("C.TXT")]
    assert files.of(Path("caf\u00e9.png")) == [Path("cafe\u0301.txt")]
    assert files.of(Path("sub/a.png")) == [Path("sub/a.txt")]
    assert files.of(Path("d.png")) == []


def dataset(folder: Path, captions: dict[str, bytes], pictures: tuple[str, ...] = ("a.png", "b.png")) -> Dataset:
    concept = folder / "3_red fox"
    concept.mkdir()
    for index, name in enumerate(pictures):
        Image.new("RGB", (64, 64), (index * 40, 0, 0)).save(concept / name)
    for name, data in captions.items():
        (concept / name).write_bytes(data)
    return load_dataset(DatasetSettings(folder=folder, resolution=64))


def captions_of(loaded: Dataset) -> dict[str, str]:
    return {sample.path.name: sample.caption for sample in loaded.samples}


def kinds_of(loaded: Dataset) -> set[str]:
    return {problem.kind for problem in loaded.problems}


def test_a_missing_caption_is_the_concept_and_an_empty_one_stays_empty(tmp_path: Path) -> None:
    loaded = dataset(tmp_path, {"b.txt": b""})
    assert captions_of(loaded) == {"a.png": "red fox", "b.png": ""}
    assert kinds_of(loaded) == {"caption-missing", "caption-empty"}


def test_an_unusable_caption_is_an_error_and_falls_back(tmp_path: Path) -> None:
    loaded = dataset(tmp_path, {"a.txt": bytes(50), "b.txt": b"fine"})
    assert captions_of(loaded) == {"a.png": "red fox", "b.png": "fine"}
    assert [problem.kind for problem in loaded.problems if problem.severity == "error"] == ["caption-unreadable"]


def test_order_of_endings_doubles_and_orphans(tmp_path: Path) -> None:
    loaded = dataset(
        tmp_path, {"a.caption": b"second", "a.txt": b"first", "b.png.txt": b"by full name", "z.txt": b"of nothing"}
    )
    assert captions_of(loaded) == {"a.png": "first", "b.png": "by full name"}
    assert kinds_of(loaded) == {"caption-several", "caption-name", "caption-orphan"}


def test_two_pictures_of_one_name_share_the_caption_and_are_reported(tmp_path: Path) -> None:
    loaded = dataset(tmp_path, {"a.txt": b"both"}, ("a.png", "a.webp", "A.bmp"))
    assert set(captions_of(loaded).values()) == {"both"}
    assert [problem.kind for problem in loaded.problems] == ["same-name", "same-name"]
