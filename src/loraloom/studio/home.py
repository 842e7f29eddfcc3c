"""A home: the folder that holds a person's datasets, runs, outputs and jobs, and knows where other models lie.

Paths inside it are remembered relative to it, so that it can be moved or renamed as a whole.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any, BinaryIO, Self

from loraloom.actions import Action, Sentence
from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, UnknownNameError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.files import make_folder, output_error, write_text
from loraloom.formats.locks import try_lock, unlock
from loraloom.formats.room import Need, require_room
from loraloom.plain_data import shown
from loraloom.studio.database import Database, set_aside
from loraloom.studio.layouts import Layout, recognise_layout

__all__ = ["DATABASE_NAME", "Home", "HomeLock", "Layout", "Preferences", "Root", "recognise_layout"]

DATABASE_NAME = "studio.db"
_FOLDERS = ("datasets", "runs", "outputs", "jobs")
_HOME_ROOT = 0
_PLACE = "home.place"
"""Where the home lay when it was opened last."""
_OTHER_HOME = Sentence(Action.NAME_HOME)


@dataclass(frozen=True)
class Root:
    """A folder in which files may be named by a page: the home itself (number 0), or one that was added."""

    path: Path
    kind: str
    """home, automatic1111, forge, comfyui, kohya, or plain."""
    name: str
    """Unique among the roots."""
    id: int

    @property
    def layout(self) -> Layout | None:
        """Where the program whose folder it is keeps what, as it is on the disk now."""
        return None if self.kind in ("home", "plain") else recognise_layout(self.path)


class Preferences(MutableMapping[str, Any]):
    """What a person chose, by name: values that JSON can hold. Each is written at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __getitem__(self, name: str) -> Any:
        rows = self._database.rows("SELECT value FROM preferences WHERE name = ?", (name,))
        if not rows:
            raise KeyError(name)
        return json.loads(rows[0][0])

    def __setitem__(self, name: str, value: Any) -> None:
        text = json.dumps(value, allow_nan=False)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO preferences (name, value) VALUES (?, ?)", (name, text))

    def __delitem__(self, name: str) -> None:
        with self._database.transaction() as connection:
            if not connection.execute("DELETE FROM preferences WHERE name = ?", (name,)).rowcount:
                raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter([row[0] for row in self._database.rows("SELECT name FROM preferences ORDER BY name")])

    def __len__(self) -> int:
        return int(self._database.rows("SELECT count(*) FROM preferences")[0][0])


@dataclass(frozen=True)
class Home:
    """An open home. Several processes may have the same one open."""

    path: Path
    database: Database
    notices: tuple[Notice, ...] = ()
    """What had to be mended as it was opened."""

    @classmethod
    def open(cls, folder: Path, *, listener: Listener = ignore) -> Home:
        """The home in ``folder``, made where it is missing: its four folders and its database.

        A damaged database is kept under another name and a new one begun, which ``listener`` hears of; the queue finds
        its jobs again in their folders. Raises OutputError where the home cannot be written, FileError for a database
        of a newer version.
        """
        path = folder.expanduser().absolute()
        for name in ("", *_FOLDERS):
            make_folder(path / name, hint=_OTHER_HOME)
        require_room([Need(path / name, 0, "the home") for name in ("", *_FOLDERS)])
        database, notices = _database(path / DATABASE_NAME)
        home = cls(path, database, notices)
        home = replace(home, notices=(*notices, *home._settled()))
        for notice in home.notices:
            listener(notice)
        return home

    def _settled(self) -> tuple[Notice, ...]:
        """What there is to say of the place of the home. One that was moved brings the settings of its runs along."""
        from loraloom.studio.runs.moving import bring_along

        before = self.preferences.get(_PLACE)
        if before == str(self.path) or (before is not None and _is_same(Path(before), self.path)):
            return ()
        runs = bring_along(self.runs, Path(before), self.path) if before is not None else 0
        self.preferences[_PLACE] = str(self.path)
        return (Notice(f"the home was moved from {before}: {runs} runs know their new place"),) if runs else ()

    @staticmethod
    def is_there(folder: Path) -> bool:
        """Whether a home was made in ``folder`` before."""
        return (folder.expanduser() / DATABASE_NAME).is_file()

    @staticmethod
    def runs_in(folder: Path) -> Path:
        """Where a home in ``folder`` keeps its runs."""
        return folder.expanduser().absolute() / "runs"

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    @property
    def datasets(self) -> Path:
        """Pictures and captions."""
        return self.path / "datasets"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.runs_in(self.path)

    @property
    def outputs(self) -> Path:
        """Images and LoRAs that were made."""
        return self.path / "outputs"

    @property
    def jobs(self) -> Path:
        """The records of jobs that are no runs."""
        return self.path / "jobs"

    @property
    def preferences(self) -> Preferences:
        """What the person chose."""
        return Preferences(self.database)

    # -- paths

    def stored(self, path: Path) -> str:
        """A path as the database remembers it: relative to the home where it is inside, with slashes."""
        path = path.expanduser().absolute()
        try:
            text = path.relative_to(self.path).as_posix()
        except ValueError:
            text = str(path)
        return text

    def located(self, text: str) -> Path:
        """The inverse of :meth:`stored`, wherever the home is now."""
        return self.path / text

    # -- roots

    @property
    def roots(self) -> list[Root]:
        """The home itself, then the folders that were added, in that order."""
        rows = self.database.rows("SELECT id, path, kind, name FROM roots ORDER BY id")
        home = Root(self.path, "home", "home", _HOME_ROOT)
        return [home, *(Root(self.located(path), kind, name, number) for number, path, kind, name in rows)]

    def add_root(self, folder: Path, *, name: str = "") -> Root:
        """Let files of this folder be used where they are. A folder that is a root already stays that one.

        Its kind follows from its layout; ``name``, or else that of the folder, gets a number where it is taken. Raises
        MissingFileError where there is no such folder, FileError where its name is not text.
        """
        path = folder.expanduser().absolute()
        if not path.is_dir():
            raise MissingFileError(f"{path}: there is no such folder", "check the path")
        text = self.stored(path)
        if any(0xD800 <= ord(mark) < 0xE000 for mark in text):
            raise FileError(f"{path}: its name is not text", "give the folder another name")
        layout = recognise_layout(path)
        kind = layout.kind if layout is not None else "plain"
        if path != self.path:
            self._keep_root(text, kind, name or path.name or "root")
        return next(root for root in self.roots if root.path == path)

    def _keep_root(self, text: str, kind: str, name: str) -> None:
        with self.database.transaction() as connection:
            rows = connection.execute("SELECT path, name FROM roots").fetchall()
            if text not in {row[0] for row in rows}:
                unique = _unique(name, {"home", *(row[1] for row in rows)})
                connection.execute("INSERT INTO roots (path, kind, name) VALUES (?, ?, ?)", (text, kind, unique))

    def forget_root(self, root: int | str) -> None:
        """Use the files of an added folder no more; they stay. UnknownNameError for one that is none."""
        found = self.root(root)
        if found.id == _HOME_ROOT:
            raise UnknownNameError("root that can be forgotten", str(root), [known.name for known in self.roots[1:]])
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM roots WHERE id = ?", (found.id,))

    def root(self, root: int | str) -> Root:
        """A root by its number or its name. UnknownNameError where there is none."""
        roots = self.roots
        for known in roots:
            if root in (known.id, known.name) or str(root) == str(known.id):
                return known
        raise UnknownNameError("root", str(root), [known.name for known in roots])

    def resolve(self, root: int | str, relative: str) -> Path:
        """The path that a page means: ``relative``, with slashes, inside a root, whether it exists or not.

        Links are followed, and one that leads out of the root is refused. Raises UnknownNameError for a root that there
        is not, FileError for a path that leaves it or that no system could have.
        """
        folder = self.root(root).path
        refused = FileError(f"{shown(relative)} is no path inside {folder}", "name a file inside the folder")
        windows = PureWindowsPath(relative)
        if "\0" in relative or windows.drive or windows.root or ".." in windows.parts:
            raise refused
        if ":" in relative and os.name == "nt":  # a second stream of a file
            raise refused
        try:
            inside = folder.resolve()
            path = (inside / PurePosixPath(relative)).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that is too long
            raise refused from error
        if path != inside and inside not in path.parents:
            raise refused
        return path


