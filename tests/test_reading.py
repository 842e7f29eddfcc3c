"""Every file that a person names goes through one door, which never waits and never fills the memory."""

from __future__ import annotations

import ast
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import loraloom
from loraloom.errors import FileError, FileFormatError, MissingFileError
from loraloom.reading import open_file, read_bytes, read_text

ROOT = Path(loraloom.__file__).parent

OWN_RECORDS = {
    "data/folder_contents.py": "looks at 64 bytes of what is_file() said is a file",
    "models/tokenizer.py": "comes with the package",
    "studio/demo/pictures.py": "a preview painted a moment before",
    "studio/detached.py": "the last bytes that its own process printed",
    "studio/doctor/system.py": "the limits that the kernel states",
    "studio/grids.py": "images painted a moment before",
    "studio/home.py": "who holds its own lock",
    "studio/runs/control.py": "the run's own lock and wishes",
    "studio/runs/log.py": "the run's own log",
    "studio/runs/training.py": "the run's own settings",
    "studio/teach.py": "presets that come with the package",
    "studio/tensorboard.py": "a preview painted a moment before",
    "studio/uploads.py": "a file written a moment before, under another name",
    "studio/webhook.py": "a preview painted a moment before",
    "training/previews.py": "the sheet painted before",
}
"""Modules that read by themselves, and what: nothing that a person names without a check of its own."""


def _named(path: Path) -> Iterator[str]:
    """Calls that open what a name leads to."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, owner = node.func.attr, ast.unparse(node.func.value)
        given = [ast.unparse(argument) for argument in node.args]
        opens_picture = called == "open" and owner == "Image" and given[0] != "file" and "BytesIO" not in given[0]
        if called in ("read_text", "read_bytes") or (called == "open" and "'rb'" in given) or opens_picture:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_opened_through_one_door(path: Path) -> None:
    found = list(_named(path))
    if path.relative_to(ROOT).as_posix() in OWN_RECORDS:
        assert found, "takes no exception any more: remove it from the list"
    elif path.name != "reading.py":
        assert not found, "use loraloom.reading"


def test_a_text_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "wörter.txt"
    path.write_bytes("ein Löwe\r\nzwei\rdrei\n".encode())
    assert read_text(path) == "ein Löwe\nzwei\ndrei\n"
    assert read_bytes(path, limit=21) == path.read_bytes()


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_byte_order_mark_decides_and_is_left_out(tmp_path: Path, mark: bytes, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(mark + "grün, 木".encode(encoding))
    assert read_text(path) == "grün, 木"


def test_what_is_no_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nth\xffree\n")
    with pytest.raises(FileFormatError, match=r"a\.txt, line 3: is not text in UTF-8"):
        read_text(path)
    path.write_bytes(b"one\nt\0wo\n")
    with pytest.raises(FileFormatError, match="line 2: holds a zero byte"):
        read_text(path)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * 1301)
    assert len(read_bytes(path, limit=1301)) == 1301
    with pytest.raises(FileFormatError, match=r"large\.toml: is larger than 1300 bytes"):
        read_bytes(path, limit=1300)
    with path.open("r+b") as file:
        file.truncate(300 * 2**30)  # sparse: takes no space
    with pytest.raises(FileFormatError, match="is larger than 3 MiB"):
        read_text(path, limit=3 * 2**20)


def test_what_is_not_there_or_no_name_at_all(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_text(tmp_path / "gone.txt")
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileError):
        read_text(tmp_path / "a.txt" / "b.txt")
    with pytest.raises(FileError):
        read_text(Path("a\0b"))
    with pytest.raises(FileError):
        read_text(tmp_path / ("n" * 5000))
    with pytest.raises(FileFormatError, match="is a folder, not a file"):
        read_bytes(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files on Windows")
def test_pipes_devices_and_sockets_never_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    with pytest.raises(FileFormatError, match=r"pipe\.toml: is a pipe"):
        read_text(pipe)
    with pytest.raises(FileFormatError, match="/dev/zero: is a device"):
        read_bytes(Path("/dev/zero"))
    (tmp_path / "link.txt").symlink_to("/dev/zero")
    with pytest.raises(FileFormatError, match=r"link\.txt: is a device"):
        read_text(tmp_path / "link.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(MissingFileError):
        read_text(tmp_path / "gone.txt")
    with socket.socket(socket.AF_UNIX) as served:
        monkeypatch.chdir(tmp_path)
        served.bind("socket.txt")
        with pytest.raises(FileFormatError, match="is a socket"):
            open_file(Path("socket.txt"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such files on Windows")
def test_a_pipe_that_takes_a_files_place_in_between_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "a.txt"
    os.mkfifo(pipe)
    monkeypatch.setattr("loraloom.reading.check_readable", lambda path: None)  # looked at while it was still a file
    with pytest.raises(FileFormatError, match="is a pipe"):
        read_bytes(pipe)
