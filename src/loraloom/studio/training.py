"""Start a training run: its folder, its log, and a clean end when it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.actions import Action, Sentence
from loraloom.control import Control, first_of, keep_going
from loraloom.errors import LoraloomError, OutputError, ResumeError, SettingsError, while_handling
from loraloom.events import (
    Event,
    Listener,
    Notice,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFinished,
    ignore,
)
from loraloom.formats.files import write_bytes
from loraloom.studio.project import EventLog, RunFolder
from loraloom.studio.run_control import FolderControl, RunLock
from loraloom.training.settings import TrainSettings
from loraloom.training.team import Team, is_leader, joined_team, launched_together, one_voice

if TYPE_CHECKING:
    from loraloom.training.state import ResumePoint

__all__ = [
    "TrainingResult",
    "branch_training",
    "is_leader",
    "launched_together",
    "one_voice",
    "resume_training",
    "run_training",
]


@dataclass(frozen=True)
class TrainingResult:
    """Where a run left its files; no LoRA for one that was left for later or ended without saving."""

    folder: Path
    lora: Path | None


def run_training(
    settings: TrainSettings, *, listener: Listener = ignore, control: Control = keep_going
) -> TrainingResult:
    """Train in a new run folder. Errors are recorded in the run's log before they are raised.

    ``control`` is asked, and so is the folder: whoever wishes something first is obeyed. Interrupted when the run is to
    end before its first step.

    A run that fails before its first step (a checkpoint or dataset that cannot be used) leaves no folder.
    """
    with joined_team() as team:
        return _train_new(settings, None, listener, control, team)


def resume_training(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> TrainingResult:
    """Go on with a run in its folder, from its newest state that is whole; without any, from the beginning.

    Raises ResumeError when another process trains it, when it is finished, or when dataset, checkpoint or settings
    differ (``force``: a warning instead).
    """
    with joined_team() as team:
        if not team.leads:
            return _follow(None, run, team)
        return _resume(RunFolder(run), overrides, listener, control, force, team)


def _resume(
    folder: RunFolder,
    overrides: Sequence[str],
    listener: Listener,
    control: Control,
    force: bool,
    team: Team,
) -> TrainingResult:
    before = TrainSettings.load(folder.settings_path)
    moved = [text for text in overrides if text.partition("=")[0].strip() == "output"]
    if moved:
        raise SettingsError(
            [f"{moved[0]}: a resumed run stays in its folder"], Sentence(Action.BRANCH_RUN, " starts a run elsewhere")
        )
    settings = TrainSettings.load(folder.settings_path, overrides)
    _check_not_finished(folder, before, settings)
    with RunLock(folder.path), _recorded(folder, listener, settings, new=False) as record:
        from loraloom.training.state import ResumePoint, find_state

        state = find_state(folder.path / "state", record)
        if state is None:
            record(Notice("no state was kept before the run ended, so it begins again", "warning"))
            record(RunResumed(0))
        point = ResumePoint(state, force=force) if state is not None else None
        if settings != before:
            record.when_begun = lambda: _replace_settings(folder, settings, state.step if state else 0)
        lora = _train(settings, folder, record, control, point, team)
    return TrainingResult(folder.path, lora)


def branch_training(
    run: Path,
    step: int | None,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> TrainingResult:
    """A new run that goes on from a state (``step``; None: the newest) of another one, with other settings."""
    from loraloom.training.state import ResumePoint, find_state

    with joined_team() as team:
        if not team.leads:
            return _follow(None, run, team)
        given = TrainSettings.load(RunFolder(run).settings_path, overrides)
        state = find_state(run / "state", listener, step=step)
        if state is None:
            raise ResumeError(f"{run} has kept no state to branch from", "saving.state=true keeps them")
        settings = given.model_copy(update={"branched_from": f"{run.name}@{state.step}"})
        return _train_new(settings, ResumePoint(state, branch=True, force=force), listener, control, team)


def _train_new(
    settings: TrainSettings, point: ResumePoint | None, listener: Listener, control: Control, team: Team
) -> TrainingResult:
    if not team.leads:
        return _follow(settings, settings.output, team)
    folder = RunFolder.create(settings.output, settings.name, settings)
    with _recorded(folder, listener, settings, new=True) as record, RunLock(folder.path):
        if settings.branched_from and point is not None:
            record(Notice(f"branched from {settings.branched_from}"))
        lora = _train(settings, folder, record, control, point, team)
    return TrainingResult(folder.path, lora)


def _follow(settings: TrainSettings | None, folder: Path, team: Team) -> TrainingResult:
    """Train as one of several processes that is not the leading one: the same steps, nothing written or said.

    ``settings`` None: those of the leading process, which alone needs to see the folder of a run that goes on.
    """
    from loraloom.training.trainer import train

    task = team.from_leader(_nothing)
    train(settings or task.settings, folder, resume=task.point, team=team)
    return TrainingResult(folder, None)


@dataclass(frozen=True)
class _Task:
    """What the leading process tells the others before they begin."""

    settings: TrainSettings
    point: ResumePoint | None


def _nothing() -> _Task:
    raise RuntimeError("only the leading process has something to tell")


def _train(
    settings: TrainSettings,
    folder: RunFolder,
    record: _Recorder,
    control: Control,
    point: ResumePoint | None,
    team: Team,
) -> Path | None:
    from loraloom.training.trainer import train

    team.from_leader(lambda: _Task(settings, point))
    return train(
        settings,
        folder.path,
        listener=record,
        control=first_of(control, FolderControl(folder.path)),
        resume=point,
        team=team,
    )


def _check_not_finished(folder: RunFolder, before: TrainSettings, settings: TrainSettings) -> None:
    ends = [event for event in folder.events() if isinstance(event, RunFinished)]
    if ends and not ends[-1].stopped and before == settings:
        raise ResumeError(
            f"{folder.path} is finished after {ends[-1].step} steps", "a larger epochs= or steps= lets it go on"
        )


def _replace_settings(folder: RunFolder, settings: TrainSettings, step: int) -> None:
    """Record the settings that hold from now on; the old ones stay beside them."""
    kept = folder.path / f"settings-until-step{step:08d}.toml"
    write_bytes(kept, folder.settings_path.read_bytes())
    folder.write_settings(settings)


@contextmanager
def _recorded(folder: RunFolder, listener: Listener, settings: TrainSettings, *, new: bool) -> Iterator[_Recorder]:
    """Inside: events go to the run's log and to the listener. An error is recorded on its way out.

    A new run that does not come to its first step leaves no folder; one that is resumed stays as it was.
    """
    record: _Recorder | None = None
    first: BaseException | None = None
    try:
        with EventLog(folder) as log, _followers(settings, folder.path, listener) as followers:
            record = _Recorder(log, listener, followers)
            try:
                yield record
            except BaseException as error:
                first = error
                if new or record.began:
                    with while_handling(error, "the record of how the run ended"):
                        record.failed(error)
                raise
    except BaseException as last:
        if first is None or last is first:
            first = last
            raise
        # Whoever listens to the run failed too, as it was closed.
        with while_handling(first, "the record of the run"):
            raise last
        raise first from first.__cause__
    finally:
        with while_handling(first, "the learning curves"):
            if record is not None and record.began:
                _draw_curves(folder, listener)
            elif new:
                folder.discard()


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


class _Recorder:
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
        """Record how the run ended; whoever called hears of it by the error itself."""
        match error:
            case LoraloomError():
                problem, hint = error.problem, error.hint
            case KeyboardInterrupt():
                problem, hint = "interrupted", "the files saved before are in weights/"
            case OSError():
                problem, hint = str(error), ""
            case _:
                problem, hint = f"{type(error).__name__}: {error}", ""
        self._record(RunFailed(self._step, problem, hint))

    def _follow(self, follower: Listener, event: Event) -> None:
        """One that cannot write what it hears hears no more; it must not end the run."""
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
