"""Files written whole or not at all, and a fingerprint of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loraloom.control import Control, heed, keep_going
from loraloom.errors import FileError, OutputError
from loraloom.formats.unfinished import remove_leftovers, unfinished_file
from loraloom.plain_data import size_text
from loraloom.reading import check_readable, open_file, read_bytes, read_text

__all__ = [
    "atomic_writer",
    "check_readable",
    "make_folder",
    "old_hash",
    "output_error",
    "read_bytes",
    "read_text",
    "require_space",
    "sha256_of",
    "sync_folder",
    "write_bytes",
    "write_text",
]

_PIECE = 1 << 20
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def atomic_writer(
    path: Path, *, nbytes: int | None = None, check: Callable[[Path], None] | None = None
) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    The bytes are flushed to the disk before the rename, so ``path`` holds either the old or the whole new file,
    also after a power cut. ``nbytes``, when known, is how much will be written: the space is checked first.
    ``check`` is given the finished file before it takes its place; what it raises leaves ``path`` as it was.
    Raises OutputError for anything the file system refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, not a file", "choose a file name inside it")
    remove_leftovers(path.parent)
    if nbytes is not None:
        require_space(path.parent, nbytes)
    try:
        with unfinished_file(path.parent) as temporary:
            with temporary.open("r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            temporary.replace(path)
    except OSError as error:
        raise output_error(path, error, nbytes) from error
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 with its line ends unchanged, atomically."""
    write_bytes(path, text.encode("utf-8"))


def make_folder(folder: Path, *, hint: str = "choose another folder", exclusive: bool = False) -> None:
    """Make a folder, and those above it that are missing, so that they outlast a power cut.

    A folder is an entry of its parent, and that entry is on the disk only when the parent has been flushed: without
    this, files that were flushed themselves could be lost with the folder. ``exclusive``: FileExistsError when it is
    there already. Raises OutputError, with ``hint``, for anything else that the file system refuses.
    """
    folder = Path(folder)
    missing = [parent for parent in folder.parents if not os.path.lexists(parent)]
    try:
        if not exclusive and folder.is_dir():
            return
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            sync_folder(new.parent)
        folder.mkdir(exist_ok=not exclusive)
    except FileExistsError as error:
        if exclusive:
            raise
        raise OutputError(f"{folder}: cannot be made, there is a file of that name", hint) from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: cannot be made, {_reason(error)}", hint) from error
    sync_folder(folder.parent)


def require_space(folder: Path, nbytes: int) -> None:
    """Raise OutputError unless ``folder`` exists and its disk has ``nbytes`` free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if not Path(folder).is_dir():
            raise OutputError(f"{folder}: the folder does not exist", "create it or choose another one") from error
        raise output_error(Path(folder), error, nbytes) from error
    if free < nbytes:
        raise OutputError(
            f"{folder}: not enough space, {size_text(nbytes)} needed and {size_text(free)} free",
            "free some space or choose a folder on another disk",
        )


def sha256_of(path: Path, control: Control = keep_going) -> str:
    """SHA-256 of the file's bytes, 64 hex digits; ``control`` is heeded while they are read.

    Raises FileError where it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            while piece := file.read(_PIECE):
                heed(control)
                digest.update(piece)
    except OSError as error:
        raise FileError(f"{path}: cannot be read, {_reason(error)}") from error
    return digest.hexdigest()


def old_hash(path: Path) -> str:
    """The first 8 digits of the SHA-256 of 64 KiB that begin 1 MiB into a file: the web UI's hash before 2023.

    Raises FileError where it cannot be read.
    """
    try:
        with open_file(path) as file:
            file.seek(0x100000)
            return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    except OSError as error:
        raise FileError(f"{path}: cannot be read, {_reason(error)}") from error


def output_error(path: Path, error: OSError, nbytes: int | None = None) -> OutputError:
    """What the file system refused at ``path``, in words; ``nbytes``, where known, is what was to be written."""
    if error.errno in _NO_SPACE:
        needed = f", {size_text(nbytes)} needed" if nbytes else ""
        return OutputError(f"{path}: no space left on the disk{needed}", "free some space or choose another folder")
    if error.errno == errno.EROFS:
        return OutputError(f"{path}: the disk is mounted read-only", "choose a folder on another disk")
    if error.errno in _NO_PERMISSION:
        return OutputError(f"{path}: no permission to write here", "choose another folder, or close its other users")
    if not path.parent.is_dir():
        return OutputError(f"{path}: the folder {path.parent} does not exist", "create it or choose another one")
    return OutputError(f"{path}: cannot be written, {_reason(error)}")


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def sync_folder(folder: Path) -> None:
    """Make new, renamed and removed entries of a folder durable.

    Windows and some network disks cannot, and there the file system orders it itself.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
