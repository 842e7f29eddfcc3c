"""Where a user's caches and data live, by the custom of each system."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from platformdirs.api import PlatformDirsABC

__all__ = ["cache_folder", "data_folder"]


def cache_folder() -> Path:
    """Loraloom's folder among the user's caches; everything in it can be made again. It may not exist yet."""
    return _kept(Path(_folders().user_cache_dir), "Caches")


def data_folder() -> Path:
    """Loraloom's folder for what it remembers, such as the index of the library. It may not exist yet."""
    return _kept(Path(_folders().user_data_dir), "Application Support")


def _folders() -> PlatformDirsABC:
    from platformdirs import PlatformDirs

    return PlatformDirs("loraloom", appauthor=False, opinion=False)


def _kept(folder: Path, in_library: str) -> Path:
    """The folder; an earlier version's in its place while that is the one that is there."""
    earlier = _earlier(in_library)
    return earlier if earlier is not None and earlier.is_dir() and not folder.is_dir() else folder


def _earlier(in_library: str) -> Path | None:
    """Where earlier versions would have looked, if that can be another place."""
    if sys.platform == "darwin":  # they did not mind the XDG variables
        return Path.home() / "Library" / in_library / "loraloom"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):  # which may differ from the known folder
        return Path(local) / "loraloom"
    return None
