"""The safetensors form: a JSON header checked strictly, then the tensors' bytes without holes.

Source: the format's description in the safetensors repository. Stricter than the reference library, which lets
duplicate names and leading spaces through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import torch

from loraloom.errors import FileFormatError, UnsafeFileError
from loraloom.formats.entries import MAX_TENSORS, Contents, Entry, TensorInfo, check_name, check_shape, show

__all__ = [
    "DTYPE_NAMES",
    "MAX_HEADER_BYTES",
    "looks_like_safetensors",
    "read_safetensors",
    "safetensors_header",
    "safetensors_order",
]

MAX_HEADER_BYTES = 100_000_000
MAX_HEADER_MARKS = 5_000_000

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "I16": torch.int16,
        "U16": torch.uint16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I32": torch.int32,
        "U32": torch.uint32,
        "F32": torch.float32,
        "C64": torch.complex64,
        "F64": torch.float64,
        "I64": torch.int64,
        "U64": torch.uint64,
    }
)
"""In the order of the reference library, which writes the tensors of the last type first."""
DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


def looks_like_safetensors(view: memoryview) -> bool:
    """Whether the file begins like a safetensors file: the length of a header, then a brace."""
    return len(view) >= 8 and (bytes(view[8:9]) == b"{" or bytes(view[4:8]) == bytes(4))


def read_safetensors(view: memoryview, where: str) -> Contents:
    """Check the header and say where every tensor lies; no tensor is touched.

    Raises FileFormatError (UnsafeFileError for a header that would take memory without bound).
    """
    header, data_start = _read_header(view, where)
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise FileFormatError(f"{where}: the metadata in its header is not a table of texts")
    if len(header) > MAX_TENSORS:
        raise UnsafeFileError(f"{where}: its header lists {len(header)} tensors, more than any real model has")
    entries = {name: _entry(name, described, data_start, where) for name, described in header.items()}
    _check_layout(entries, data_start, len(view), where)
    return Contents("safetensors", entries, metadata)


def _read_header(view: memoryview, where: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(view[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise UnsafeFileError(f"{where}: its header claims {length} bytes, more than any real file has")
    if length > len(view) - 8:
        raise FileFormatError(
            f"{where}: its header claims {length} bytes but the file has {len(view)}",
            "the file is damaged or was not downloaded completely",
        )
    raw = bytes(view[8 : 8 + length])
    if raw[:1] != b"{":
        raise FileFormatError(f"{where}: its safetensors header does not begin with a brace")
    if sum(raw.count(mark) for mark in (b"{", b"[", b",")) > MAX_HEADER_MARKS:
        raise UnsafeFileError(f"{where}: its header has far more entries than any real file")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise FileFormatError(f"{where}: its header names the same thing twice")
        return found

    def no_constants(text: str) -> NoReturn:
        raise ValueError(text)

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where}: its safetensors header is not valid JSON") from error
    if type(header) is not dict:
        raise FileFormatError(f"{where}: its safetensors header is not a table")
    return header, 8 + length


def _entry(name: str, described: Any, data_start: int, where: str) -> Entry:
    if problem := check_name(name):
        raise FileFormatError(f"{where}: {problem}")
    if type(described) is not dict or set(described) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{where}: tensor {show(name)} is not described by dtype, shape and data_offsets")

    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise FileFormatError(f"{where}: tensor {show(name)} has the unknown type {show(dtype)}")
    if problem := check_shape(shape):
        raise FileFormatError(f"{where}: tensor {show(name)} cannot be read, {problem}")

    # Exact types, not isinstance: JSON's true is an int to Python, and would pass for a place.
    if type(offsets) is not list or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
        raise FileFormatError(f"{where}: tensor {show(name)} has no valid data_offsets")

    info = TensorInfo(DTYPES[dtype], tuple(shape))
    # Offsets that span another length than the shape needs would show bytes of the tensor next door.
    begin, end = offsets
    if begin < 0 or end - begin != info.nbytes:
        raise FileFormatError(
            f"{where}: tensor {show(name)} needs {info.nbytes} bytes but its offsets span {end - begin}"
        )
    return Entry(info, data_start + begin, data_start + end)


def _check_layout(entries: Mapping[str, Entry], data_start: int, file_size: int, where: str) -> None:
    """The tensors must fill the data part without hole or overlap."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise FileFormatError(f"{where}: tensor {show(name)} overlaps another one or leaves a hole before it")
        position = entry.end
    if position > file_size:
        raise FileFormatError(
            f"{where}: its tensors need {position} bytes but the file has {file_size}",
            "the file is damaged or was not downloaded completely",
        )
    if position < file_size:
        raise FileFormatError(f"{where}: {file_size - position} bytes follow its last tensor")


def safetensors_order(name: str, info: TensorInfo) -> tuple[int, str]:
    """Sort key of a tensor in a file: large types first, so that every tensor is aligned without holes, then names."""
    return -_RANKS[info.dtype], name


_RANKS = MappingProxyType({dtype: rank for rank, dtype in enumerate(DTYPES.values())})


def safetensors_header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The length and the header of a file that holds these tensors in this order, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, info in infos.items():
        offsets = [position, position + info.nbytes]
        header[name] = {"dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        position += info.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
