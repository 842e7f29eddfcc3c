"""An index of the models on this machine, kept in an SQLite file: scan and search. No torch until a file is read."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from loraloom.actions import Action, Sentence
from loraloom.control import Control, each_of, heed, keep_going
from loraloom.errors import FileError, LoraloomError, MissingFileError, OutputError, SettingsError
from loraloom.events import Listener, Notice, ignore
from loraloom.folders import data_folder
from loraloom.formats.files import make_folder
from loraloom.formats.room import Need, require_room
from loraloom.formats.unfinished import remove_leftovers

__all__ = ["LibraryEntry", "ScanReport", "forget", "index_path", "is_current", "scan", "search", "show"]

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
BATCH = 500
HASH_DIGITS = 8
_VERSION = 2
_REMEDIES = {
    sqlite3.SQLITE_CANTOPEN: Sentence("name another file ", Action.NAME_INDEX),
    sqlite3.SQLITE_READONLY: Sentence("name another file ", Action.NAME_INDEX),
    sqlite3.SQLITE_PERM: Sentence("name another file ", Action.NAME_INDEX),
    sqlite3.SQLITE_FULL: Sentence("free some space, or name a file on another disk ", Action.NAME_INDEX),
    sqlite3.SQLITE_IOERR: Sentence("free some space, or name a file on another disk ", Action.NAME_INDEX),
    sqlite3.SQLITE_BUSY: "another command writes to it: wait until that has ended",
    sqlite3.SQLITE_LOCKED: "another command writes to it: wait until that has ended",
}
"""What to do when the index fails for a reason that has nothing to do with what it holds."""


@dataclass(frozen=True)
class LibraryEntry:
    """A file as the index knows it. ``problem`` says why it could not be read.

    ``sha256`` and ``autov3`` (12 digits) are computed from the file, and empty until that was asked for or needed.
    ``claim`` is the AutoV3 that the file says of itself: it is shown, and a file is never found by it alone.
    """

    path: str
    size: int
    stamp: str
    """Times of the last change of the file and of the ``.json`` beside it: when these differ it is read again."""
    fingerprint: str = ""
    kind: str = ""
    family: str = ""
    adapter: str = ""
    rank: str = ""
    title: str = ""
    triggers: str = ""
    tags: str = ""
    base: str = ""
    description: str = ""
    claim: str = ""
    autov3: str = ""
    sha256: str = ""
    problem: str = ""

    @property
    def summary(self) -> str:
        """What it is, in few words: ``lora, sd1, rank 8; Ink; trigger: inkd``."""
        facts = [self.kind if self.kind != "lora" else self.adapter, self.family, self.rank and f"rank {self.rank}"]
        told = [", ".join(fact for fact in facts if fact), self.title, self.triggers and f"trigger: {self.triggers}"]
        return "; ".join(text for text in told if text)

    @property
    def facts(self) -> dict[str, str | int]:
        """Everything that is known of it, in reading order."""
        return {name: value for name in _FACTS if (value := getattr(self, name))}


@dataclass(frozen=True)
class ScanReport:
    """What a scan found. ``moved``: from and to; ``broken``: path and reason, all that are known in these folders."""

    files: int
    read: int
    added: int
    changed: int
    removed: int
    moved: tuple[tuple[str, str], ...]
    broken: tuple[tuple[str, str], ...]


_COLUMNS = tuple(field.name for field in fields(LibraryEntry))
_FACTS = (
    *("kind", "family", "adapter", "rank", "title", "triggers", "tags", "base", "description"),
    *("autov3", "claim", "sha256", "fingerprint", "size", "problem"),
)
_TEXTS = ("path", "title", "triggers", "tags", "base", "description", "adapter", "autov3", "sha256")


def index_path() -> Path:
    """Where the index lies unless another file is named."""
    return data_folder() / "library.sqlite"


@contextmanager
def _opened(index: Path | None) -> Iterator[sqlite3.Connection]:
    """The index, made when it is not there. Writers wait for one another up to 30 s."""
    path = index or index_path()
    try:
        make_folder(path.parent)
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise _index_error(path, error) from error
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise FileError(
                f"{path}: the index was made by a newer version", Sentence("name another ", Action.NAME_INDEX)
            )
        columns = ", ".join(
            "path TEXT PRIMARY KEY" if name == "path" else f"{name} {'INTEGER' if name == 'size' else 'TEXT'} NOT NULL"
            for name in _COLUMNS
        )
        connection.execute(f"CREATE TABLE IF NOT EXISTS files ({columns}, words TEXT NOT NULL)")
        if version == 1:
            _bring_up_to_date(connection)
        connection.execute("CREATE INDEX IF NOT EXISTS by_fingerprint ON files (fingerprint)")
        if version != _VERSION:
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        yield connection
    except sqlite3.Error as error:
        raise _index_error(path, error) from error
    finally:
        connection.close()


def _index_error(path: Path, error: OSError | sqlite3.Error) -> FileError:
    """What the index refuses, in words, with what to do: only one that is damaged has to go."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CANTOPEN) & 0xFF  # the rest says where it happened
    reason, hint = str(error), _REMEDIES.get(code, "it can be deleted: a scan makes a new one")
    if code == sqlite3.SQLITE_CANTOPEN:
        try:
            require_room([Need(path.parent, 0, "the index of the library")])
        except OutputError as refused:
            reason = refused.problem
    return FileError(f"{path}: the index of the library failed, {reason}", hint)


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Version 1 kept what files claim as ``autov3``: it becomes a claim, and no word to find a file by."""
    connection.execute("BEGIN IMMEDIATE")
    if "claim" not in {row[1] for row in connection.execute("PRAGMA table_info(files)")}:
        connection.execute("ALTER TABLE files ADD COLUMN claim TEXT NOT NULL DEFAULT ''")
        connection.execute("UPDATE files SET words = replace(words, autov3, ''), claim = autov3, autov3 = ''")
    connection.execute("COMMIT")


def scan(
    folders: Sequence[Path],
    *,
    hashes: bool = False,
    index: Path | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ScanReport:
    """Bring the index up to date with these folders and all inside them; files elsewhere stay as they are known.

    Only files that are new or changed are read. ``hashes`` adds the SHA-256 of every file that has none yet, which
    reads all of it. A file that cannot be read is kept with the reason. ``listener`` hears of every file that was read,
    ``control`` is heeded between them; what was read so far is kept. Raises MissingFileError for a missing
    folder, SettingsError where none is named.
    """
    roots = [_resolved_folder(folder) for folder in folders]
    if not roots:
        raise SettingsError(["no folder to scan"], Sentence(Action.SCAN_LIBRARY))
    found = {path: facts for root in roots for path, facts in _walk(root, listener, control)}
    with _opened(index) as connection:
        changes = _Changes(found, {entry.path: entry for entry in _entries(connection, roots)})
        todo = changes.to_read(hashes=hashes)
        batch: list[LibraryEntry] = []
        try:
            for path in each_of("files", todo, listener, control):
                batch.append(_read(path, *found[path], hashes=hashes, control=control))
                if len(batch) == BATCH:
                    _store(connection, batch)
                    changes.note(batch)
                    batch = []
        finally:  # also where it was asked to end
            _store(connection, batch)
            changes.note(batch)
        _remove(connection, changes.gone)
    return changes.report(len(todo))


class _Changes:
    """What is different in some folders from what the index knows of them, counted while the files are read."""

    def __init__(self, found: Mapping[str, tuple[int, str]], known: Mapping[str, LibraryEntry]) -> None:
        self._found, self._known = found, known
        self.gone = [path for path in known if path not in found]
        self._fresh = {path for path, facts in found.items() if path not in known or _facts(known[path]) != facts}
        self._by_fingerprint = {known[path].fingerprint: path for path in self.gone if known[path].fingerprint}
        self._moved: list[tuple[str, str]] = []
        self._broken = {path: entry.problem for path, entry in known.items() if entry.problem}
        self._added = self._changed = 0

    def to_read(self, *, hashes: bool) -> list[str]:
        """Files that are new or changed, and with ``hashes`` those behind them that have none yet."""
        fresh = [path for path in self._found if path in self._fresh]
        if not hashes:
            return fresh
        unhashed = {
            path for path, entry in self._known.items() if not (entry.sha256 and entry.autov3) and not entry.problem
        }
        return [*fresh, *(path for path in self._found if path in unhashed - self._fresh)]

    def note(self, entries: Sequence[LibraryEntry]) -> None:
        """Count what was read. A new file with the content of one that is gone is that one, moved."""
        for entry in entries:
            known = self._known.get(entry.path)
            self._broken.pop(entry.path, None)
            if entry.problem:
                self._broken[entry.path] = entry.problem
            earlier = self._by_fingerprint.pop(entry.fingerprint, None) if known is None else None
            if earlier is not None:
                self._moved.append((earlier, entry.path))
            elif known is None:
                self._added += 1
            elif entry.path in self._fresh:
                self._changed += entry.fingerprint != known.fingerprint

    def report(self, read: int) -> ScanReport:
        """What the scan came to."""
        return ScanReport(
            files=len(self._found),
            read=read,
            added=self._added,
            changed=self._changed,
            removed=len(self.gone) - len(self._moved),
            moved=tuple(self._moved),
            broken=tuple((path, reason) for path, reason in sorted(self._broken.items()) if path in self._found),
        )


def _resolved_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder", "check the path")
    return folder.resolve()


def _walk(root: Path, listener: Listener, control: Control) -> Iterator[tuple[str, tuple[int, str]]]:
    """Path, and size and stamp, of every model file below a folder. Links to folders are not followed."""
    stack = [str(root)]
    while stack:
        heed(control)
        folder = stack.pop()
        # What cannot be read is reported and skipped: the others are found all the same.
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as error:
            listener(Notice(f"{folder} was skipped: {error.strerror or error}", "warning"))
            continue

        remove_leftovers(Path(folder), listener)
        names = {entry.name: entry for entry in inside}
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                stack.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and _is_file(entry):
                if not _is_text(entry.path):
                    listener(Notice(f"{entry.path!r} was skipped: its name is not text", "warning"))
                    continue
                side = names.get(f"{Path(entry.name).stem}.json")
                try:
                    status = entry.stat()
                except OSError as error:  # it went away, or is a link that leads nowhere
                    listener(Notice(f"{entry.path} was skipped: {error.strerror or error}", "warning"))
                    continue
                stamp = f"{_times(status)}{status.st_ino}{_side_times(side)}"
                yield entry.path, (status.st_size, stamp)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link to one; whether it can be reached is asked later."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:  # a link that leads back to itself
        return True


def is_current(entry: LibraryEntry) -> bool:
    """Whether the file, and the ``.json`` beside it, are as they were when they were read."""
    path = Path(entry.path)
    try:
        status = path.stat()
    except OSError:
        return False
    # Without the number between them: Windows does not tell it in the list of a folder.
    times = entry.stamp.startswith(_times(status)) and entry.stamp.endswith(_side_times(path.with_suffix(".json")))
    return times and entry.size == status.st_size


def _times(status: os.stat_result) -> str:
    """The beginning of a stamp."""
    return f"{status.st_mtime_ns}-{status.st_ctime_ns}-"


def _side_times(side: os.DirEntry[str] | Path | None) -> str:
    """The end of a stamp: when the file beside a model last changed; 0 where there is none that could be read."""
    if side is None:
        return "-0"
    try:
        status = side.stat()
    except OSError:
        return "-0"
    return f"-{status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0}"


def _is_text(path: str) -> bool:
    """Whether the index can hold a path: file systems allow bytes in names that are not text."""
    return not any(0xD800 <= ord(mark) < 0xE000 for mark in path)


def _facts(entry: LibraryEntry) -> tuple[int, str]:
    return entry.size, entry.stamp


def _read(path: str, size: int, stamp: str, *, hashes: bool, control: Control) -> LibraryEntry:
    from loraloom.weights.identify import fingerprint, identify

    try:
        entry = LibraryEntry(path, size, stamp, **asdict(identify(Path(path))))
        return _with_hashes(entry, control) if hashes else entry
    except LoraloomError as error:
        try:
            marked = fingerprint(Path(path))
        except FileError:
            marked = ""
        return LibraryEntry(path, size, stamp, marked, "broken", problem=error.problem)


def _with_hashes(entry: LibraryEntry, control: Control = keep_going) -> LibraryEntry:
    """With the hashes of the content. Raises FileFormatError where the file's own checksums say that it is damaged."""
    from loraloom.formats.file_hashes import file_hashes
    from loraloom.formats.tensors import open_tensors

    with open_tensors(Path(entry.path)) as tensors:
        tensors.check_all()
    hashes = file_hashes(Path(entry.path), control)
    return replace(entry, sha256=hashes.sha256, autov3=hashes.content[:12])


