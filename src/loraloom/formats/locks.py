"""Locks that the system takes back when their owner dies: which process uses a file or folder now.

They are advisory: only programs that ask are held back. POSIX has ``flock``, Windows locks a byte of an open file.
"""

from __future__ import annotations

import errno
import sys
from typing import IO, Any

__all__ = ["try_lock", "unlock"]

if sys.platform == "win32":
    import msvcrt

    def try_lock(file: IO[Any] | int, *, shared: bool = False) -> bool | None:
        """Take the lock of an open file, or say at once that another process has it. Windows knows no shared ones."""
        descriptor = file if isinstance(file, int) else file.fileno()
        if not isinstance(file, int):
            file.seek(0)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(file: IO[Any] | int) -> None:
        """Let go of the lock; closing the file does so too."""
        descriptor = file if isinstance(file, int) else file.fileno()
        if not isinstance(file, int):
            file.seek(0)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    _TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

    def try_lock(file: IO[Any] | int, *, shared: bool = False) -> bool | None:
        """Take the lock of an open file or folder: False, at once, if another process has it.

        ``shared`` ones exclude only the others. None where the file system knows no locks.
        """
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in _TAKEN else None
        return True

    def unlock(file: IO[Any] | int) -> None:
        """Let go of the lock; closing the file does so too."""
        fcntl.flock(file, fcntl.LOCK_UN)
