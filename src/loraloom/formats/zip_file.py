"""The zip archives that torch writes, checked so strictly that every byte of the file has one meaning.

Members are stored, never compressed, follow one another without gaps from the first byte of the file, appear once,
and say the same in their own header, in their trailer and in the directory. Source: PKWARE's APPNOTE.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from loraloom.errors import FileFormatError, UnsafeFileError
from loraloom.formats.entries import MAX_TENSORS, show

__all__ = ["Member", "ZipWriter", "read_zip"]

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
_ENCRYPTED, _TRAILER = 0x0001, 0x0008
_ALLOWED_FLAGS = _TRAILER | 0x0800  # 0x0800: names are UTF-8
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_DAMAGED = "the file is damaged or was not downloaded completely"


@dataclass(frozen=True)
class Member:
    """A file inside the archive: its name, the bytes ``start`` to ``end`` that hold it, and their CRC-32."""

    name: str
    start: int
    end: int
    checksum: int


@dataclass(frozen=True)
class _Record:
    """What the directory says about a member."""

    name: bytes
    flags: int
    checksum: int
    size: int
    offset: int


def read_zip(view: memoryview, where: str) -> dict[str, Member]:
    """Every member by name, in the order of the file. Raises FileFormatError or UnsafeFileError."""
    directory = _directory(view, where)
    start = directory.start
    records = sorted(_records(view, directory, where), key=lambda record: record.offset)
    members: dict[str, Member] = {}
    position = 0
    for record in records:
        if record.offset != position:
            raise UnsafeFileError(f"{where}: its zip members overlap or leave a gap at byte {position}", _DAMAGED)
        member, position = _member(view, record, start, where)
        if member.name in members:
            raise UnsafeFileError(f"{where}: its zip holds {show(member.name)} twice")
        members[member.name] = member
    if position != start:
        raise UnsafeFileError(f"{where}: its zip hides {start - position} bytes before its directory", _DAMAGED)
    return members


@dataclass(frozen=True)
class _Directory:
    """The list of members: how many there are, and the bytes that hold it, as a record behind them says.

    ``end``: where that record begins, which has to be where the list ends.
    """

    count: int
    length: int
    start: int
    end: int


def _directory(view: memoryview, where: str) -> _Directory:
    """The directory that both of the archive's records of it agree on, checked to be where they say it is."""
    directory = _last_record(view, where)
    large = _large_record(view, directory.end, where)
    if large is not None:
        _check_agreement(directory, large, where)
        directory = large

    if directory.start + directory.length != directory.end:
        raise FileFormatError(f"{where}: its zip directory is not where it should be", _DAMAGED)
    if directory.count > MAX_TENSORS or directory.count * _CENTRAL.size > directory.length:
        raise UnsafeFileError(f"{where}: its zip claims {directory.count} members", _DAMAGED)
    return directory


def _last_record(view: memoryview, where: str) -> _Directory:
    """What the last bytes of every archive say; numbers that are too large for them are at their limit."""
    start_of_record = len(view) - _END.size
    if start_of_record < 0 or bytes(view[start_of_record : start_of_record + 4]) != b"PK\x05\x06":
        raise FileFormatError(f"{where}: its zip does not end with a directory", _DAMAGED)
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(view, start_of_record)
    if disk or first_disk or here != count or comment:
        raise FileFormatError(f"{where}: its zip has an unusual directory", _DAMAGED)
    return _Directory(count, length, start, start_of_record)


def _large_record(view: memoryview, last_record: int, where: str) -> _Directory | None:
    """What a large archive says in longer numbers before its last record; None for one that is not large."""
    locator = last_record - _LOCATOR64.size
    if locator < 0 or bytes(view[locator : locator + 4]) != b"PK\x06\x07":
        return None

    # The record stands directly before its locator, at its shortest: between the two nothing can hide.
    _, disk, offset, disks = _LOCATOR64.unpack_from(view, locator)
    if disk or disks != 1 or offset + _END64.size != locator:
        raise FileFormatError(f"{where}: its zip has an unusual directory", _DAMAGED)
    signature, record, _, _, disk, first_disk, here, count, length, start = _END64.unpack_from(view, offset)
    if signature != b"PK\x06\x06" or record != _END64.size - 12 or disk or first_disk or here != count:
        raise FileFormatError(f"{where}: its zip has an unusual directory", _DAMAGED)
    return _Directory(count, length, start, offset)


