"""What commands print goes through here: output that nobody reads never ends work.

A reader may go away (``| head``, a closed terminal, ``| tee`` that the same Ctrl-C ended), the disk under a redirected
log may be full, a stream may be closed from the start, a letter may not exist in the terminal's encoding. None of that
concerns the work. So the standard streams of a command never fail: what cannot be written is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from loraloom.cli.words import worded
from loraloom.plain_text import one_line

__all__ = [
    "ForgivingStream",
    "duration",
    "forgive_output",
    "lost_output",
    "takes_all_letters",
    "visible",
    "visible_line",
]

_FOR_GOOD = {errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.EIO, errno.EINVAL}
"""Failures after which nobody will read again: a reader that is gone, a closed file, a terminal that hung up."""
_FULL_PIPE_S = 0.01
_TRIES = 500


class ForgivingStream(io.RawIOBase):
    """Bytes go to ``raw``; where that fails they are dropped, and ``failure`` says why.

    ``sleep`` is how it waits for a pipe that does not block its writers and is full.
    """

    def __init__(self, raw: io.RawIOBase, sleep: Callable[[float], None] = time.sleep) -> None:
        self._raw = raw
        self._sleep = sleep
        self._gone = False
        self.failure: OSError | ValueError | None = None

    @property
    def readers_gone(self) -> bool:
        """Whether nobody will read any more, so that nothing of use was lost."""
        return self._gone

    def writable(self) -> bool:
        """Always: a failure is no reason not to try."""
        return True

    def fileno(self) -> int:
        """That of the stream beneath."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Whether the stream beneath is a terminal."""
        try:
            return self._raw.isatty()
        except (OSError, ValueError):
            return False

    def write(self, data: Any, /) -> int:
        """Bytes that were written or dropped."""
        size = memoryview(data).nbytes
        for _ in range(0 if self._gone else _TRIES):
            try:
                written = self._raw.write(data)
            except (OSError, ValueError) as error:
                self.failure = error
                self._gone = isinstance(error, ValueError) or error.errno in _FOR_GOOD
                return size
            if written is not None:
                return written
            self._sleep(_FULL_PIPE_S)
        return size


def forgive_output() -> None:
    """Make stdout and stderr of this process forgiving; streams that a test has replaced stay as they are."""
    _fill_closed_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _forgiving(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _forgiving(sys.stderr, 2)


def lost_output() -> OSError | ValueError | None:
    """Why a part of stdout was lost although somebody wanted it (a full disk); None when all went well."""
    stream: Any = sys.stdout
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, ForgivingStream) and not raw.readers_gone else None


def visible(text: str) -> str:
    """Text for a terminal, in its words: what would steer it becomes escapes, and lines stay lines."""
    return "\n".join(map(one_line, worded(text).split("\n")))


def visible_line(text: str) -> str:
    """The same for what has to stay on one line: ends of lines become escapes too."""
    return one_line(worded(text))


def takes_all_letters() -> bool:
    """Whether stdout can show any text as it is."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def _forgiving(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        # Started with the stream closed.
        return io.TextIOWrapper(
            io.BufferedWriter(ForgivingStream(io.FileIO(descriptor, "wb", closefd=False))), "utf-8", "backslashreplace"
        )
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    buffer: Any = stream.buffer
    return io.TextIOWrapper(
        io.BufferedWriter(ForgivingStream(getattr(buffer, "raw", buffer))),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


def _fill_closed_descriptors() -> None:
    """Put the null device where a standard stream is closed: else the next file opened would get its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given, so this takes just the one that is missing.
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def duration(seconds: float) -> str:
    """A time for people: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
