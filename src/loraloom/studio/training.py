"""Start a training run: its folder, its log, and a clean end when it is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from loraloom.errors import LoraloomError, OutputError
from loraloom.events import Event, Listener, Notice, RunFailed, RunStarted, StepFinished, ignore
from loraloom.studio.project import EventLog, RunFolder
from loraloom.training.settings import TrainSettings

__all__ = ["StopRequest", "TrainingResult", "run_training", "stop_on_signals"]


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run left its files."""

    folder: Path
    lora: Path


class StopRequest:
    """A flag that any thread or signal may raise; the run ends after the step in progress."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Ask the run to stop."""
        self._event.set()


@contextmanager
def stop_on_signals(stop: StopRequest, listener: Listener) -> Iterator[None]:
    """Inside: the first Ctrl-C (or SIGTERM) asks for a clean stop, a second Ctrl-C interrupts at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop():
            raise KeyboardInterrupt
        stop.set()
        listener(Notice("stopping after this step, then saving; Ctrl-C again to stop at once", "warning"))

    names = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last is Ctrl-Break on Windows, and exists there only
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_training(
    settings: TrainSettings, *, listener: Listener = ignore, stop: StopRequest | None = None
) -> TrainingResult:
    """Train in a new run folder. Errors are recorded in the run's log before they are raised.

    A run that fails before its first step (a checkpoint or dataset that cannot be used) leaves no folder.
    """
    from loraloom.training.trainer import train

    folder = RunFolder.create(settings.output, settings.name, settings)
    with _recorded(folder, listener) as record:
        lora = train(settings, folder.path, listener=record, stop=stop or StopRequest())
    return TrainingResult(folder.path, lora)


@contextmanager
def _recorded(folder: RunFolder, listener: Listener) -> Iterator[_Recorder]:
    """Inside: events go to the run's log and to the listener. An error is recorded on its way out."""
    record = None
    try:
        with EventLog(folder) as log:
            record = _Recorder(log, listener)
            try:
                yield record
            except (LoraloomError, OSError, KeyboardInterrupt) as error:
                record.failed(error)
                raise
    finally:
        if record is None or not record.began:
            folder.discard()


class _Recorder:
    """Passes events to the run's log and to the listener. A log that cannot be written must not end a run."""

    def __init__(self, log: EventLog, listener: Listener) -> None:
        self._log = log
        self._listener = listener
        self._step = 0
        self._told = False
        self.began = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.began = True
        elif isinstance(event, StepFinished):
            self._step = event.step
        self._record(event)
        self._listener(event)

    def failed(self, error: BaseException) -> None:
        """Record how the run ended; whoever called hears of it by the error itself."""
        match error:
            case LoraloomError():
                problem, hint = error.problem, error.hint
            case KeyboardInterrupt():
                problem, hint = "interrupted", "the files saved before are in weights/"
            case _:
                problem, hint = str(error), ""
        self._record(RunFailed(self._step, problem, hint))

    def _record(self, event: Event) -> None:
        try:
            self._log(event)
        except OutputError as error:
            if not self._told:
                self._listener(Notice(f"{error}; the run goes on without it", "warning"))
            self._told = True
