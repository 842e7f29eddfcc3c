"""Files that a person hands over for a dataset: pictures, captions beside them, archives of both.

Each is looked at before it is kept: pictures are decoded whole, by the readers that training uses. Each gets an answer
of its own, and none takes another's place. Names are made fit for every system.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from loraloom.data.captions import read_caption
from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, SettingsError
from loraloom.file_names import check_name, clean_name, entry_of
from loraloom.formats.files import make_folder, output_error, require_space, sha256_of, sync_folder
from loraloom.formats.pictures import DAMAGE, SUFFIXES, damage_error, opened, picture_budget, signature
from loraloom.formats.unfinished import remove_leftovers, unfinished_file
from loraloom.plain_data import shown, size_text
from loraloom.reading import open_file

__all__ = [
    "DatasetFile",
    "Intake",
    "Limits",
    "Received",
    "create_dataset",
    "dataset_files",
    "dataset_in",
    "list_datasets",
]

_CAPTIONS = (".txt", ".caption")
_OF_THE_SYSTEM = re.compile(r"(?:^|/)(?:__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
_LONGEST_FOLDER = 100
_MOST_FOLDERS = 4
_PIECE = 2**20
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What Python's reader raises on damaged archives, and on ways of packing that it does not know."""
_IS_LINK, _FILE_TYPE = 0o120000, 0o170000


@dataclass(frozen=True)
class Limits:
    """How much is taken, in bytes and in files a folder."""

    file: int = 256 * 2**20
    archive: int = 4 * 2**30
    unpacked: int = 8 * 2**30
    """Of everything in one archive; it says too little of itself where somebody means ill."""
    directory: int = 8 * 2**20
    """Of an archive's list of what it holds: about 70,000 files."""
    files: int = 20_000


@dataclass(frozen=True)
class Received:
    """What became of one file. ``given``: its name as it came, in an archive with the archive's.

    ``kept``: its path in the dataset, with slashes; None where it was not kept, for the reason in ``problem``.
    ``note``: what a person may want to know of one that was kept, or was nothing that matters.
    """

    given: str
    kept: str | None = None
    note: str = ""
    problem: str = ""
    hint: str = ""


@dataclass(frozen=True)
class DatasetFile:
    """A picture or caption of a dataset: its path in it, with slashes, and its bytes."""

    path: str
    nbytes: int


