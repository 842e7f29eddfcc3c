"""The files that a run has written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from loraloom.studio.runs.control import CONTROL_FILES

__all__ = ["RunFile", "run_files"]


@dataclass(frozen=True)
class RunFile:
    """A file in a run folder: its path there, with slashes, its bytes, and when it was written (seconds, epoch)."""

    path: str
    nbytes: int
    modified: float


def run_files(folder: Path) -> list[RunFile]:
    """The files of a run by path; what is hidden, and what processes meet at, is left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent) / name
            if name.startswith(".") or (name in CONTROL_FILES and path.parent == folder) or not path.is_file():
                continue
            status = path.stat()
            found.append(RunFile(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime))
    return sorted(found, key=lambda file: file.path)
