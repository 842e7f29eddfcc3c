"""Named tensors of a file, whatever its form, read lazily from the mapped file; and the streaming writer."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType

import torch

from loraloom.control import Control, heed, keep_going
from loraloom.errors import FileError, FileFormatError, OutputError
from loraloom.events import Listener, PieceFinished, ignore
from loraloom.formats.entries import MAX_TENSORS, Checksum, Contents, Entry, TensorInfo, check_name, show
from loraloom.formats.file_bytes import FileBytes, open_bytes
from loraloom.formats.files import atomic_writer
from loraloom.formats.safetensors_file import (
    DTYPE_NAMES,
    looks_like_safetensors,
    read_safetensors,
    safetensors_header,
    safetensors_order,
)
from loraloom.formats.torch_file import looks_like_torch, read_torch
from loraloom.formats.torch_writer import state_dict_pickle, write_torch_zip

__all__ = ["TensorFile", "TensorInfo", "TensorSource", "bytes_of", "is_finite", "open_tensors", "write_tensors"]

_CHUNK = 1 << 24


class TensorFile(Mapping[str, torch.Tensor]):
    """Lazy mapping from name to tensor over a file.

    ``file[name]`` reads a tensor into memory of its own, checked against the checksum that the file carries for it.
    ``file.mapped(name)`` reads nothing: a view of the file, for weights that would fill the memory twice.
    Keep the file as it is while it is in use; on Windows it can be replaced only after ``close()`` and after the
    mapped tensors are gone.
    """

    def __init__(self, path: Path, bytes_: FileBytes, contents: Contents) -> None:
        self.path = path
        self.kind = contents.kind
        """``safetensors``, ``zip`` or ``legacy`` (torch before 1.6)."""
        self.metadata = contents.metadata
        self.extras = contents.extras
        """Plain values that stood beside the tensors, such as ``epoch`` and ``global_step``."""
        self._entries = contents.entries
        self._parts = sorted(contents.checksums, key=lambda part: part.start)
        self._starts = [part.start for part in self._parts]
        self._checked: set[int] = set()
        self._bytes: FileBytes | None = bytes_

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        source = self._source()
        if entry.data is not None:
            return _shaped(torch.frombuffer(bytearray(entry.data), dtype=torch.uint8), entry)
        if entry.info.numel == 0:
            return torch.empty(entry.info.shape, dtype=entry.info.dtype)
        raw = source.read(entry.start, entry.end)
        part = self._part_of(entry)
        if part is not None and part.start not in self._checked:
            if (part.start, part.end) == (entry.start, entry.end):
                self._compare(part, zlib.crc32(raw.numpy().data), name)
            else:
                self._check_part(source, part, name)
        return _shaped(raw, entry)

    def mapped(self, name: str) -> torch.Tensor:
        """A view of the file's bytes (a copy where they are not aligned for their type): reads and checks nothing.

        It is not to be changed in place: that leaves the file alone, but where the system has no memory to spare for
        a copy **it ends the process**. Use :meth:`check` first where the content matters.
        """
        entry = self._entries[name]
        source = self._source()
        if entry.data is not None or entry.info.numel == 0 or entry.start % entry.info.dtype.itemsize:
            return self[name]
        return _shaped(source.mapped(entry.start, entry.end), entry)

    def check(self, name: str) -> None:
        """Read a tensor against the checksum that the file carries for it, once; raise FileFormatError if it differs.

        A zip has a checksum for each tensor. The stream of torch before 1.6 and safetensors have none.
        """
        source, part = self._source(), self._part_of(self._entries[name])
        if part is not None and part.start not in self._checked:
            self._check_part(source, part, name)

    def check_all(self, control: Control = keep_going) -> None:
        """Read every tensor against the checksums of the file; FileFormatError for the first that differs.

        ``control`` is heeded between two of them.
        """
        for name in self._entries:
            heed(control)
            self.check(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor, without touching its data."""
        return self._entries[name].info

    def verify(self) -> None:
        """Read the whole file against the checksums it carries (zip only); raise FileFormatError on a difference.

        Opening checks the small members only, since this costs one read of the file.
        """
        source = self._source()
        for part in self._parts:
            if part.start not in self._checked:
                self._check_part(source, part)

    def close(self) -> None:
        """Let go of the file. Tensors already taken stay valid; mapped ones keep the mapping until they are gone."""
        if self._bytes is not None:
            self._bytes.close()
        self._bytes = None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _source(self) -> FileBytes:
        if self._bytes is None:
            raise FileError(f"{self.path}: is closed already")
        return self._bytes

    def _part_of(self, entry: Entry) -> Checksum | None:
        """The part of the file with a checksum in which a tensor lies."""
        index = bisect_right(self._starts, entry.start) - 1
        if entry.data is not None or index < 0:
            return None
        part = self._parts[index]
        return part if entry.end <= part.end and part.start < part.end else None

    def _check_part(self, source: FileBytes, part: Checksum, name: str = "") -> None:
        crc = 0
        for position in range(part.start, part.end, _CHUNK):
            crc = zlib.crc32(source.read(position, min(position + _CHUNK, part.end)).numpy().data, crc)
        self._compare(part, crc, name)

    def _compare(self, part: Checksum, crc: int, name: str) -> None:
        if crc != part.crc:
            holding = f" (it holds the tensor {show(name)})" if name else ""
            raise FileFormatError(
                f"{self.path}: its member {show(part.member)} is damaged{holding}: "
                "its bytes do not give the checksum that the file has for them",
                "download or copy the file again",
            )
        self._checked.add(part.start)


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written: what it will be, and how to get it when its turn comes."""

    name: str
    info: TensorInfo
    load: Callable[[], torch.Tensor]


def open_tensors(path: Path) -> TensorFile:
    """Open a tensor file; its form is decided by its content, never by its name.

    No tensor data is touched. Raises MissingFileError, FileFormatError (damaged, or no tensor file) or
    UnsafeFileError (it asks for code to be run, or for memory without bound).
    """
    path = Path(path)
    return _found(open_bytes(path), path)


def _found(source: FileBytes, path: Path) -> TensorFile:
    """The tensors in these bytes."""
    try:
        with source.view() as view:
            contents = _read(view, str(path))
    except BaseException:
        source.close()
        raise
    return TensorFile(path, source, contents)


def _read(view: memoryview, where: str) -> Contents:
    if not len(view):
        raise FileFormatError(f"{where}: is empty", "the file was not downloaded or copied completely")
    if meaning := _other_form(bytes(view[:64])):
        raise FileFormatError(f"{where}: {meaning}", _EXPECTED)
    if looks_like_torch(view):
        return read_torch(view, where)
    if looks_like_safetensors(view):
        return read_safetensors(view, where)
    raise FileFormatError(f"{where}: is not a file of tensors of any known form", _EXPECTED)


_EXPECTED = "expected a .safetensors, .ckpt, .pt or .bin file"


def _other_form(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, if people often take it for a model."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a model: the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model itself: run git lfs pull"
    for signature, meaning in _OTHER_FORMS:
        if head.startswith(signature):
            return f"is {meaning}, not a file of tensors that can be read here"
    return None


_OTHER_FORMS = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "a Keras (HDF5) file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"RIFF", "a picture or a sound"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"%PDF", "a PDF document"),
)


def _shaped(raw: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The entry's tensor over its bytes, of which the first must be aligned for its type."""
    flat = raw.view(entry.info.dtype)
    return flat.view(entry.info.shape) if entry.stride is None else flat.as_strided(entry.info.shape, entry.stride)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite in a tensor of any shape.

    The smallest and the largest value say so (both are NaN if any is), in a thirtieth of the time that asking every
    half-precision value takes.
    """
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        return is_finite(torch.view_as_real(tensor.resolve_conj()))
    lowest, highest = (tensor if tensor.dtype.itemsize > 1 else tensor.float()).aminmax()
    return math.isfinite(float(lowest)) and math.isfinite(float(highest))


def write_tensors(
    path: Path,
    sources: Iterable[TensorSource] | Mapping[str, torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    extras: Mapping[str, object] | None = None,
    check: Callable[[Path], None] | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> None:
    """Write tensors to ``path``: safetensors for ``.safetensors``, torch's zip for ``.ckpt``, ``.pt`` and ``.bin``.

    Every source is loaded once, written and dropped; nothing appears at ``path`` before all is written. A zip holds
    ``{"state_dict": {...}, **extras}`` (plus ``metadata`` if any) and loads with ``torch.load(weights_only=True)``;
    safetensors has no place for ``extras`` and leaves them out. Strides are not kept. ``check`` is given the finished
    file before it takes its place at ``path``, and may refuse it by an error. ``listener`` hears of every tensor, and
    ``control`` is heeded before each; what it ends leaves ``path`` as it was.
    Raises OutputError: wrong suffix, no space, or a source that is not what its info promised.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise OutputError(
            f"{path}: the name must end in .safetensors, .ckpt, .pt or .bin", "the suffix chooses the form of the file"
        )
    wanted = _told(_checked_sources(path, sources), listener, control)
    write(path, wanted, _checked_metadata(path, metadata or {}), dict(extras or {}), check)


