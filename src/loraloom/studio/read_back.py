"""Saved LoRA files read again by diffusers, where it is installed, in a process beside the work that saved them."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loraloom.actions import Sentence, parts_from_record
from loraloom.control import POLL_S, Control, heed, keep_going
from loraloom.events import Event, Listener, Notice, WeightsSaved

__all__ = ["ReadBack", "read_back_now", "reader_installed"]

_CLOSING_S = 300.0


def reader_installed() -> bool:
    """Whether there is an independent reader of LoRA files here."""
    return find_spec("diffusers") is not None and find_spec("transformers") is not None


def read_back_now(paths: Sequence[Path], listener: Listener, control: Control = keep_going) -> None:
    """Have the reader sort every tensor of these files, and tell what it found; nothing where none is installed.

    ``control`` is heeded while it reads; its process ends with it.
    """
    if reader_installed():
        _tell(_reports(paths, control), listener)


class ReadBack:
    """The listener that has every LoRA file read that a run saves. As a context manager it waits until all are."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._waiting: queue.Queue[Path | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read_all, name="loraloom read back", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        if error is None:
            self._thread.join(_CLOSING_S)
            if self._thread.is_alive():
                self._listener(Notice(f"not all files were read back within {_CLOSING_S:g} seconds", "warning"))

    def __call__(self, event: Event) -> None:
        if isinstance(event, WeightsSaved):
            self._waiting.put(Path(event.path))

    def _read_all(self) -> None:
        """One process at a time; what was saved while it ran is read by the next one together."""
        ended = False
        while not ended:
            paths = [self._waiting.get()]
            while not self._waiting.empty():
                paths.append(self._waiting.get())
            ended = None in paths
            there = [path for path in paths if path is not None and path.is_file()]
            if there:
                _tell(_reports(there), self._listener)


def _reports(paths: Sequence[Path], control: Control = keep_going) -> list[dict[str, Any]]:
    # -P: modules are not looked for in the present folder, which may hold a stranger's diffusers.py.
    command = [sys.executable, "-P", "-m", "loraloom.weights.read_back", *map(str, paths)]
    # A session of its own: Ctrl-C in the terminal is for the run, which waits for what is being read.
    output, complaints = _output_of(command, control)
    reports = [json.loads(line) for line in output.splitlines() if line.startswith('{"path"')]
    if not reports:
        said = (complaints.strip() or "it printed nothing").splitlines()[-1]
        return [{"path": str(paths[0]), "reader": "", "tensors": 0, "used": 0, "problem": f"no reader started: {said}"}]
    return reports


def _output_of(command: Sequence[str], control: Control) -> tuple[str, str]:
    """What a process of its own writes to stdout and stderr until it ends; it is killed where this is left."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            while True:
                heed(control)
                with suppress(subprocess.TimeoutExpired):
                    return process.communicate(timeout=POLL_S)
        except BaseException:
            process.kill()
            raise


def _tell(reports: Sequence[dict[str, Any]], listener: Listener) -> None:
    for report in reports:
        name = Path(report["path"]).name
        problem = parts_from_record(report["proposed"]) if "proposed" in report else report["problem"]
        if not report["problem"]:
            listener(
                Notice(
                    f"{name} was read back by {report['reader']}: all {report['tensors']} tensors have a layer, "
                    "and each layer is changed as here"
                )
            )
        elif report["reader"]:
            listener(Notice(Sentence(f"{report['reader']} cannot use all of {name}: ", problem), "warning"))
        else:
            listener(Notice(Sentence(f"{name} was not read back: ", problem)))
