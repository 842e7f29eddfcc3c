"""The metadata of a safetensors file replaced, every other byte of it kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from loraloom.control import Control, heed, keep_going
from loraloom.errors import FileFormatError, OutputError
from loraloom.formats.files import atomic_writer
from loraloom.formats.safetensors_file import MAX_HEADER_BYTES
from loraloom.formats.tensors import open_tensors
from loraloom.reading import open_file

__all__ = ["write_with_metadata"]

_PIECE = 1 << 24


def write_with_metadata(path: Path, output: Path, metadata: Mapping[str, str], control: Control = keep_going) -> None:
    """Write ``path`` to ``output`` (which may be the same file) with this metadata in place of its own.

    The tensors' bytes are copied as they are, in their order; the result replaces ``output`` when it is whole.
    ``control`` is heeded between two pieces of the file; what it ends leaves ``output`` as it was. Raises
    FileFormatError for a file that is not safetensors or is damaged, OutputError for metadata that readers refuse.
    """
    with open_tensors(path) as tensors:
        if tensors.kind != "safetensors":
            raise FileFormatError(f"{path} is not a safetensors file: it has no metadata of this kind")
    for key, value in metadata.items():
        try:
            f"{key}{value}".encode()
        except UnicodeEncodeError as error:
            raise OutputError(f"{path}: the metadata {key!r} is not valid text") from error
    with open_file(path) as source:
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(length))
        header.pop("__metadata__", None)
        header = {"__metadata__": dict(metadata), **header} if metadata else header
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        if len(text) > MAX_HEADER_BYTES:
            raise OutputError(f"{path}: {len(text)} bytes of metadata are more than readers take", "shorten it")
        with atomic_writer(output, nbytes=path.stat().st_size + len(text) - length) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            while piece := source.read(_PIECE):
                heed(control)
                file.write(piece)
