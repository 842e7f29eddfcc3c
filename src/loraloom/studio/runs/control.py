"""How processes meet at a run folder: who trains it (a lock and a heartbeat), and what it is asked (a control file for
the request that holds, a file for each order that was not carried out yet)."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from loraloom.actions import Action, Sentence
from loraloom.control import Order, Request
from loraloom.errors import OutputError, ResumeError
from loraloom.formats.files import write_text
from loraloom.formats.locks import try_lock, unlock

__all__ = [
    "CONTROL_FILES",
    "FolderControl",
    "RunLock",
    "ask",
    "is_trained",
    "is_trained_by",
    "leave_order",
    "let_go_on",
]

LOCK, PROCESS, CONTROL = ".lock", "process.json", "control.json"
ORDERS = {order: f"{order.value}.order" for order in Order}
_WISHES = (CONTROL, *ORDERS.values())
"""Files that are for the process that trains the run, and for no later one."""
CONTROL_FILES = (LOCK, PROCESS, *_WISHES)
HEARTBEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""A run of another machine whose heartbeat is older than this has died."""


class RunLock:
    """Inside: this process trains the run, and no other can. The system lets go of it when the process dies.

    Raises ResumeError when another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._done = threading.Event()

    def __enter__(self) -> Self:
        self._file = _open_lock(self._folder)
        deadline = time.monotonic() + 1.0  # somebody who looks whether the run lives has the lock for a moment
        while not try_lock(self._file, shared=False):
            if time.monotonic() > deadline:
                self._file.close()
                raise ResumeError(
                    f"{self._folder} is being trained already{_by_whom(self._folder)}",
                    Sentence(Action.LIST_RUNS, " shows it; ", Action.STOP_RUN.of(run=self._folder), " ends it"),
                )
            time.sleep(0.05)
        # Requests to a process that is gone. Before this one shows itself: from then on requests are for it.
        _remove(self._folder, _WISHES)
        facts = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "host": socket.gethostname(),
            "started": time.time(),
        }
        write_text(self._folder / PROCESS, json.dumps(facts) + "\n")
        threading.Thread(target=self._beat, daemon=True, name="run heartbeat").start()
        return self

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(self._folder / PROCESS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        _remove(self._folder, (PROCESS, *_WISHES))
        assert self._file is not None
        unlock(self._file)
        self._file.close()


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def is_trained(folder: Path) -> bool:
    """Whether a process is training this run now."""
    path = folder / PROCESS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        age_s = time.time() - path.stat().st_mtime
        host = facts["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return age_s < DEAD_AFTER_S
    try:
        file = (folder / LOCK).open("r+b")
    except OSError:
        return age_s < DEAD_AFTER_S  # of another user, whose lock cannot be tried
    with file:
        if try_lock(file, shared=True):
            unlock(file)
            return False
    return True


def is_trained_by(folder: Path, pid: int) -> bool:
    """Whether the process ``pid`` of this machine, or a child of it, is training this run now.

    On Windows the Python of a virtual environment is a launcher, whose child does the work.
    """
    if not is_trained(folder):
        return False
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
        return facts["host"] == socket.gethostname() and pid in (facts["pid"], facts["parent"])
    return False


def _open_lock(folder: Path) -> BinaryIO:
    try:
        return (folder / LOCK).open("a+b")
    except OSError as error:
        raise OutputError(
            f"{folder / LOCK} cannot be written: {error.strerror}", "check the permissions of the folder"
        ) from error


def _by_whom(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
        return f" by process {facts['pid']} on {facts['host']}"
    return ""


class FolderControl:
    """The control of a run by its folder: asked after every step, it costs a look at a file's date and one for each
    order that there might be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / CONTROL
        self._seen: tuple[int, int, int] | None = None
        self._request = Request.GO

    def __call__(self) -> Request:
        try:
            found = self._path.stat()
        except OSError:
            self._seen, self._request = None, Request.GO
            return self._request
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._seen:
            with suppress(OSError, ValueError, KeyError, TypeError):  # of Windows, while it is being replaced
                self._request = Request(json.loads(self._path.read_text(encoding="utf-8"))["request"])
                self._seen = stamp
        return self._request

    def take_orders(self) -> tuple[Order, ...]:
        """The orders that lie in the folder. One that cannot be taken away is left for the next time, since it would
        be carried out again and again."""
        return tuple(order for order, name in ORDERS.items() if _taken(self._folder / name))


def _taken(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # it is not there, or, on Windows, is being written
        return False
    return True


def ask(folder: Path, request: Request) -> None:
    """Ask the process that trains the run; it obeys after the step in progress. ResumeError when there is none."""
    _leave_word(folder, CONTROL, json.dumps({"request": request.value}) + "\n")


def leave_order(folder: Path, order: Order) -> None:
    """Leave an order for the process that trains the run. ResumeError when there is none."""
    _leave_word(folder, ORDERS[order], "")


def _leave_word(folder: Path, name: str, text: str) -> None:
    if not is_trained(folder):
        raise ResumeError(
            f"{folder} is not being trained now", Sentence(Action.LIST_RUNS, " lists the runs and their state")
        )
    for attempt in range(10):
        try:
            write_text(folder / name, text)
            return
        except OutputError:  # Windows refuses to replace a file that is being read
            if attempt == 9:
                raise
            time.sleep(0.05)


def let_go_on(folder: Path) -> bool:
    """Ask the process that holds a paused run to go on; False where there is none, so that it can be trained here."""
    if not is_trained(folder):
        return False
    ask(folder, Request.GO)
    return True