def _database(path: Path) -> tuple[Database, tuple[Notice, ...]]:
    try:
        return Database(path), ()
    except FileFormatError as damaged:
        kept = set_aside(path)
        if kept is None:  # another process has done it
            return Database(path), ()
        words = Sentence(
            f"{damaged.problem}; it was kept as {kept.name} and made anew from the folders. Preferences and added "
            "folders of models are to be set again; jobs that wait are held until ",
            Action.RELEASE_JOB,
        )
        return Database(path), (Notice(words, "warning"),)


def _is_same(first: Path, second: Path) -> bool:
    """Whether two paths lead to one folder, as by a link."""
    try:
        return first.samefile(second)
    except OSError:
        return False


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken or unique.isdecimal():  # a number would be another root's
        number += 1
        unique = f"{name}-{number}"
    return unique


class HomeLock:
    """Inside: this process does one thing for the home (``what``: "server", "queue"), and no other does the same.

    The system lets go of it when the process dies. Raises FileError when another process has it; :meth:`try_enter`
    says so instead.
    """

    def __init__(self, home: Path, what: str) -> None:
        self._path = home / f".{what}.lock"
        self._facts = home / f".{what}.json"
        self._what = what
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 1.0  # somebody who asks who has it holds it for a moment
        while not self.try_enter():
            if time.monotonic() > deadline:
                raise FileError(
                    f"{self._path.parent} is open already{self.holder()}",
                    Sentence("use that one, end it, or ", _OTHER_HOME),
                )
            time.sleep(0.05)
        return self

    def try_enter(self, **facts: Any) -> bool:
        """Whether this process has it now; ``facts`` are what others read of it. OutputError in a closed folder."""
        if self._file is not None:
            return True
        try:
            file = self._path.open("a+b")
        except OSError as error:
            raise output_error(self._path, error) from error
        if try_lock(file) is False:
            file.close()
            return False
        self._file = file
        told = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), **facts}
        write_text(self._facts, json.dumps(told) + "\n")
        return True

    def is_taken(self) -> bool:
        """Whether a process has it, this one or another."""
        if self._file is not None:
            return True
        try:
            with self._path.open("r+b") as file:
                if try_lock(file, shared=True) is False:
                    return True
                unlock(file)
        except FileNotFoundError:
            return False
        except OSError:  # of another user, whose lock cannot be tried
            return self._facts.exists()
        return False

    def facts(self) -> dict[str, Any] | None:
        """What the process that has it said of itself (pid, host, started); None where none has it."""
        if not self.is_taken():
            return None
        try:
            told = json.loads(self._facts.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) else None

    def holder(self) -> str:
        """``, by process 123 on host``; empty where that is not known."""
        told = self.facts() or {}
        return f", by process {told['pid']} on {told['host']}" if {"pid", "host"} <= set(told) else ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Let another process have it."""
        if self._file is None:
            return
        with suppress(OSError, OutputError):
            self._facts.unlink(missing_ok=True)
        unlock(self._file)
        self._file.close()
        self._file = None