def _told(sources: Mapping[str, TensorSource], listener: Listener, control: Control) -> dict[str, TensorSource]:
    """The same sources, which heed the control before they are loaded and tell that they were."""

    numbers = count(1)  # by when they are loaded: a file has them in an order of its own

    def told(load: Callable[[], torch.Tensor]) -> torch.Tensor:
        heed(control)
        tensor = load()
        listener(PieceFinished("tensors", next(numbers), len(sources)))
        return tensor

    return {name: TensorSource(name, source.info, partial(told, source.load)) for name, source in sources.items()}


def _checked_sources(
    path: Path, sources: Iterable[TensorSource] | Mapping[str, torch.Tensor]
) -> dict[str, TensorSource]:
    if isinstance(sources, TensorFile):
        sources = [TensorSource(name, sources.info(name), _getter(sources, name)) for name in sources]
    elif isinstance(sources, Mapping):
        sources = [
            TensorSource(name, TensorInfo(tensor.dtype, tuple(tensor.shape)), _getter(sources, name))
            for name, tensor in sources.items()
        ]
    found: dict[str, TensorSource] = {}
    for source in sources:
        if source.name in found:
            raise OutputError(f"{path}: the tensor {show(source.name)} was to be written twice")
        if problem := check_name(source.name):
            raise OutputError(f"{path}: {problem}")
        if source.info.dtype not in DTYPE_NAMES:
            raise OutputError(
                f"{path}: tensor {show(source.name)} has the type {source.info.dtype}, which no file holds"
            )
        found[source.name] = source
    if len(found) > MAX_TENSORS:
        raise OutputError(f"{path}: {len(found)} tensors are more than a file may hold")
    return found


