"""The runs of a folder: what each has come to, told from its files alone."""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.errors import FileError, MissingFileError, nearest
from loraloom.reading import open_file
from loraloom.studio.run_control import is_trained

__all__ = ["RunStatus", "find_run", "list_runs", "read_status"]

_LOG = "events.jsonl"
_SPEED_STEPS = 50
"""The time left is told from so many last steps."""


@dataclass(frozen=True)
class RunStatus:
    """One run. ``state``: preparing, running, paused, stopped, finished, failed, or interrupted (its process died)."""

    name: str
    folder: Path
    state: str
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    epochs: int | None = None
    loss: float | None = None
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    best_loss: float | None = None
    """The best validation loss so far, and the epoch it was measured in."""
    best_epoch: int | None = None
    last_preview: str | None = None
    problem: str = ""
    """Of a failed run."""

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {**self.__dict__, "folder": str(self.folder)}


def find_run(text: str, output: Path = Path("runs")) -> Path:
    """The run folder that ``text`` means: a path, or the name of a run in ``output``. MissingFileError otherwise."""
    for candidate in (Path(text).expanduser(), output / text):
        with suppress(OSError):
            if (candidate / "settings.toml").is_file():
                return candidate
    names = [path.name for path in _run_folders(output)]
    close = nearest(text, names)
    listed = Sentence(Action.LIST_RUNS, " lists them; give the folder of the run")
    raise MissingFileError(f"there is no run {text!r}", f"did you mean {close[0]!r}?" if close else listed)


def list_runs(folder: Path) -> list[RunStatus]:
    """Every run in ``folder``, by name. MissingFileError when there is no such folder."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder of runs", "give the folder that output= named")
    return [_status_or_problem(path) for path in _run_folders(folder)]


def _status_or_problem(folder: Path) -> RunStatus:
    """The state of a run; one whose log cannot be understood says so, and the others are listed all the same."""
    try:
        return read_status(folder)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"its {_LOG} is damaged ({type(error).__name__}: {error})"
        return RunStatus(folder.name, folder, "failed", problem=problem)


def _run_folders(folder: Path) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in inside if _is_run(path)]


def _is_run(path: Path) -> bool:
    try:
        return (path / "settings.toml").is_file()
    except OSError:  # of somebody else, who lets nobody look inside
        return False


def read_status(folder: Path) -> RunStatus:
    """The state of one run, in one pass over its log. Steps are not parsed one by one: there may be many."""
    steps: deque[dict[str, Any]] = deque(maxlen=_SPEED_STEPS)
    lines: deque[str] = deque(maxlen=_SPEED_STEPS)
    last, facts, preview, best = "", dict[str, Any](), dict[str, Any](), dict[str, Any]()
    problem, base = "", 0

    def parse() -> None:
        for line in lines:
            with suppress(ValueError):
                steps.append(json.loads(line))
        lines.clear()

    for line in _lines(folder / _LOG):
        if line.startswith('{"event": "StepFinished"'):
            lines.append(line)
            continue
        if not any(kind in line for kind in ('"Run', '"PreviewSaved"', '"ValidationMeasured"')):
            continue
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            kind = record["event"]
            if kind == "PreviewSaved":
                preview = record
            elif kind == "ValidationMeasured":
                best = record if record["is_best"] else best
            elif kind == "RunResumed":
                parse()
                base = record["step"]
                kept = [step for step in steps if step["step"] <= base]
                steps = deque(kept, maxlen=_SPEED_STEPS)
                last = kind
            elif kind in ("RunStarted", "RunFinished", "RunFailed", "RunPaused"):
                last = kind
                facts |= record
                problem = record.get("problem", "") if kind == "RunFailed" else ""
    parse()
    step = max(int(steps[-1]["step"]) if steps else 0, base)
    total = facts.get("total_steps")
    speed = sum(item["seconds"] for item in steps) / len(steps) if steps else None
    return RunStatus(
        name=folder.name,
        folder=folder,
        state=_state(folder, last, facts),
        step=step,
        total_steps=total,
        epoch=int(steps[-1]["epoch"]) if steps else 0,
        epochs=facts.get("epochs"),
        loss=steps[-1]["average_loss"] if steps else None,
        seconds_per_step=speed,
        seconds_left=speed * max(total - step, 0) if speed is not None and total is not None else None,
        best_loss=best.get("loss"),
        best_epoch=best.get("epoch"),
        last_preview=preview.get("path"),
        problem=problem,
    )


def _lines(path: Path) -> list[str]:
    with suppress(OSError, FileError), open_file(path) as file:
        return file.read().decode("utf-8", "replace").split("\n")
    return []


def _state(folder: Path, last: str, facts: dict[str, Any]) -> str:
    """``last``: the kind of the last event that began or ended something."""
    if is_trained(folder):
        return {"RunStarted": "running", "RunResumed": "running", "RunPaused": "paused"}.get(last, "preparing")
    if last == "RunFinished":
        return "stopped" if facts.get("stopped") else "finished"
    if last == "RunPaused" and facts.get("freed"):
        return "paused"
    return "failed" if last == "RunFailed" else "interrupted"
