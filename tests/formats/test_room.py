"""Room for what will be written: asked before the work, summed for each disk, without a trace."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from loraloom.errors import OutputError
from loraloom.events import Event, Notice
from loraloom.formats.room import Need, free_bytes, picture_bytes, require_room


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 700 kB free."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=700_000))


@pytest.mark.usefixtures("free")
def test_what_goes_to_one_disk_is_summed(tmp_path: Path) -> None:
    loras, states = Need(tmp_path / "runs" / "weights", 300_000, "LoRA files"), Need(tmp_path, 390_000, "states")
    require_room([loras, states])
    with pytest.raises(OutputError) as caught:
        require_room([loras, states, Need(tmp_path / "other", 11_000, "the log")])
    said = "not enough space, 701.0 kB needed (LoRA files 300.0 kB, states 390.0 kB, the log 11.0 kB) and 700.0 kB free"
    assert said in caught.value.problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("free")
def test_an_estimate_is_warned_of(tmp_path: Path) -> None:
    heard: list[Event] = []
    need = Need(tmp_path, 650_000, "states")
    require_room([need, Need(tmp_path, 60_000, "previews", certain=False)], heard.append)
    (notice,) = heard
    assert isinstance(notice, Notice) and notice.level == "warning"
    assert "710.0 kB needed" in notice.text and "estimate" in notice.text
    require_room([need, Need(tmp_path, 40_000, "previews", certain=False)], heard.append)
    assert len(heard) == 1


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="rights that hold")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        require_room([Need(tmp_path / "runs", 0, "the runs")])
    tmp_path.chmod(0o700)


def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("loraloom.formats.room.unfinished_file", refuse)
    with pytest.raises(OutputError, match="the disk is mounted read-only") as caught:
        require_room([Need(tmp_path / "grid", 0, "images")])
    assert str(tmp_path / "grid") in caught.value.problem


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError):
        require_room([Need(tmp_path / "file" / "runs", 0, "the runs")])


def test_figures(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == shutil.disk_usage(tmp_path).free or free_bytes(tmp_path) > 0
    assert picture_bytes(512, 640, 3) == 3 * 491_520
    assert picture_bytes(512, 640, 3, "jpg") == 393_216
