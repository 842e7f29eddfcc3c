"""The record of a job, ``job.json`` in its folder: of a run in the run folder, of any other job in one of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from loraloom.actions import Sentence, parts_from_record, parts_to_record
from loraloom.errors import FileFormatError
from loraloom.formats.files import make_folder, write_text
from loraloom.plain_data import finite, parse_json
from loraloom.reading import read_text
from loraloom.settings import Settings
from loraloom.studio.results import to_record
from loraloom.studio.runs.folder import with_each_path

__all__ = [
    "RECORD_NAME",
    "Attempt",
    "JobRecord",
    "make_job_folder",
    "read_job",
    "read_settings",
    "settings_record",
    "text_to_record",
    "write_job",
]

SettingsT = TypeVar("SettingsT", bound=Settings)
RECORD_NAME = "job.json"
_LARGEST = 4 * 2**20


@dataclass(frozen=True)
class Attempt:
    """A process that worked on the job. Times are in seconds since 1970."""

    started: float
    ended: float | None = None
    """None: it is at work, or was killed."""
    problem: str = ""
    """The error that ended it, also where that came before anything could be told in the log."""
    hint: str = ""
    stopped: bool = False
    """Whether it was asked to end."""


@dataclass(frozen=True)
class JobRecord:
    """What ``job.json`` holds."""

    kind: str
    title: str
    created: float
    """Seconds since 1970."""
    settings: Mapping[str, Any] | None = None
    """As plain data; None for a run, whose settings are in its ``settings.toml``."""
    attempts: tuple[Attempt, ...] = ()
    forgotten: bool = False
    """Taken out of the list by a person: a list that is made anew leaves it out."""

    def begun(self) -> JobRecord:
        """The record once a process has begun to work on it."""
        return replace(self, attempts=(*self.attempts, Attempt(time.time())))

    def ended(self, *, problem: str = "", hint: str = "", stopped: bool = False) -> JobRecord:
        """The record once that process is about to end."""
        *before, last = self.attempts
        last = replace(last, ended=time.time(), problem=problem, hint=hint, stopped=stopped)
        return replace(self, attempts=(*before, last))


def make_job_folder(jobs: Path, kind: str, *, number: int = 1) -> Path:
    """A new folder ``<number>-<kind>`` in ``jobs``; a larger number where that one is taken.

    OutputError where it cannot be made.
    """
    numbers = [int(path.name.partition("-")[0]) for path in jobs.glob("*-*") if path.name.partition("-")[0].isdecimal()]
    number = max([number, *(taken + 1 for taken in numbers)])
    while True:
        try:
            make_folder(jobs / f"{number}-{kind}", exclusive=True)
        except FileExistsError:
            number += 1
        else:
            return jobs / f"{number}-{kind}"


def write_job(folder: Path, record: JobRecord) -> None:
    """Write ``job.json``; OutputError where that cannot be done."""
    data = to_record(record)
    for attempt, told in zip(record.attempts, data["attempts"], strict=True):
        told |= {"problem": text_to_record(attempt.problem), "hint": text_to_record(attempt.hint)}
    write_text(folder / RECORD_NAME, json.dumps(data, indent=1) + "\n")


def text_to_record(text: str) -> list[Any]:
    """Text as JSON-ready data, which keeps what it proposes."""
    return parts_to_record(text if isinstance(text, Sentence) else Sentence(text)) if text else []


def read_job(folder: Path) -> JobRecord:
    """What ``job.json`` says. MissingFileError where there is none, FileFormatError where it cannot be understood."""
    path = folder / RECORD_NAME
    data = parse_json(read_text(path, limit=_LARGEST), str(path))
    try:
        attempts = tuple(_attempt(item) for item in data["attempts"])
        settings = data["settings"]
        if not isinstance(settings, dict | None):
            raise TypeError("settings are a table")
        return JobRecord(
            str(data["kind"]),
            str(data["title"]),
            float(data["created"]),
            settings,
            attempts,
            bool(data.get("forgotten", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged: {type(error).__name__}: {error}", "start the job anew") from error


def _attempt(data: Mapping[str, Any]) -> Attempt:
    problem, hint = (parts_from_record(data.get(name, [])) for name in ("problem", "hint"))
    return Attempt(float(data["started"]), finite(data.get("ended")), problem, hint, bool(data.get("stopped", False)))


def settings_record(settings: Settings, home: Path) -> dict[str, Any]:
    """Settings as plain data for ``job.json``: paths inside the home are relative to it, so that it can be moved."""

    def relative(path: Path) -> Path:
        path = home / path.expanduser()
        return path.relative_to(home) if path.is_relative_to(home) else path

    record: dict[str, Any] = to_record(with_each_path(settings, relative))
    return record


def read_settings(folder: Path, cls: type[SettingsT]) -> SettingsT:
    """The settings of the job in ``folder``, which lies in ``jobs/`` of its home.

    Raises FileError where the record cannot be read, SettingsError for settings that this version does not take.
    """
    record = read_job(folder)
    home = folder.absolute().parents[1]
    settings = cls.parse(record.settings or {}, source=str(folder / RECORD_NAME))
    return with_each_path(settings, lambda path: home / path)
