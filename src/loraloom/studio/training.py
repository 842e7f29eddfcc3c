"""Start a training run: its folder, its log, and a clean end when it is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from loraloom.errors import LoraloomError
from loraloom.events import Event, Listener, Notice, RunFailed, StepFinished, ignore
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

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_training(
    settings: TrainSettings, *, listener: Listener = ignore, stop: StopRequest | None = None
) -> TrainingResult:
    """Train in a new run folder. Errors are recorded in the run's log before they are raised."""
    from loraloom.training.trainer import train

    folder = RunFolder.create(settings.output, settings.name, settings)
    step = 0
    with EventLog(folder) as log:

        def both(event: Event) -> None:
            nonlocal step
            if isinstance(event, StepFinished):
                step = event.step
            log(event)
            listener(event)

        try:
            lora = train(settings, folder.path, listener=both, stop=stop or StopRequest())
        except LoraloomError as error:
            log(RunFailed(step, error.problem, error.hint))
            raise
        except KeyboardInterrupt:
            log(RunFailed(step, "interrupted", "the files saved before are in weights/"))
            raise
    return TrainingResult(folder.path, lora)
