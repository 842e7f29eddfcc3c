"""Caches and data stay where earlier versions put them, on every system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from platformdirs.macos import MacOS
from platformdirs.windows import Windows

from loraloom.folders import cache_folder, data_folder


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is for the others")
def test_xdg_variables_are_minded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "loraloom"
    assert data_folder() == tmp_path / ".local" / "share" / "loraloom"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert cache_folder() == tmp_path / "c" / "loraloom"
    assert data_folder() == tmp_path / "d" / "loraloom"
    assert list(tmp_path.iterdir()) == []


def test_folders_of_macos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("loraloom.folders.sys.platform", "darwin")
    monkeypatch.setattr(
        "loraloom.folders._folders", lambda: MacOS("loraloom", appauthor=False, opinion=False), raising=True
    )
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    library = tmp_path / "Library"
    assert cache_folder() == library / "Caches" / "loraloom"
    assert data_folder() == library / "Application Support" / "loraloom"
    # What an earlier version made stays in use, until somebody moves it where the variable says.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert data_folder() == tmp_path / "d" / "loraloom"
    (library / "Application Support" / "loraloom").mkdir(parents=True)
    assert data_folder() == library / "Application Support" / "loraloom"
    (tmp_path / "d" / "loraloom").mkdir(parents=True)
    assert data_folder() == tmp_path / "d" / "loraloom"


def test_folders_of_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known, elsewhere = tmp_path / "known", tmp_path / "elsewhere"
    monkeypatch.setattr("loraloom.folders.sys.platform", "win32")
    monkeypatch.setattr("loraloom.folders._folders", lambda: Windows("loraloom", appauthor=False, opinion=False))
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda name: str(known))
    monkeypatch.setenv("LOCALAPPDATA", str(elsewhere))
    assert cache_folder() == data_folder() == known / "loraloom"
    (elsewhere / "loraloom").mkdir(parents=True)
    assert cache_folder() == elsewhere / "loraloom"
    (known / "loraloom").mkdir(parents=True)
    assert cache_folder() == known / "loraloom"
