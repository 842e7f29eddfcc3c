"""What is recorded while a run is trained: its events in its log, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loraloom.errors import LoraloomError, OutputError, while_handling
from loraloom.events import Event, Listener, Notice, RunFailed, RunStarted, StepFinished
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import EventLog
from loraloom.training.settings import TrainSettings

__all__ = ["Recorder", "recorded"]


@contextmanager
def recorded(folder: RunFolder, listener: Listener, settings: TrainSettings, *, is_new: bool) -> Iterator[Recorder]:
    """Inside: events go to the run's log and to the listener. An error is recorded on its way out.

    The failure of a new run (``is_new``) is recorded even before its first step. One that was to go on and did not come
    to that stays as it was.
    """
    record: Recorder | None = None
    first: BaseException | None = None
    try:
        with EventLog(folder.path) as log, _followers(settings, folder.path, listener) as followers:
            record = Recorder(log, listener, followers)
            try:
                yield record
            except BaseException as error:
                first = error
                if is_new or record.began:
                    with while_handling(error, "the record of how the run ended"):
                        record.failed(error)
                raise
    except BaseException as last:
        if first is None or last is first:
            first = last
            raise
        # The run's listener failed too, as it was closed.
        with while_handling(first, "the record of the run"):
            raise last
        raise first from first.__cause__
    finally:
        with while_handling(first, "the learning curves"):
            if record is not None and record.began:
                _draw_curves(folder, listener)


@contextmanager
def _followers(settings: TrainSettings, run: Path, listener: Listener) -> Iterator[list[Listener]]:
    """Listeners that the settings ask for besides the caller's own."""
    followers: list[Listener] = []
    with ExitStack() as stack:
        if settings.tensorboard:
            from loraloom.studio.tensorboard import TensorBoardLog

            followers.append(stack.enter_context(TensorBoardLog(run)))
        if settings.notify.url:
            from loraloom.studio.webhook import Webhook

            followers.append(stack.enter_context(Webhook(settings.notify, run, listener)))
        if settings.saving.read_back and settings.method == "adapter":
            from loraloom.studio import read_back

            if read_back.reader_installed():
                followers.append(stack.enter_context(read_back.ReadBack(listener)))
        yield followers


def _draw_curves(folder: RunFolder, listener: Listener) -> None:
    """The learning curves of what was recorded, however the run ended; a picture must not end it otherwise."""
    from loraloom.studio.curves import write_curves

    try:
        write_curves(folder.path)
    except (OutputError, OSError) as error:
        listener(Notice(f"{error}; the learning curves were not drawn", "warning"))


class Recorder:
    """Passes events to the run's log and to the listener. A log that cannot be written must not end a run."""

    def __init__(self, log: EventLog, listener: Listener, followers: Sequence[Listener] = ()) -> None:
        self._log = log
        self._listener = listener
        self._followers = list(followers)
        self._step = 0
        self._told = False
        self.began = False
        self.when_begun: Callable[[], None] = lambda: None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.began = True
            self.when_begun()
        elif isinstance(event, StepFinished):
            self._step = event.step
        self._record(event)
        self._listener(event)

    def failed(self, error: BaseException) -> None:
        """Record how the run ended; the caller learns of it from the error itself."""
        match error:
            case LoraloomError():
                problem, hint = error.problem, error.hint
            case KeyboardInterrupt():
                saved = "the files saved before are in weights/" if self.began else "there was nothing to save yet"
                problem, hint = "interrupted", saved
            case OSError():
                problem, hint = str(error), ""
            case _:
                problem, hint = f"{type(error).__name__}: {error}", ""
        self._record(RunFailed(self._step, problem, hint, isinstance(error, KeyboardInterrupt)))

    def _follow(self, follower: Listener, event: Event) -> None:
        """A follower that cannot write gets no more events; it must not end the run."""
        try:
            follower(event)
        except (LoraloomError, OSError) as error:
            self._followers.remove(follower)
            self._listener(Notice(f"{type(follower).__name__}: {error}; the run goes on without it", "warning"))

    def _record(self, event: Event) -> None:
        for follower in tuple(self._followers):
            self._follow(follower, event)
        try:
            self._log(event)
        except OutputError as error:
            if not self._told:
                self._listener(Notice(f"{error}; the run goes on without it", "warning"))
            self._told = True
