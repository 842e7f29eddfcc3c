"""What a killed process leaves unfinished is removed by the next one; what is being written never is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from loraloom.events import Event, Notice
from loraloom.formats import unfinished
from loraloom.formats.files import atomic_writer, write_text
from loraloom.formats.unfinished import remove_leftovers, unfinished_file, unfinished_folder

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps open files from being removed by itself")

WRITE_FOR_EVER = """
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from loraloom.formats.unfinished import unfinished_file, unfinished_folder

with unfinished_file(Path(sys.argv[1])) as file, unfinished_folder(Path(sys.argv[1])) as folder:
    file.write_bytes(bytes(3000))
    (folder / "inside.bin").write_bytes(bytes(700))
    print("written", flush=True)
    sys.stdin.read()
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def writer(folder: Path) -> subprocess.Popen[bytes]:
    """Another process in the middle of writing a file and a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    return process


@posix
def test_the_next_write_removes_what_a_killed_process_left_and_nothing_that_is_alive(tmp_path: Path) -> None:
    dead, alive = writer(tmp_path), writer(tmp_path)
    assert len(names_in(tmp_path)) == 4
    dead.kill()
    dead.communicate()
    before = set(names_in(tmp_path))
    write_text(tmp_path / "a.txt", "x")
    kept = [name for name in names_in(tmp_path) if name != "a.txt"]
    assert len(kept) == 2
    assert set(kept) < before
    alive.communicate()  # its input ends, and so does it: it removes what it never renamed
    assert names_in(tmp_path) == ["a.txt"]


@posix
def test_a_stopped_process_is_alive(tmp_path: Path) -> None:
    process = writer(tmp_path)
    process.send_signal(signal.SIGSTOP)
    remove_leftovers(tmp_path)
    assert len(names_in(tmp_path)) == 2
    process.send_signal(signal.SIGCONT)
    process.communicate()


def test_what_this_process_writes_stays(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "a.bin") as file, unfinished_folder(tmp_path) as folder:
        file.write(b"first")
        write_text(tmp_path / "b.txt", "x")
        assert folder.is_dir()
    assert names_in(tmp_path) == ["a.bin", "b.txt"]
    assert (tmp_path / "a.bin").read_bytes() == b"first"


@posix
def test_only_names_of_ours_are_touched(tmp_path: Path) -> None:
    kept = [".tmp-mine", ".tmp-0123456789abcdef0", ".tmp-0123abcd-0123456789abcdef.txt", "tmp-0123456789abcdef"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == sorted(kept)


@posix
@pytest.mark.parametrize("name", [".tmp-00000000-0123456789abcdef", ".tmp-0123456789abcdef", ".tmp-model-01234567"])
def test_of_another_computer_or_version_only_what_nobody_changed_for_a_day(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"abc")
    remove_leftovers(tmp_path)
    assert path.exists()
    long_ago = time.time() - 25 * 3600
    os.utime(path, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert not path.exists()


@posix
def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"abc")
    inside = tmp_path / "inside"
    inside.mkdir()
    computer = unfinished._this_computer()
    (inside / f".tmp-{computer}-0123456789abcdef").symlink_to(outside)
    (inside / f".tmp-{computer}-fedcba9876543210").symlink_to(outside / "precious")
    remove_leftovers(inside)
    assert (outside / "precious").read_bytes() == b"abc"


@posix
def test_only_what_was_large_is_worth_a_word(tmp_path: Path) -> None:
    computer = unfinished._this_computer()
    heard: list[Event] = []
    (tmp_path / f".tmp-{computer}-0123456789abcdef").write_bytes(b"abc")
    remove_leftovers(tmp_path, heard.append)
    assert heard == []
    with (tmp_path / f".tmp-{computer}-0123456789abcdef").open("wb") as file:
        file.truncate(70_000_000)
    remove_leftovers(tmp_path, heard.append)
    (notice,) = heard
    assert isinstance(notice, Notice)
    assert "70 MB" in notice.text
    assert names_in(tmp_path) == []


@posix
def test_a_file_that_is_taken_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking, another process may clean up; what is given out is there and locked."""
    made: list[Path] = []

    def made_and_taken(path: Path) -> None:
        path.write_bytes(b"")
        made.append(path)
        if len(made) == 1:
            remove_leftovers(tmp_path)

    monkeypatch.setattr(unfinished, "_make_file", made_and_taken)
    with unfinished_file(tmp_path) as path:
        assert path == made[1]
        remove_leftovers(tmp_path)
        assert path.exists()


def test_a_missing_folder_is_no_failure_of_cleaning_up(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError), unfinished_file(tmp_path / "nowhere"):
        pass


@pytest.mark.parametrize("make", [unfinished_file, unfinished_folder])
def test_a_signal_just_after_it_was_made_leaves_nothing(
    make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> tuple[bool, int | None]:
        assert path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("loraloom.formats.unfinished._lock_own", interrupted)
    with pytest.raises(KeyboardInterrupt), make(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
