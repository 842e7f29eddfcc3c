"""What a tensor is and where its bytes lie in a file; shared by the readers of every file form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

__all__ = ["Checksum", "Contents", "Entry", "TensorInfo", "check_name", "check_shape", "contiguous_stride", "show"]

MAX_ELEMENTS = 2**48
MAX_DIMENSIONS = 64
MAX_NAME = 1024
MAX_TENSORS = 200_000


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements laid out one after the other."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, and the bytes ``start`` to ``end`` that hold its elements."""

    info: TensorInfo
    start: int
    """Byte in the file (or in ``data``) of the first element."""
    end: int
    """Byte after the last element that the strides reach."""
    stride: tuple[int, ...] | None = None
    """Steps in elements, or None when the elements lie one after the other."""
    data: bytes | None = None
    """The bytes themselves when they are not mapped (numpy arrays inside a pickle)."""


@dataclass(frozen=True)
class Checksum:
    """A part of a file whose CRC-32 the file carries: the zip member's name, its bytes ``start`` to ``end``."""

    member: str
    start: int
    end: int
    crc: int


@dataclass
class Contents:
    """Everything a reader found in a file, before any tensor is touched."""

    kind: str
    entries: dict[str, Entry] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    extras: dict[str, object] = field(default_factory=dict)
    checksums: list[Checksum] = field(default_factory=list)
    """The parts that can be verified."""


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def check_shape(shape: object) -> str | None:
    """What is wrong with a declared shape, or None. A good one is whole numbers from 0 up, whose product a real tensor
    could have."""
    if not isinstance(shape, tuple | list):
        return "its shape is not a list"
    if len(shape) > MAX_DIMENSIONS:
        return f"it has {len(shape)} dimensions"
    product = 1
    for length in shape:
        if type(length) is not int or length < 0:
            return "its shape contains something other than whole numbers of 0 or more"
        product *= max(length, 1)
        if product > MAX_ELEMENTS:
            return "its shape is larger than any real tensor's"
    return None


def check_name(name: str) -> str | None:
    """What is wrong with a tensor's name, or None."""
    if len(name) > MAX_NAME:
        return f"a tensor's name is {len(name)} characters long"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"the tensor name {show(name)} is not valid Unicode"
    return None


def show(text: object) -> str:
    """A quoted piece of foreign text that is safe in a message: one line, printable, short."""
    piece = ascii(text if isinstance(text, str | bytes) else str(text)[:80])
    return piece if len(piece) <= 90 else f"{piece[:80]}...{piece[0]}"
