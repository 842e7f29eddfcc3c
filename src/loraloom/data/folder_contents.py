"""What is inside a folder of pictures: files and folders in a fixed order, and which of the files are pictures."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from loraloom.data.problems import Problem, normal_name
from loraloom.formats.pictures import SUFFIXES, signature

__all__ = [
    "FOREIGN_SUFFIXES",
    "IMAGE_SUFFIXES",
    "Entries",
    "entries",
    "files_below",
    "has_images",
    "looks_like_image",
    "order",
]

IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
FOREIGN_SUFFIXES = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jfif", ".jpe", ".apng", ".psd", ".xcf", ".svg"}
    | {".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".dds", ".exr", ".qoi", ".pdf"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
    | {".mp4", ".mov", ".webm", ".avi"}
)
"""Endings of pictures and films that are not read: they are reported, so they count as files of the dataset."""
_MAX_DEPTH = 12


@dataclass(frozen=True)
class Entries:
    """What is directly inside a folder, without what is hidden, in a fixed order; and why it cannot be read."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()


def entries(folder: Path) -> Entries:
    """What is directly inside a folder; a folder that cannot be read is among the problems."""
    problems: tuple[Problem, ...] = ()
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not _hidden(entry.name):
                    (folders if _is_folder(entry) else files).append(folder / entry.name)
    except OSError as error:
        note = f"cannot be read: {error.strerror}"
        problems = (Problem("error", "unreadable-folder", folder, note, "check its permissions"),)
    return Entries(tuple(sorted(folders, key=order)), tuple(sorted(files, key=order)), problems)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads to itself: reported as a file that cannot be read


def has_images(folder: Path, *, deep: bool = True) -> bool:
    """Whether a file named like a picture is inside (``deep``: or in folders below)."""
    walk = files_below(folder, ()) if deep else iter(entries(folder).files)
    files = (path for path in walk if not isinstance(path, Problem))
    return any(path.suffix.lower() in IMAGE_SUFFIXES or looks_like_image(path) for path in files)


def looks_like_image(path: Path) -> bool:
    """Whether a file without an image's suffix begins like one that can be read."""
    if path.suffix.lower() in {".txt", ".caption", ".json", ".npz", ".safetensors", ".toml", ".py", ".md"}:
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return signature(file.read(64)) in SUFFIXES
    except OSError:
        return False


def files_below(
    folder: Path, apart: Collection[Path], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[Path | Problem]:
    """Every file below ``folder``, and every folder that is not gone into; links are followed, but not in circles."""
    try:
        status = folder.stat()
    except OSError:
        return
    key = (status.st_dev, status.st_ino)
    if (key in above and key[1]) or len(above) > _MAX_DEPTH:
        note = "leads back to a folder above it" if key in above else "is nested too deep"
        yield Problem("warning", "folder-loop", folder, f"is not followed: it {note}", "remove the link")
        return
    inside = entries(folder)
    yield from inside.problems
    yield from inside.files
    for child in inside.folders:
        if child not in apart:
            yield from files_below(child, apart, (*above, key))


def order(path: Path) -> tuple[str, str]:
    """Composed Unicode name, then the raw one: the same order on every file system."""
    return normal_name(path), path.as_posix()


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in {"thumbs.db", "desktop.ini", "__macosx"}
