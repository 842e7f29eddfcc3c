"""The one door for files that a person names: recipes, settings, tables, lists, captions, side files.

A name can lead to a pipe that nobody writes to (reading it waits forever), to a device (``/dev/zero`` never ends), to a
folder, or to a file of many gigabytes. Here every one of them is refused before it costs anything, in the same words.
"""

from __future__ import annotations

import codecs
import os
import stat
from io import BufferedReader
from pathlib import Path

from loraloom.errors import FileError, FileFormatError, MissingFileError

__all__ = ["check_readable", "open_file", "read_bytes", "read_text"]

MIB = 2**20

# What open() must not wait for: the other end of a pipe. Windows has no such pipes among its files.
_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

# UTF-32's mark begins with UTF-16's, so the longer ones come first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def check_readable(path: Path) -> None:
    """Raise MissingFileError, FileFormatError or FileError unless ``path`` is an ordinary file."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    _check_mode(path, mode)


def open_file(path: Path) -> BufferedReader:
    """Open an ordinary file for reading bytes, without waiting for anybody.

    What was opened is looked at, not what lay there a moment before. Raises MissingFileError (there is none),
    FileFormatError (a folder, a pipe, a device) or FileError (no permission, a name no system takes).
    """
    check_readable(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | _DO_NOT_WAIT)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, *, limit: int = 16 * MIB) -> bytes:
    """The content of an ordinary file of at most ``limit`` bytes.

    Raises MissingFileError, FileFormatError (a folder, a pipe, a device, or larger than ``limit``) or FileError.
    """
    with open_file(path) as file:
        try:
            # Not the size that the system states: files below /proc state none, and a file can grow while it is read.
            data: bytes = file.read(limit + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(data) > limit:
        size = f"{limit / MIB:g} MiB" if limit >= MIB else f"{limit} bytes"
        raise FileFormatError(f"{path}: is larger than {size}", "is this the right file?")
    return data


def read_text(path: Path, *, limit: int = 16 * MIB) -> str:
    """The text of an ordinary file of at most ``limit`` bytes: UTF-8, or what its byte order mark says.

    The mark is left out, and lines end with ``\\n`` as in Python's text mode. Raises what ``read_bytes`` raises, and
    FileFormatError with the line for bytes that are not text.
    """
    data = read_bytes(path, limit=limit)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data[len(mark) :][: error.start].decode(encoding, "replace").count("\n") + 1
        raise FileFormatError(f"{path}, line {line}: is not text in {encoding.upper()}", "save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise FileFormatError(f"{path}, line {line}: holds a zero byte, so it is not text", "save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise FileFormatError(f"{path}: is a folder, not a file", "give a file inside it")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        kind = kinds.get(stat.S_IFMT(mode), "not an ordinary file")
        raise FileFormatError(f"{path}: is {kind}, not an ordinary file", "save the content as a file")


def _unreadable(path: Path, error: OSError | ValueError) -> FileError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return MissingFileError(f"{path}: there is no such file", "check the path")
    reason = getattr(error, "strerror", None) or str(error)
    return FileError(f"{str(path)!r}: cannot be read, {reason}", "check its name and permissions")