def create_dataset(datasets: Path, name: str) -> Path:
    """A new folder for a dataset, ``name-2`` where the name is taken.

    Raises SettingsError for a name that not every system can keep, OutputError where it cannot be made.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise SettingsError([f"name = {shown(name)}: {error}"]) from error
    path, number = datasets / name, 1
    while True:
        try:
            make_folder(path, exclusive=True)
            return path
        except FileExistsError:
            number += 1
            path = datasets / f"{name}-{number}"


def dataset_in(datasets: Path, name: str) -> Path:
    """The dataset ``name``. MissingFileError where there is none, also for a name that would lead elsewhere."""
    path = entry_of(datasets, name)
    if path is None or name.startswith(".") or not path.is_dir():
        raise MissingFileError(f"there is no dataset {shown(name)}", "choose one of the list, or make a new one")
    return path


def list_datasets(datasets: Path) -> list[str]:
    """The names of all datasets. FileError where the folder cannot be read."""
    try:
        return sorted(path.name for path in datasets.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise FileError(f"{datasets}: cannot be read, {error.strerror}", "check its permissions") from error


def dataset_files(dataset: Path) -> list[DatasetFile]:
    """The pictures and captions of a dataset, by path."""
    endings = {ending for endings in SUFFIXES.values() for ending in endings} | set(_CAPTIONS)
    found = []
    for folder, folders, names in os.walk(dataset):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder) / name
            if path.suffix.lower() in endings and not name.startswith(".") and path.is_file():
                found.append(DatasetFile(path.relative_to(dataset).as_posix(), path.stat().st_size))
    return sorted(found, key=lambda file: file.path)


class Intake:
    """Takes files into datasets. One serves any number of threads: pictures that are decoded at once share memory."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._budget = picture_budget()

    @contextmanager
    def arriving(self, dataset: Path) -> Iterator[Path]:
        """A new hidden file on the dataset's disk for the bytes of one that comes; it is gone at the end.

        Raises OutputError.
        """
        remove_leftovers(dataset)
        with _new_file(dataset) as path:
            yield path

    def check_size(self, given: str, nbytes: int) -> None:
        """Raise FileFormatError for a file that is larger than any that is taken."""
        most = self.limits.archive if given.lower().endswith(".zip") else self.limits.file
        if nbytes > most:
            raise FileFormatError(f"is larger than {size_text(most)}", "shrink it, or put it into the dataset's folder")

    def take(self, file: Path, dataset: Path, given: str) -> list[Received]:
        """Look at a file that has arrived, under the name it was given, and keep it or what it holds.

        Raises OutputError where the disk takes no more; what was kept before stays.
        """
        try:
            with open_file(file) as reader:
                kind = signature(reader.read(64))
            if kind != "zip":
                return [self._taken(file, dataset, given, kind)]
            return list(self._unpacked(file, dataset, given))
        except FileFormatError as error:
            return [_refused(file, given, error)]

    def _taken(self, file: Path, dataset: Path, given: str, kind: str) -> Received:
        """One picture or caption. Raises FileFormatError with the reason why it cannot be kept."""
        name = given.replace("\\", "/")
        if _OF_THE_SYSTEM.search(name):
            return Received(given, note="is a file of the operating system, and was left out")
        size = file.stat().st_size
        if size > self.limits.file:
            raise FileFormatError(f"is larger than {size_text(self.limits.file)}", "shrink the picture")
        is_caption = Path(name).suffix.lower() in _CAPTIONS and kind not in SUFFIXES
        if is_caption:
            self._check_caption(file)
        elif kind == "zip":
            raise FileFormatError("is an archive inside an archive", "unpack it, and give what it holds")
        else:
            kind = self._decoded(file)
        path = _clean_path(dataset, name, "" if is_caption else kind)
        kept, is_new = self._put(file, dataset, path)
        relative = kept.relative_to(dataset).as_posix()
        return Received(given, relative, _note(name, relative, is_new=is_new))

    def _check_caption(self, file: Path) -> None:
        if file.stat().st_size == 0:
            return
        caption = read_caption(file)
        if caption.text is None and caption.problems and caption.problems[0].severity == "error":
            raise FileFormatError(caption.problems[0].problem, caption.problems[0].hint)

    def _decoded(self, file: Path) -> str:
        """What kind of picture it is, once all of it could be decoded."""
        try:
            with opened(file, budget=self._budget) as picture:
                picture.decode()
                return picture.form
        except FileError as error:
            raise FileFormatError(error.problem, error.hint) from error
        except DAMAGE as error:
            raise damage_error(error) from error

    def _put(self, file: Path, dataset: Path, path: Path) -> tuple[Path, bool]:
        """Give a file its name, or a number behind it where another file has that; whether it is new."""
        if not _is_inside(path.parent, dataset):
            raise FileFormatError("its folder is a link to another place here", "give it without that folder")
        make_folder(path.parent)
        if sum(1 for _ in os.scandir(path.parent)) >= self.limits.files:
            raise FileFormatError(
                f"is one too many: {path.parent.name} holds {self.limits.files} files", "take another"
            )

        # Looking first whether a name is free and taking it then would let two senders have the same one.
        digest, number, target = "", 1, path
        while True:
            try:
                _move(file, target)
                sync_folder(target.parent)
                return target, True
            except FileExistsError:
                digest = digest or sha256_of(file)
                if target.is_file() and target.stat().st_size == file.stat().st_size and sha256_of(target) == digest:
                    return target, False
            except OSError as error:
                raise output_error(target, error) from error
            number += 1
            target = path.with_name(f"{path.stem}-{number}{path.suffix}")

    # -- archives

    def _unpacked(self, file: Path, dataset: Path, given: str) -> Iterator[Received]:
        left = self.limits.unpacked
        try:
            with open_file(file) as reader, zipfile.ZipFile(_Careful(reader, self.limits.directory)) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if not members:
                    yield Received(given, problem="is an archive that holds nothing", hint="look into it")
                for member in members:
                    name = f"{given}/{member.filename}"
                    with _new_file(dataset) as unpacked:
                        try:
                            self._unpack(archive, member, unpacked, left)
                            received = self._taken(unpacked, dataset, member.filename, _kind_of(unpacked))
                        except FileFormatError as error:
                            received = _refused(unpacked, name, error)
                        left -= unpacked.stat().st_size
                    yield replace(received, given=name)
        except OutputError:
            raise
        except _BROKEN_ZIP as error:
            problem = f"is an archive that cannot be read: {error or type(error).__name__}"
            yield Received(given, problem=problem, hint="unpack it, and give what it holds")

    def _unpack(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> None:
        """Write a member to a file. Raises FileFormatError for one that is not taken."""
        if member.flag_bits & 1:
            raise FileFormatError("is locked with a password", "unpack the archive, and give what it holds")
        if (member.external_attr >> 16) & _FILE_TYPE == _IS_LINK:
            raise FileFormatError("is a link, not a file", "give the file that it leads to")
        most = min(self.limits.file, left)
        require_space(target.parent, min(member.file_size, max(most, 0)))
        size = 0
        with target.open("r+b") as out:
            for piece in _pieces(archive, member):
                size += len(piece)
                out.write(piece)
                if size > most:
                    limit = self.limits.file if most == self.limits.file else self.limits.unpacked
                    what = "one file" if most == self.limits.file else "all that is in an archive"
                    raise FileFormatError(f"unpacks to more than {what} may have: {size_text(limit)}", "shrink it")
            out.flush()
            os.fsync(out.fileno())


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member. Raises FileFormatError where they cannot be unpacked."""
    try:
        with archive.open(member) as source:
            while piece := source.read(_PIECE):
                yield piece
    except _BROKEN_ZIP as error:
        problem = f"cannot be unpacked: {error or type(error).__name__}"
        raise FileFormatError(problem, "unpack the archive, and give what it holds") from error


class _Careful:
    """An open archive of which no part is read at once that would not fit: its directory has the size that it says."""

    def __init__(self, file: BufferedReader, most: int) -> None:
        self._file = file
        self._most = most
        self.seek, self.tell, self.close, self.seekable = file.seek, file.tell, file.close, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > self._most:
            raise zipfile.BadZipFile("its list of what it holds is too long")
        found = self._file.read(self._most + 1 if size < 0 else size)
        if len(found) > self._most:
            raise zipfile.BadZipFile("its list of what it holds is too long")
        return found


@contextmanager
def _new_file(folder: Path) -> Iterator[Path]:
    try:
        with unfinished_file(folder) as path:
            yield path
    except OSError as error:
        raise output_error(folder, error) from error


def _refused(file: Path, given: str, error: FileFormatError) -> Received:
    """The name under which it lay for a moment says nothing to anybody."""
    return Received(given, problem=error.problem.removeprefix(f"{file}: "), hint=error.hint)


def _kind_of(file: Path) -> str:
    with open_file(file) as reader:
        return signature(reader.read(64))


def _clean_path(dataset: Path, name: str, kind: str) -> Path:
    """Where a file goes: the folders it came with, and its name with an ending that says what it is."""
    parts = [part for part in name.split("/") if part.strip(". ")] or ["unnamed"]
    folders = [clean_name(part, longest=_LONGEST_FOLDER) for part in parts[:-1][-_MOST_FOLDERS:]]
    last = clean_name(parts[-1])
    known = {ending for endings in SUFFIXES.values() for ending in endings}
    if kind and Path(last).suffix.lower() not in known:
        last = clean_name(last + SUFFIXES[kind][0])
    return dataset.joinpath(*folders, last)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path that may not exist yet is in a folder, links followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _note(given: str, kept: str, *, is_new: bool) -> str:
    if not is_new:
        return "was there already"
    return "" if given == kept else f"is kept as {kept}"


def _move(file: Path, target: Path) -> None:
    """Give ``file`` the name ``target``. Raises FileExistsError where there is something, OSError otherwise."""
    try:
        os.link(file, target)  # unlike a rename, this never takes the place of another file
    except FileExistsError:
        raise
    except OSError:  # a disk without links
        with target.open("xb") as out, file.open("rb") as source:
            shutil.copyfileobj(source, out)
            out.flush()
            os.fsync(out.fileno())
