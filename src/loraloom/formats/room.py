"""Whether there is room for what will be written: asked before the work begins, by one function for every command."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.files import output_error
from loraloom.formats.unfinished import unfinished_file
from loraloom.plain_data import size_text

__all__ = ["Need", "free_bytes", "picture_bytes", "require_room"]

_BYTES_PER_PIXEL = {"png": 1.5, "jpg": 0.4, "webp": 0.3}
"""Of painted pictures; noise would take 3 in a PNG, a drawing a tenth of it."""


@dataclass(frozen=True)
class Need:
    """Bytes that will be written into ``folder``, which may not exist yet, and ``what`` they are.

    ``certain``: the number is known; else it is an estimate, and too little room only causes a warning.
    """

    folder: Path
    nbytes: int
    what: str
    certain: bool = True


def require_room(needs: Iterable[Need], listener: Listener = ignore) -> None:
    """Raise OutputError unless a file can be made in every folder and each disk has room for all that goes there.

    Nothing is left behind, and no folder is made.
    """
    by_disk: dict[int, list[tuple[Path, Need]]] = {}
    for need in needs:
        place = _existing(need.folder)
        try:
            with unfinished_file(place):
                pass
            disk = place.stat().st_dev
        except OSError as error:
            raise output_error(need.folder, error) from error
        by_disk.setdefault(disk, []).append((place, need))
    for entries in by_disk.values():
        place, wanted = entries[0][0], [need for _, need in entries]
        free = free_bytes(place)
        if sum(need.nbytes for need in wanted if need.certain) > free:
            text = _too_little(wanted, free)
            raise OutputError(text, "free some space, write less, or choose a folder on another disk")
        if sum(need.nbytes for need in wanted) > free:
            listener(Notice(f"{_too_little(wanted, free)}; a part of this is an estimate", "warning"))


def free_bytes(folder: Path) -> int:
    """What the disk of ``folder``, or of the folder that it will be in, has free for this user."""
    place = _existing(folder)
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise output_error(folder, error) from error


def picture_bytes(width: int, height: int, count: int, suffix: str = "png") -> int:
    """About what ``count`` painted pictures of this size (pixels) take as files."""
    return int(_BYTES_PER_PIXEL.get(suffix.lower(), 1.5) * width * height * count)


def _too_little(needs: Sequence[Need], free: int) -> str:
    total = sum(need.nbytes for need in needs)
    parts = ", ".join(f"{need.what} {size_text(need.nbytes)}" for need in needs if need.nbytes)
    return f"{needs[0].folder}: not enough space, {size_text(total)} needed ({parts}) and {size_text(free)} free"


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = Path(folder).expanduser().absolute()
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)