def _check_claims(connection: sqlite3.Connection, digits: str) -> None:
    """Compute the hashes of the files that claim these digits, so that the true ones are found by them."""
    rows = connection.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM files WHERE autov3 = '' AND claim LIKE ?", [f"{digits[:12]}%"]
    )
    checked: list[LibraryEntry] = []
    for entry in [LibraryEntry(*row) for row in rows.fetchall()]:
        with suppress(LoraloomError):  # a file that is gone is not found by a hash; the next scan says so
            checked.append(_with_hashes(entry))
    if checked:
        _store(connection, checked)


def _is_hash(word: str) -> bool:
    return len(word) >= HASH_DIGITS and all(mark in "0123456789abcdef" for mark in word)


def _store(connection: sqlite3.Connection, entries: Sequence[LibraryEntry]) -> None:
    marks = ", ".join("?" * (len(_COLUMNS) + 1))
    rows = []
    for entry in entries:
        told = asdict(entry)
        words = " ".join(told[name] for name in _TEXTS).casefold()
        rows.append([*(_text(told[name]) for name in _COLUMNS), _text(words)])
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(f"INSERT OR REPLACE INTO files ({', '.join(_COLUMNS)}, words) VALUES ({marks})", rows)
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.execute("ROLLBACK")
        raise