def _check_agreement(last: _Directory, large: _Directory, where: str) -> None:
    """UnsafeFileError unless every number is the same in both or at its limit: two readers would see two files."""
    for short, long, limit in (
        (last.count, large.count, _MAX16),
        (last.length, large.length, _MAX32),
        (last.start, large.start, _MAX32),
    ):
        if short not in (long, limit):
            raise UnsafeFileError(f"{where}: its two zip directories contradict each other", _DAMAGED)


def _records(view: memoryview, directory: _Directory, where: str) -> list[_Record]:
    position, end = directory.start, directory.end
    records: list[_Record] = []
    for _ in range(directory.count):
        if position + _CENTRAL.size > end:
            raise FileFormatError(f"{where}: its zip directory is cut off", _DAMAGED)
        (signature, _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length, comment_length,
         disk, _, attributes, offset) = _CENTRAL.unpack_from(view, position)  # fmt: skip

        body = position + _CENTRAL.size
        position = body + name_length + extra_length + comment_length
        if signature != b"PK\x01\x02" or position > end or disk:
            raise FileFormatError(f"{where}: its zip directory is damaged", _DAMAGED)
        name = bytes(view[body : body + name_length])
        if flags & ~_ALLOWED_FLAGS or method:
            raise UnsafeFileError(f"{where}: its zip member {show(name)} is compressed or encrypted")
        if attributes & 0x10 or (attributes >> 16) & 0xF000 not in (0, 0x8000):
            raise UnsafeFileError(f"{where}: its zip member {show(name)} is a folder or a link")
        extra = bytes(view[body + name_length : body + name_length + extra_length])
        size, packed, offset = _large_numbers(extra, [size, packed, offset], where)
        if size != packed:
            raise UnsafeFileError(f"{where}: its zip member {show(name)} has two sizes")
        records.append(_Record(name, flags, checksum, size, offset))

    if position != end:
        raise FileFormatError(f"{where}: its zip directory has something behind its last entry", _DAMAGED)
    return records


def _large_numbers(extra: bytes, numbers: list[int], where: str) -> list[int]:
    """Replace each number that is too large for its field by the one in the zip64 field."""
    position = 0
    while position < len(extra):
        if position + 4 > len(extra):
            raise FileFormatError(f"{where}: its zip directory is damaged", _DAMAGED)
        kind, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if len(field) != length:
            raise FileFormatError(f"{where}: its zip directory is damaged", _DAMAGED)
        if kind == 1:
            for index, number in enumerate(numbers):
                if number == _MAX32:
                    if len(field) < 8:
                        raise FileFormatError(f"{where}: its zip directory is damaged", _DAMAGED)
                    numbers[index] = int.from_bytes(field[:8], "little")
                    field = field[8:]
    return numbers


def _member(view: memoryview, record: _Record, limit: int, where: str) -> tuple[Member, int]:
    """The member that a record describes, and the byte after it."""
    label = show(record.name)
    if record.offset + _LOCAL.size > limit:
        raise FileFormatError(f"{where}: its zip member {label} lies outside the file", _DAMAGED)
    signature, _, flags, method, _, _, checksum, packed, size, name_length, extra_length = _LOCAL.unpack_from(
        view, record.offset
    )

    name_start = record.offset + _LOCAL.size
    start = name_start + name_length + extra_length
    end = start + record.size
    if signature != b"PK\x03\x04" or end > limit:
        raise FileFormatError(f"{where}: its zip member {label} lies outside the file", _DAMAGED)
    if bytes(view[name_start : name_start + name_length]) != record.name or flags != record.flags or method:
        raise UnsafeFileError(f"{where}: its zip member {label} contradicts the directory", _DAMAGED)
    extra = bytes(view[name_start + name_length : start])

    size, packed = _large_numbers(extra, [size, packed], where)
    following: int | None = end
    expected: tuple[tuple[int, ...], ...] = ((record.checksum,), (record.size,), (record.size,))
    if flags & _TRAILER:  # the numbers stand behind the member, here too or only zeros
        following = _after_trailer(view, record, end, limit)
        expected = ((0, record.checksum), (0, record.size), (0, record.size))
    agree = all(number in allowed for number, allowed in zip((checksum, packed, size), expected, strict=True))
    if following is None or not agree:
        raise UnsafeFileError(f"{where}: its zip member {label} contradicts the directory", _DAMAGED)
    return Member(_member_name(record.name, where), start, end, record.checksum), following


