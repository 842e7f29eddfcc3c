"""Checks of the folders that are written to: room, permission, and disks that are not of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from loraloom.errors import OutputError
from loraloom.formats.room import Need, free_bytes, require_room
from loraloom.plain_data import size_text
from loraloom.studio.doctor.finding import Finding, Machine, good, note, problem

__all__ = ["check_far_folders", "check_room", "network_kind", "synchroniser"]

_FAR_SYSTEMS = {
    "nfs": "a network disk",
    "nfs4": "a network disk",
    "cifs": "a network disk",
    "smb3": "a network disk",
    "smbfs": "a network disk",
    "afpfs": "a network disk",
    "webdav": "a network disk",
    "davfs": "a network disk",
    "fuse.sshfs": "a network disk",
    "fuse.rclone": "a network disk",
    "ceph": "a network disk",
    "9p": "a disk of the system around this one, such as C: seen from WSL",
    "drvfs": "a disk of the system around this one, such as C: seen from WSL",
    "vboxsf": "a disk of the system around this one",
    "fuse.gvfsd-fuse": "a network disk",
}
_SYNCHRONISERS = {
    "onedrive": "OneDrive",
    "dropbox": "Dropbox",
    "google drive": "Google Drive",
    "googledrive": "Google Drive",
    "mobile documents": "iCloud Drive",
    "iclouddrive": "iCloud Drive",
    "cloudstorage": "a cloud storage",
    "nextcloud": "Nextcloud",
    "pclouddrive": "pCloud",
}
"""What the folders are called in which these programs keep a copy of everything."""


@dataclass(frozen=True)
class _Place:
    """A folder, what goes there, and the free bytes below which it fails soon, and will be short at some time."""

    name: str
    path: Path
    holds: str
    least: int
    comfortable: int


def _places(machine: Machine) -> list[_Place]:
    return [
        _Place("this folder", machine.folder, "LoRA files, states, previews", 10**9, 10 * 10**9),
        _Place("cache", machine.cache, "encoded pictures", 2 * 10**8, 2 * 10**9),
        _Place("own data", machine.data, "the library's index, reports", 5 * 10**7, 2 * 10**8),
        _Place("temporary files", machine.temporary, "plans, files that fit nowhere else", 10**8, 10**9),
    ]


def check_room(machine: Machine) -> Iterator[Finding]:
    """Whether each folder can be written, and how much room its disk has. A file is made for a moment in each."""
    for place in _places(machine):
        try:
            require_room([Need(place.path, 0, place.holds)])
            free = free_bytes(place.path)
        except OutputError as error:
            yield problem(place.name, error.problem, error.hint)
            continue
        found = f"{place.path}: {size_text(free)} free for {place.holds}"
        if free < place.least:
            yield problem(place.name, found, "free some space on its disk")
        elif free < place.comfortable:
            yield note(place.name, found, "free some space on its disk before long work")
        else:
            yield good(place.name, found)


def check_far_folders(machine: Machine) -> Iterator[Finding]:
    """Whether files are written over a network, or carried away by a program that synchronises them."""
    partitions = _partitions()
    for name, path in (("this folder", machine.folder), ("cache", machine.cache)):
        resolved = path.expanduser().absolute()
        if program := synchroniser(resolved):
            found = f"{path} is kept in {program}, which copies every file while it is written and may hold it open"
            yield note(name, found, "work in a folder that is not synchronised, and copy the LoRAs when they are done")
        if kind := network_kind(resolved, partitions):
            found = f"{path} is on {kind}: pictures and states are read and written slowly"
            yield note(name, found, "work in a folder on a disk of this machine")


def synchroniser(path: PurePath) -> str:
    """The program that synchronises a folder, by the names of the folders around it; empty where none does."""
    for part in path.parts:
        folded = part.casefold()
        for name, program in _SYNCHRONISERS.items():
            if folded == name or folded.startswith((f"{name} - ", f"{name} (")):  # of a company, of a person
                return program
    return ""


def network_kind(path: Path, partitions: Iterable[Any]) -> str:
    """On what a folder lies that is far away; empty for a disk of this machine.

    ``partitions`` have a ``mountpoint`` and an ``fstype``, as psutil gives them.
    """
    if sys.platform == "win32":
        import ctypes

        remote = 4  # DRIVE_REMOTE
        is_far = str(path).startswith("\\\\") or ctypes.windll.kernel32.GetDriveTypeW(path.anchor) == remote
        return "a network disk" if is_far else ""
    resolved = path.resolve()
    around = [each for each in partitions if _is_inside(resolved, Path(each.mountpoint))]
    nearest = max(around, key=lambda each: len(each.mountpoint), default=None)
    return _FAR_SYSTEMS.get(nearest.fstype.lower(), "") if nearest is not None else ""


def _is_inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _partitions() -> list[Any]:
    if os.name == "nt":  # each drive would be asked, also one that does not answer
        return []
    import psutil

    found: list[Any] = psutil.disk_partitions(all=True)
    return found