def _text(value: str | int) -> str | int:
    """A value that SQLite can hold: JSON may name half a character."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _remove(connection: sqlite3.Connection, paths: Sequence[str]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
    connection.execute("COMMIT")


def _entries(connection: sqlite3.Connection, roots: Sequence[Path]) -> list[LibraryEntry]:
    """What is known of the files inside these folders."""
    rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM files ORDER BY path")
    starts = tuple(str(root).rstrip(os.sep) + os.sep for root in roots)
    return [LibraryEntry(*row) for row in rows if row[0].startswith(starts)]


def search(
    words: Sequence[str], *, family: str | None = None, kind: str | None = None, index: Path | None = None
) -> list[LibraryEntry]:
    """Files whose path, title, trigger words, tags, description or hashes hold all the words, in any case.

    ``kind``: checkpoint, lora, other or broken, or a kind of adapter (``loha``).
    """
    conditions, values = ["words LIKE ? ESCAPE '!'"] * len(words), [f"%{_escaped(word.casefold())}%" for word in words]
    if family is not None:
        conditions.append("family = ?")
        values.append(family.lower())
    if kind is not None:
        conditions.append("(kind = ? OR lower(adapter) = ?)")
        values += [kind.lower(), kind.lower()]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    with _opened(index) as connection:
        for word in filter(_is_hash, map(str.lower, words)):
            _check_claims(connection, word)
        rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM files{where} ORDER BY path", values)
        return [LibraryEntry(*row) for row in rows]


def _escaped(word: str) -> str:
    for mark in "!%_":
        word = word.replace(mark, f"!{mark}")
    return word


def show(name: str, *, index: Path | None = None) -> list[LibraryEntry]:
    """What is known of a file: by its path, its name with or without suffix, or the beginning of a hash.

    Raises MissingFileError for a file that the index does not know.
    """
    digits = name.lower()
    with _opened(index) as connection:
        if _is_hash(digits):
            _check_claims(connection, digits)
        entries = [LibraryEntry(*row) for row in connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM files")]

    # The surest comes first: a path is one file, a name may be in several folders, digits may begin several hashes.
    path = str(Path(name).resolve())
    exact = [entry for entry in entries if entry.path == path]
    named = [entry for entry in entries if name in (Path(entry.path).name, Path(entry.path).stem)]
    hashed = [
        entry
        for entry in entries
        if _is_hash(digits)
        and any(known.startswith(digits) for known in (entry.sha256, entry.autov3, entry.fingerprint))
    ]
    found = exact or named or hashed
    if not found:
        raise MissingFileError(
            f"the library knows no file {name!r}", Sentence(Action.SEARCH_LIBRARY, " looks for words")
        )
    return found


def forget(paths: Sequence[Path], *, index: Path | None = None) -> int:
    """Take files, or all inside of folders, out of the index; the files themselves stay. Returns how many there were.

    Raises MissingFileError where the index knows none of them.
    """
    resolved = [path.resolve() for path in paths]
    with _opened(index) as connection:
        inside = {entry.path for entry in _entries(connection, resolved)}
        known = {row[0] for row in connection.execute("SELECT path FROM files")}
        gone = sorted(inside | (known & {str(path) for path in resolved}))
        _remove(connection, gone)
    if not gone:
        raise MissingFileError(f"the library knows nothing of {', '.join(map(str, paths))}", "check the path")
    return len(gone)