def _after_trailer(view: memoryview, record: _Record, position: int, limit: int) -> int | None:
    """The byte after the trailer with checksum and sizes that begins at ``position``, or None if it is wrong."""
    for form in ("<4sIII", "<4sIQQ"):
        after = position + struct.calcsize(form)
        expected = struct.pack(form, b"PK\x07\x08", record.checksum, *[record.size & _mask(form)] * 2)
        if after <= limit and bytes(view[position:after]) == expected:
            return after
    return None


def _mask(form: str) -> int:
    return _MAX32 if form.endswith("I") else 2**64 - 1


def _member_name(raw: bytes, where: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{where}: its zip holds a member whose name is not valid UTF-8") from error
    parts = name.split("/")
    if "\\" in name or min(name, default=" ") < " " or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFileError(f"{where}: its zip member {show(name)} has a name that leads elsewhere")
    return name


class ZipWriter:
    """Writes members one after the other into a new, seekable file; ``close`` writes the directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._directory: list[bytes] = []

    def add(self, name: str, size: int, load: Callable[[], bytes | memoryview], *, alignment: int = 1) -> None:
        """Add a member of ``size`` bytes; its first byte lies at a multiple of ``alignment``."""
        offset = self._file.tell()
        raw_name = name.encode("utf-8")
        large = struct.pack("<HHQQ", 1, 16, size, size) if size >= _MAX32 else b""
        start = offset + _LOCAL.size + len(raw_name) + len(large)
        extra = large
        if start % alignment:
            padding = -(start + 4) % alignment
            extra += struct.pack("<HH", 0x4246, padding) + bytes(padding)  # torch's own mark for padding, "FB"
        version = 45 if large else 20
        stored = _MAX32 if large else size

        def header(checksum: int) -> bytes:
            fields = (version, 0x0800, 0, 0, 0x21, checksum, stored, stored, len(raw_name), len(extra))
            return _LOCAL.pack(b"PK\x03\x04", *fields) + raw_name + extra

        self._file.write(header(0))
        data = load()
        checksum = zlib.crc32(data)
        self._file.write(data)
        del data
        end = self._file.tell()
        self._file.seek(offset)
        self._file.write(header(checksum))
        self._file.seek(end)
        self._directory.append(_directory_entry(raw_name, checksum, size, offset))

    def close(self) -> None:
        """Write the directory."""
        start = self._file.tell()
        for entry in self._directory:
            self._file.write(entry)
        end = self._file.tell()
        count, length = len(self._directory), end - start
        if count >= _MAX16 or start >= _MAX32 or length >= _MAX32:
            self._file.write(_END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start))
            self._file.write(_LOCATOR64.pack(b"PK\x06\x07", 0, end, 1))
        counts = min(count, _MAX16)
        self._file.write(_END.pack(b"PK\x05\x06", 0, 0, counts, counts, min(length, _MAX32), min(start, _MAX32), 0))


def _directory_entry(name: bytes, checksum: int, size: int, offset: int) -> bytes:
    large = [number for number in (size, size, offset) if number >= _MAX32]
    extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    version = 45 if large else 20
    stored, place = min(size, _MAX32), min(offset, _MAX32)
    fields = (version, version, 0x0800, 0, 0, 0x21, checksum, stored, stored, len(name), len(extra), 0, 0, 0, 0, place)
    return _CENTRAL.pack(b"PK\x01\x02", *fields) + name + extra
