"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path

import pytest

from loraloom.errors import FileFormatError, MissingFileError, OutputError
from loraloom.formats import files
from loraloom.formats.files import (
    atomic_writer,
    make_folder,
    require_space,
    sha256_of,
    size_text,
    write_bytes,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "größe 重み.bin"
    with atomic_writer(target) as file:
        file.write(b"abc")
        assert not target.exists()
        (temporary,) = names_in(tmp_path)
        assert temporary.startswith(".tmp-")
    assert names_in(tmp_path) == [target.name]
    assert target.read_bytes() == b"abc"


def write_and_fail(path: Path, error: BaseException, nbytes: int | None = None) -> None:
    with atomic_writer(path, nbytes=nbytes) as file:
        file.write(b"new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_file_survives_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(error):
        write_and_fail(target, error())
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def test_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_bytes(target, b"a much longer text than the new one")
    write_text(target, "ü\r\nb\n")
    assert target.read_bytes() == "ü\r\nb\n".encode()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on the disk, 5.0 MB needed"),
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_refusals_of_the_file_system_are_explained(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(OutputError, match=words) as caught:
        write_and_fail(tmp_path / "a.bin", OSError(number, os.strerror(number)), nbytes=5_000_000)
    assert "a.bin" in caught.value.problem
    assert names_in(tmp_path) == []


def test_space_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"not enough space, 1000000\.0 TB needed and .* free"):
        require_space(tmp_path, 10**18)
    with pytest.raises(OutputError, match="not enough space"), atomic_writer(tmp_path / "a.bin", nbytes=10**18):
        pass
    require_space(tmp_path, 1)
    assert names_in(tmp_path) == []


def test_missing_folder_and_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist") as caught:
        write_bytes(tmp_path / "no" / "a.bin", b"x")
    assert caught.value.hint
    with pytest.raises(OutputError, match="does not exist"):
        require_space(tmp_path / "no", 1)
    with pytest.raises(OutputError, match="is a folder"):
        write_bytes(tmp_path, b"x")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_mode_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "a.bin").stat().st_mode)
    assert mode == (0o666 if sys.platform == "win32" else 0o666 & ~mask)


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()
    with pytest.raises(MissingFileError, match=r"b\.bin"):
        sha256_of(tmp_path / "b.bin")
    with pytest.raises(FileFormatError, match="is a folder"):
        sha256_of(tmp_path)


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_132_856_622, "2.1 GB"), (999_960, "1.0 MB")],
)
def test_sizes_for_people(nbytes: int, words: str) -> None:
    assert size_text(nbytes) == words


def test_every_new_folder_is_recorded_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", flushed.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert flushed == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(flushed) == 3  # what was there already is left alone


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in ("file", "file/inside", "file/inside/deeper"):
        with pytest.raises(OutputError, match="cannot be made") as caught:
            make_folder(tmp_path / place, hint="set output=FOLDER")
        assert caught.value.hint == "set output=FOLDER"
    make_folder(tmp_path / "new", exclusive=True)
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "new", exclusive=True)
