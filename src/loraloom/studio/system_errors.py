"""What the system refuses, in words for a person: a full disk, a missing right, too little memory.

Doors import this when they start: where memory or open files have run out, nothing can be imported any more.
"""

from __future__ import annotations

import errno

from loraloom.actions import Action, Sentence
from loraloom.errors import LoraloomError

__all__ = ["explained"]

_NO_SPACE = "free some space, or write to another disk; then run the same command again"
_SYSTEM = {
    errno.ENOSPC: _NO_SPACE,
    getattr(errno, "EDQUOT", errno.ENOSPC): _NO_SPACE,
    errno.EROFS: "the disk is mounted read-only; write to another folder",
    errno.EACCES: "check the permissions of the file, or use another folder",
    errno.EMFILE: "too many files are open at once; `ulimit -n 4096` allows more",
    errno.EIO: "the disk, its cable or a network drive may be failing",
    errno.ENOENT: "it was removed while the command ran; run the same command again",
    getattr(errno, "ESTALE", errno.EIO): "the disk, its cable or a network drive may be failing",
}


def explained(error: BaseException) -> LoraloomError | None:
    """An error of the system in words for a person; None for what only a fault in the program can cause."""
    match error:
        case LoraloomError():
            return error
        case MemoryError():
            hint = "close other programs, or work on less at once: a smaller batch_size, resolution or rank"
            found = LoraloomError("there is not enough memory for this", hint)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            hint = _SYSTEM.get(error.errno or 0, Sentence(Action.SHOW_TRACEBACK, " shows where this happened"))
            found = LoraloomError(f"{where}{error.strerror or str(error) or type(error).__name__}", hint)
        case _:
            return None
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found