def _getter(tensors: Mapping[str, torch.Tensor], name: str) -> Callable[[], torch.Tensor]:
    return lambda: tensors[name]


def _checked_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise OutputError(f"{path}: the metadata {show(key)} is not a text")
    return dict(metadata)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor on any device, of any strides, one after the other."""
    flat = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.stride() != (1,):  # one element counts as contiguous whatever its stride, and is then no row of bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def _load_bytes(path: Path, source: TensorSource) -> memoryview:
    """The source's elements one after the other; the tensor must be what was announced."""
    tensor = source.load()
    if TensorInfo(tensor.dtype, tuple(tensor.shape)) != source.info:
        raise OutputError(
            f"{path}: tensor {show(source.name)} came as {tensor.dtype} {tuple(tensor.shape)} "
            f"but {source.info.dtype} {source.info.shape} was announced"
        )
    return bytes_of(tensor)


def _write_safetensors(
    path: Path,
    sources: dict[str, TensorSource],
    metadata: dict[str, str],
    extras: dict[str, object],
    check: Callable[[Path], None] | None,
) -> None:
    if "__metadata__" in sources:
        raise OutputError(f"{path}: no tensor can be named '__metadata__' in a safetensors file")
    ordered = sorted(sources.values(), key=lambda source: safetensors_order(source.name, source.info))
    header = safetensors_header({source.name: source.info for source in ordered}, metadata)
    total = len(header) + sum(source.info.nbytes for source in ordered)
    with atomic_writer(path, nbytes=total, check=check) as file:
        file.write(header)
        for source in ordered:
            file.write(_load_bytes(path, source))


def _write_zip(
    path: Path,
    sources: dict[str, TensorSource],
    metadata: dict[str, str],
    extras: dict[str, object],
    check: Callable[[Path], None] | None,
) -> None:
    infos = {source.name: source.info for source in sources.values()}
    try:
        pickle = state_dict_pickle(infos, metadata, extras)
    except ValueError as error:
        raise OutputError(f"{path}: {error}") from error
    total = len(pickle) + sum(info.nbytes + 256 for info in infos.values())
    with atomic_writer(path, nbytes=total, check=check) as file:
        write_torch_zip(file, infos, pickle, lambda name: _load_bytes(path, sources[name]))


_WRITERS = {
    ".safetensors": _write_safetensors,
    ".ckpt": _write_zip,
    ".pt": _write_zip,
    ".pth": _write_zip,
    ".bin": _write_zip,
}
