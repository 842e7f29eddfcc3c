"""The hashes by which programs know a file, computed from its bytes and remembered until it changes.

What a file says about itself (``sshs_model_hash`` and the like) is a claim: anybody can write it, and some programs
write one that was never true (sd-scripts' ``merge_lora.py`` hashes before it rounds). Nothing here reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loraloom.control import Control, heed, keep_going
from loraloom.errors import FileError, LoraloomError
from loraloom.folders import cache_folder
from loraloom.formats.files import old_hash, write_text
from loraloom.formats.safetensors_file import MAX_HEADER_BYTES
from loraloom.reading import open_file, read_text

__all__ = ["FileHashes", "compute_hashes", "file_hashes", "has_hash", "is_hash"]

OLD_DIGITS = 8
"""Length of the hashes that programs used before 2023."""
_OLD_START = 0x100000
_PIECE = 1 << 20
_MOST_REMEMBERED = 5000


@dataclass(frozen=True)
class FileHashes:
    """``sha256`` of all bytes (its beginning is AutoV2); ``content`` of what follows a safetensors header (AutoV3).

    Of a file that is not safetensors, ``content`` is ``sha256``. Both have 64 hex digits.
    """

    sha256: str
    content: str


def file_hashes(path: Path, control: Control = keep_going) -> FileHashes:
    """Both hashes of a file, read once and remembered in the user's cache by path, size and times.

    Raises MissingFileError or FileError for what cannot be read.
    """
    if not path.is_file():
        return compute_hashes(path, control)  # raises the error that fits
    status = path.stat()
    stamp = f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"
    key = f"{path.resolve()}|{stamp}"
    remembered = cache_folder() / "hashes.json"
    known = _remembered(remembered)
    if key not in known:
        found = compute_hashes(path, control)
        known[key] = f"{found.sha256} {found.content}"
        with suppress(OSError, LoraloomError):  # a cache that cannot be written is only slower
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_text(remembered, json.dumps(dict(list(known.items())[-_MOST_REMEMBERED:]), indent=1))
    return FileHashes(*known[key].split())


def is_hash(digits: str) -> bool:
    """Whether these are enough hex digits to know a file by: 8 (the old kind), or 10 to 64."""
    return re.fullmatch(r"[0-9a-fA-F]{8}|[0-9a-fA-F]{10,64}", digits) is not None


def has_hash(path: Path, digits: str, control: Control = keep_going) -> bool:
    """Whether the bytes of the file have a hash that begins with these digits; False where they are no hash.

    Eight digits are the hash of 64 KiB in the middle, which a file of less than 1 MiB does not have. ``control``
    is heeded while a file is read.
    """
    wanted = digits.strip().lower()
    if not is_hash(wanted):
        return False
    if len(wanted) == OLD_DIGITS:
        return path.stat().st_size > _OLD_START and old_hash(path) == wanted
    hashes = file_hashes(path, control)
    return hashes.sha256.startswith(wanted) or hashes.content.startswith(wanted)


def compute_hashes(path: Path, control: Control = keep_going) -> FileHashes:
    """Both hashes, read from the file now. Raises FileError as :func:`file_hashes` does."""
    whole, content = hashlib.sha256(), hashlib.sha256()
    try:
        with open_file(path) as file:
            header = _header(path, file)
            whole.update(header)
            while piece := file.read(_PIECE):
                heed(control)
                whole.update(piece)
                content.update(piece)
    except OSError as error:
        raise FileError(f"{path}: cannot be read, {error.strerror or error}") from error
    return FileHashes(whole.hexdigest(), content.hexdigest() if header else whole.hexdigest())


def _header(path: Path, file: BinaryIO) -> bytes:
    """The header of a safetensors file, its length included; nothing of any other, which is then at its beginning."""
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and length <= MAX_HEADER_BYTES:
        rest = file.read(length - 1)
        if len(rest) == length - 1:
            return start + rest
    file.seek(0)
    return b""


def _remembered(path: Path) -> dict[str, str]:
    try:
        data = json.loads(read_text(path))
    except (FileError, ValueError, RecursionError):
        return {}
    known = data.items() if isinstance(data, dict) else ()
    pair = re.compile(r"[0-9a-f]{64} [0-9a-f]{64}")
    return {key: value for key, value in known if isinstance(value, str) and pair.fullmatch(value)}
