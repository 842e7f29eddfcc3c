"""The database of a home: one SQLite file that answers quickly. What matters is in folders, from which it can be made
anew; it alone holds only what a person would set again in a minute (order of the queue, preferences, roots).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.errors import FileError, FileFormatError, OutputError
from loraloom.formats.files import output_error
from loraloom.formats.locks import try_lock, unlock
from loraloom.formats.room import Need, require_room

__all__ = ["Database", "is_damaged", "set_aside"]

BUSY_S = 30.0
"""Writers wait for one another as long as this."""
_LARGEST_CHECKED = 64 * 2**20
"""Bytes of a file that is read through when it is opened; a larger one shows its damage when it is asked."""
_SCHEMA = (
    """
    CREATE TABLE preferences (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE roots (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, name TEXT NOT NULL);
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        title TEXT NOT NULL,
        folder TEXT NOT NULL UNIQUE,
        device TEXT NOT NULL,
        created REAL NOT NULL,
        waiting INTEGER NOT NULL,
        held INTEGER NOT NULL,
        position REAL NOT NULL,
        pid INTEGER,
        started REAL,
        wish TEXT NOT NULL DEFAULT '',
        stamp TEXT NOT NULL DEFAULT '',
        summary TEXT NOT NULL DEFAULT ''
    );
    """,
)
"""What each version adds to the one before it, the first to nothing. What has been released is never changed."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_BESIDE = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database; they belong to it."""


class Database:
    """The database in ``path``, made when it is not there and brought up to this version.

    One object serves all threads of a process, one transaction after another. Raises FileFormatError for a file that is
    damaged (:func:`set_aside` makes room for a new one), FileError for one that a newer version made, OutputError where
    it cannot be written; so does everything that is asked of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = not path.exists()
        """Whether it was made just now, so that it knows nothing yet."""
        self._lock = threading.RLock()
        self._file: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        with self._lock, self._in_words():
            self._open()

    def close(self) -> None:
        """Let go of the file. What is asked later opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """What a question is answered with."""
        with self._lock, self._in_words():
            return self._open().execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Inside, nobody else writes: what is read stays true until the end, and all is written or nothing."""
        with self._lock, self._in_words():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with suppress(sqlite3.Error):  # the disk is full: it has gone back already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def revision(self) -> int:
        """A number that changes when another process, or another object of this one, has written."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one where another file lies in the place of the one that was open."""
        with suppress(OSError):
            found = self.path.stat()
            if self._connection is not None and self._file == (found.st_dev, found.st_ino):
                return self._connection
        self.close()
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        found = self.path.stat()
        self._connection, self._file = connection, (found.st_dev, found.st_ino)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self.path.stat().st_size <= _LARGEST_CHECKED:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                raise FileFormatError(f"{self.path} is damaged: {answer}", Sentence(Action.OPEN_STUDIO_AGAIN))
        version = _version(connection)
        if version > len(_SCHEMA):
            raise FileError(
                f"{self.path} was made by a newer version of Loraloom",
                "use that version, or choose another folder; its runs can be read all the same",
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        if version < len(_SCHEMA):
            _bring_up_to_date(connection)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Inside, what SQLite and the system refuse becomes an error for people."""
        try:
            yield
        except OSError as error:
            raise output_error(self.path, error) from error
        except sqlite3.Error as error:
            raise self._worded(error) from error

    def _worded(self, error: sqlite3.Error) -> FileError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest says where it happened
        if code in _DAMAGED:
            return FileFormatError(f"{self.path} is damaged: {error}", Sentence(Action.OPEN_STUDIO_AGAIN))
        if code in _BUSY:
            return FileError(f"{self.path} is being written by another process", "try again in a moment")
        if code in _FULL:
            return OutputError(f"{self.path} cannot be written: {error}", "free some space on its disk")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            try:
                require_room([Need(self.path.parent, 0, "the database")])
            except OutputError as refused:
                return refused
            return OutputError(f"{self.path} cannot be written: {error}", "check the permissions of the file")
        return FileError(f"{self.path} cannot be used: {error}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Add what this version has and the file has not; another process may be doing the same."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in _SCHEMA[_version(connection) :]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_SCHEMA)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def set_aside(path: Path) -> Path | None:
    """Give a damaged database another name, ``<name>.damaged-<date>``; None where it is whole, or gone, after all.

    Of several processes that want to, one does it. Raises OutputError where the file cannot be renamed.
    """
    try:
        with path.with_name(f".{path.name}.lock").open("a+b") as file:
            while not try_lock(file):
                threading.Event().wait(0.05)
            try:
                return _renamed(path) if is_damaged(path) else None
            finally:
                unlock(file)
    except OSError as error:
        raise output_error(path, error) from error


def is_damaged(path: Path) -> bool:
    """Whether there is a file and it is no whole database. Raises sqlite3.Error where it cannot be read."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.DatabaseError as error:
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED


def _renamed(path: Path) -> Path:
    kept = path.with_name(f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}-{number}")
    path.rename(kept)
    for suffix in _BESIDE:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return kept
