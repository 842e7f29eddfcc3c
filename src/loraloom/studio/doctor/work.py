"""Checks of the work that lies in a folder: runs that can go on, files of killed commands, damaged indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from loraloom.actions import Action
from loraloom.errors import FileError
from loraloom.events import Listener, ignore
from loraloom.formats.unfinished import find_leftovers, remove_leftovers
from loraloom.plain_data import size_text
from loraloom.studio.database import is_damaged
from loraloom.studio.doctor.finding import Finding, Machine, good, note, problem
from loraloom.studio.home import DATABASE_NAME
from loraloom.studio.library import is_current, search
from loraloom.studio.runs.folder import run_folders
from loraloom.studio.runs.status import RunStatus, list_runs

__all__ = ["check_database", "check_leftovers", "check_library", "check_runs", "tidy"]

_MOST_RUNS = 5
"""Runs that are told of one by one."""


def check_runs(machine: Machine) -> Iterator[Finding]:
    """Which runs were interrupted and can go on."""
    status = [run for folder in _run_homes(machine) for run in list_runs(folder)]
    interrupted = [run for run in status if run.state == "interrupted"]
    for run in interrupted[:_MOST_RUNS]:
        kept = any((run.folder / "state").glob("*.safetensors"))
        begins = "it goes on from its last state: " if kept else "it had kept no state, and would begin anew: "
        yield note("runs", _how_far(run), begins, Action.TRAIN_ON.of(run=run.folder))
    if len(interrupted) > _MOST_RUNS:
        yield note("runs", f"{len(interrupted) - _MOST_RUNS} more were interrupted", Action.LIST_RUNS, " lists them")
    if not interrupted:
        yield good("runs", f"{len(status)} here, none interrupted" if status else "none here")


def _run_homes(machine: Machine) -> list[Path]:
    """Folders with runs in them: that of a home, and the folder itself where somebody names it."""
    return [folder for folder in (machine.folder / "runs", machine.folder) if run_folders(folder)]


def _how_far(run: RunStatus) -> str:
    of = f" of {run.total_steps}" if run.total_steps else ""
    return f"{run.name} was interrupted after step {run.step}{of}"


def check_leftovers(machine: Machine) -> Iterator[Finding]:
    """What commands that were killed left half-written."""
    found = {path: size for folder in _written_folders(machine) for path, size in find_leftovers(folder).items()}
    if not found:
        yield good("unfinished files", "none")
        return
    several = f"{len(found)} files or folders" if len(found) > 1 else next(iter(found)).name
    places = sorted({str(path.parent) for path in found})
    where = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more folders"
    told = f"{several} of killed commands, {size_text(sum(found.values()))}, in {where}"
    advice = " frees the room now; the next command that writes there does so too"
    yield note("unfinished files", told, Action.TIDY_FOLDER.of(folder=machine.folder), advice)


def tidy(machine: Machine, listener: Listener = ignore) -> int:
    """Remove what killed commands left half-written; the bytes that this freed. What has a writer stays."""
    freed = 0
    for folder in _written_folders(machine):
        before = sum(find_leftovers(folder).values())
        remove_leftovers(folder, listener)
        freed += before - sum(find_leftovers(folder).values())
    return freed


def _written_folders(machine: Machine) -> Iterator[Path]:
    """Where commands write: not everything below the folder, which may be somebody's whole disk."""
    yield machine.folder
    for name in ("datasets", "outputs", "jobs"):
        yield machine.folder / name
        yield from _inside(machine.folder / name)
    yield machine.folder / "runs"
    for home in _run_homes(machine):
        for run in run_folders(home):
            yield run
            yield from _inside(run)
    yield from (machine.cache, *_inside(machine.cache), machine.data, *_inside(machine.data))


def _inside(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def check_library(machine: Machine) -> Iterator[Finding]:
    """Whether the index of the library can be read, and is still true of the files."""
    if not machine.index.exists():
        yield good("library", "no index yet")
        return
    try:
        known = search([], index=machine.index)
    except FileError as error:
        yield problem("library", error.problem, error.hint)
        return
    stale = sum(not is_current(entry) for entry in known)
    if stale:
        found = f"{stale} of {len(known)} files in the index have changed, moved or gone since they were read"
        yield note("library", found, "bring it up to date: ", Action.SCAN_LIBRARY)
    else:
        yield good("library", f"{len(known)} files in the index, as they are on the disk")


def check_database(machine: Machine) -> Iterator[Finding]:
    """Whether the database of a studio in this folder is whole."""
    path = machine.folder / DATABASE_NAME
    if not path.is_file():
        return
    try:
        damaged = is_damaged(path)
    except sqlite3.Error as error:
        yield note("studio", f"{path} cannot be read now: {error}", "try again in a moment")
        return
    if damaged:
        advice = "the next command that opens the studio keeps it under another name and makes it anew from the folders"
        yield problem("studio", f"{path} is damaged", advice)
    else:
        yield good("studio", f"{path} is whole")
