"""Files as answers: of a known type, never guessed by the browser, never shown as a page of this server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from loraloom.errors import MissingFileError
from loraloom.reading import open_file
from loraloom.studio.home import Home

__all__ = ["file_response", "home_file"]

_PIECE = 2**18
_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".txt": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".toml": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".jsonl": "text/plain; charset=utf-8",
}
"""What a browser may make something of. Everything else is bytes."""


def home_file(home: Home, folder: str, path: str) -> Path:
    """The file that a page means by ``path`` in a folder of the home (``runs/lion``).

    Raises FileError for a path that leads out of it, MissingFileError for one that is hidden.
    """
    if any(part.startswith(".") for part in path.split("/")):
        raise MissingFileError("files that are hidden are not given out", "choose one of the list")
    return home.resolve("home", f"{folder}/{path}")


def file_response(request: Request, path: Path) -> Response:
    """The bytes of an ordinary file, or that the browser has them already.

    Raises MissingFileError, FileFormatError or FileError.
    """
    file = open_file(path)
    found = os.fstat(file.fileno())
    tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
    headers = {
        "content-disposition": f"attachment; filename*=utf-8''{quote(path.name, errors='backslashreplace')}",
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": "private, no-cache",
        "etag": tag,
    }
    if tag in request.headers.get("if-none-match", ""):
        file.close()
        return Response(status_code=304, headers=headers)
    headers["content-length"] = str(found.st_size)
    kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
    return StreamingResponse(_pieces(file, found.st_size), headers=headers, media_type=kind)


def _pieces(file: BufferedReader, size: int) -> Iterator[bytes]:
    """As much as was there when it was opened: a log grows while it is read."""
    with file:
        while size and (piece := file.read(min(_PIECE, size))):
            size -= len(piece)
            yield piece
