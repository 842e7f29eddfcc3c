"""The bytes of an open file: read into memory, or seen through a mapping that takes none.

A process that touches a page of a mapping that the file no longer has is ended by the system without a word. So
everything that goes through a file once reads it; only headers, and weights that would fill the memory, are mapped.

Systems count all of a private, writable mapping as memory that may be needed, however little is touched, and refuse one
that is larger than the memory they have. Headers are seen through a shared, read-only one, which counts nothing.
Weights get a private one where the system lets it go uncounted or has enough, so that changing a tensor in place
changes memory and never the file; elsewhere they get the read-only one, where changing them ends the process.
"""

from __future__ import annotations

import io
import mmap
import os
import platform
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import torch

from loraloom.errors import FileError, FileFormatError
from loraloom.reading import open_file

__all__ = ["FileBytes", "open_bytes"]


class FileBytes:
    """An open file that several threads may read. Made by :func:`open_bytes`."""

    def __init__(self, path: Path, descriptor: int, mapping: mmap.mmap | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._file = io.FileIO(descriptor, closefd=False)
        self._mapping = mapping
        """Read-only; None for an empty file."""
        self._private: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._release = weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, end: int) -> torch.Tensor:
        """The bytes ``start`` to ``end``, uint8, in memory of their own.

        Raises FileFormatError if they are gone, FileError if they cannot be read.
        """
        raw = torch.empty(end - start, dtype=torch.uint8)
        target = raw.numpy().data
        position = 0
        with self._lock:
            try:
                self._file.seek(start)
                while position < len(target):
                    count = self._file.readinto(target[position:])
                    if not count:
                        raise self._shorter()
                    position += count
            except OSError as error:
                raise FileError(f"{self._path}: cannot be read, {error.strerror or error}") from error
        return raw

    def mapped(self, start: int, end: int) -> torch.Tensor:
        """The bytes ``start`` to ``end``, uint8, as a view of the file that should not be written."""
        if self._mapping is None or os.fstat(self._descriptor).st_size < end:
            raise self._shorter()
        mapping = self._weights(self._mapping)
        if mapping is not self._mapping:
            return torch.frombuffer(mapping, dtype=torch.uint8, count=end - start, offset=start)
        array = np.frombuffer(mapping, dtype=np.uint8, count=end - start, offset=start)
        # torch warns of memory that it must not write, once in each process, even if this was intended.
        return torch.from_numpy(np.asarray(_Unguarded(array)))

    def _weights(self, shared: mmap.mmap) -> mmap.mmap:
        """A private mapping, made when it is first asked for; the shared one where the system has no room for it."""
        with self._lock:
            if self._private is None:
                try:
                    self._private = map_private(self._descriptor)
                except OSError:
                    self._private = shared
            return self._private

    def view(self) -> memoryview:
        """All of the file, to look for its headers."""
        return memoryview(b"" if self._mapping is None else self._mapping)

    def close(self) -> None:
        """Let go of the file; mapped tensors keep their mapping."""
        self._mapping = self._private = None
        self._release()

    def _shorter(self) -> FileFormatError:
        return FileFormatError(
            f"{self._path}: has become shorter while it was being read",
            "another program is writing it: wait for that to end, and get the file again if it was cut off",
        )


def map_private(descriptor: int) -> mmap.mmap:
    """Map a file copy-on-write, without reserving memory for the copies where the system can be told so."""
    if _NO_RESERVE and sys.platform != "win32":
        return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)


_KNOWN_MACHINES = ("x86_64", "aarch64", "riscv64")
_LINUX = 0x4000 if sys.platform == "linux" and platform.machine() in _KNOWN_MACHINES else 0
_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", _LINUX)
"""Python names the flag since 3.13. macOS and Windows have nothing like it: macOS never counts, Windows always."""


class _Unguarded:
    """An array of read-only memory that does not say so."""

    def __init__(self, array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        self._array = array  # keeps the mapping
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def open_bytes(path: Path) -> FileBytes:
    """Open an ordinary file. Raises MissingFileError, FileFormatError (a folder, a pipe) or FileError."""
    try:
        with open_file(path) as file:
            is_empty = file.seek(0, os.SEEK_END) == 0  # nothing to map
            mapping = None if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return FileBytes(path, os.dup(file.fileno()), mapping)
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read, {error}", "check the disk it lies on, and its permissions") from error
