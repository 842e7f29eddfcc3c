"""Unfinished files and folders: what they are called, and who removes them after their process was killed.

While something is being written it is hidden under a name such as ``.tmp-1f0c77d2-9a41...``: the first digits stand for
this computer, the rest is random. On POSIX its writer holds a lock on it, which the system takes back at the writer's
death, whatever kills it. So what can be locked has no writer any more, and the next command that meets it removes it.
Windows refuses to remove what is open; there, and for what another computer wrote, a day without a change counts too.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from loraloom.events import Listener, Notice, ignore
from loraloom.formats.locks import try_lock

__all__ = ["find_leftovers", "remove_leftovers", "unfinished_file", "unfinished_folder"]

_NAME = re.compile(r"\.tmp-(?:([0-9a-f]{8})-[0-9a-f]{16}|[0-9a-f]{16}|.+-[0-9a-f]{8})")
"""Ours, with the computer's digits; and the two forms that earlier versions wrote, without them."""

_QUIET_S = 24 * 3600.0
_WORTH_A_WORD = 50_000_000
_ATTEMPTS = 20
_HAS_LOCKS = sys.platform != "win32"
_TO_LOOK = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """A new, empty hidden file in ``folder``, to be written and then renamed.

    Inside, no other process takes it away. What is still there at the end is removed. Raises OSError.
    """
    with _claimed(folder, _make_file, _remove_file) as path:
        yield path


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """A new, empty hidden folder in ``parent``, under the same rules. Raises OSError."""
    with _claimed(parent, Path.mkdir, _remove_folder) as path:
        yield path


def remove_leftovers(folder: Path, listener: Listener = ignore) -> None:
    """Remove from ``folder`` what killed processes left unfinished; what another process is writing stays.

    ``listener`` hears of it when it was large. Nothing is raised: what cannot be removed is left for another time.
    """
    freed = sum(_if_left(Path(folder) / name, _remove) or 0 for name in _hidden_names(folder))
    if freed >= _WORTH_A_WORD:
        size = f"{freed / 1e9:.1f} GB" if freed >= 1e9 else f"{freed / 1e6:.0f} MB"
        listener(Notice(f"{folder}: {size} that an interrupted command had left unfinished were removed"))


def find_leftovers(folder: Path) -> dict[Path, int]:
    """What :func:`remove_leftovers` would remove from ``folder``, each with its size in bytes; nothing is changed."""
    found = {path: _if_left(path, _size) for path in (Path(folder) / name for name in _hidden_names(folder))}
    return {path: size for path, size in found.items() if size is not None}


def _make_file(path: Path) -> None:
    path.open("xb").close()


def _remove_file(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _claimed(folder: Path, make: Callable[[Path], None], remove: Callable[[Path], None]) -> Iterator[Path]:
    """A new entry of ``folder`` whose lock this process holds; removed at the end, also by a signal at any moment."""
    for _ in range(_ATTEMPTS):
        path = folder / f".tmp-{_this_computer()}-{secrets.token_hex(8)}"
        lock: int | None = None
        try:
            make(path)
            owned, lock = _lock_own(path)
            if owned:
                yield path
                return
        finally:
            remove(path)
            if lock is not None:
                os.close(lock)
    raise OSError(errno.EBUSY, "new files vanish as soon as they are made")


def _lock_own(path: Path) -> tuple[bool, int | None]:
    """Whether what was just made is ours, and what holds its lock (None where there are no locks).

    Between making and locking, somebody who cleans up may have taken it for a dead process's.
    """
    if not _HAS_LOCKS:
        return True, None
    try:
        descriptor = os.open(path, _TO_LOOK)
    except OSError:
        return False, None
    # Where the file system knows no locks, nobody else gets one to clean up with.
    if try_lock(descriptor) is not False and _is_still(path, descriptor):
        return True, descriptor
    os.close(descriptor)
    return False, None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether ``path`` leads to what ``descriptor`` has open."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def _hidden_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.name.startswith(".tmp-")]
    except OSError:
        return []


def _if_left(path: Path, act: Callable[[Path], int]) -> int | None:
    """What ``act`` (:func:`_remove`, :func:`_size`) makes of a leftover; None for what has a writer or is not ours."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        is_ours = match[1] == _this_computer()
        if not (is_ours and _HAS_LOCKS) and time.time() - _last_change(path) < _QUIET_S:
            return None
        if not _HAS_LOCKS:
            return act(path)
        descriptor = os.open(path, _TO_LOOK)
    except OSError:
        return None
    try:
        return act(path) if try_lock(descriptor) and _is_still(path, descriptor) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    status = path.lstat()
    return sum(inside.lstat().st_size for inside in path.rglob("*")) if stat.S_ISDIR(status.st_mode) else status.st_size


def _remove(path: Path) -> int:
    size = _size(path)
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
    return size


def _last_change(path: Path) -> float:
    """When a file, or anything in a folder, was last written."""
    return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))


def _this_computer() -> str:
    return sha256(socket.gethostname().encode("utf-8", "replace")).hexdigest()[:8]
