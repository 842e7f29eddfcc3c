"""Train a run: in its folder, with its log, to a clean end when it is asked to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.actions import Action, Sentence
from loraloom.control import Control, first_of, keep_going
from loraloom.errors import ResumeError, SettingsError
from loraloom.events import Listener, Notice, RunCreated, RunFinished, RunResumed, RunStarted, RunTaken, ignore
from loraloom.formats.files import write_bytes
from loraloom.studio.runs.control import FolderControl, RunLock
from loraloom.studio.runs.creation import create_branch, create_run
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.record import Recorder, recorded
from loraloom.training.settings import TrainSettings
from loraloom.training.team import Team, is_leader, joined_team, launched_together, one_voice

if TYPE_CHECKING:
    from loraloom.training.state import ResumePoint

__all__ = [
    "TrainingResult",
    "branch_training",
    "check_run",
    "is_leader",
    "launched_together",
    "one_voice",
    "resume_training",
    "run_training",
    "train_run",
]


@dataclass(frozen=True)
class TrainingResult:
    """Where a run left its files; no LoRA for one that was left for later or ended without saving."""

    folder: Path
    lora: Path | None


def run_training(
    settings: TrainSettings, *, listener: Listener = ignore, control: Control = keep_going
) -> TrainingResult:
    """:func:`create_run` and :func:`train_run` in one."""
    with joined_team() as team:
        if not team.leads:
            return _follow(settings, settings.output, team)
        return _train_in(create_run(settings), (), listener, control, False, team)


def train_run(
    run: Path, *, force: bool = False, listener: Listener = ignore, control: Control = keep_going
) -> TrainingResult:
    """Train the run in this folder, in this process: a new one, one that failed, or one that goes on where it was.

    ``control`` is asked, and so is the folder: the first request counts. Errors are recorded in the run's log before
    they are raised. Raises ResumeError when another process trains it, when it is finished, or when dataset, checkpoint
    or settings differ from those it began with (``force``: a warning instead); Interrupted when it is to end before its
    first step.
    """
    return resume_training(run, force=force, listener=listener, control=control)


def check_run(run: Path) -> None:
    """Raise what keeps the run in this folder from being trained, as far as its files tell at once: FileError or
    SettingsError of its settings, and ResumeError when it is finished."""
    folder = RunFolder(run)
    settings = TrainSettings.load(folder.settings_path)
    _check_not_finished(folder, settings, settings)


def resume_training(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> TrainingResult:
    """:func:`train_run` with other settings: go on from the newest state that is whole; without any, from the start."""
    with joined_team() as team:
        if not team.leads:
            return _follow(None, run, team)
        return _train_in(RunFolder(run), overrides, listener, control, force, team)


def branch_training(
    run: Path,
    step: int | None,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> TrainingResult:
    """:func:`create_branch` and :func:`train_run` in one."""
    with joined_team() as team:
        if not team.leads:
            return _follow(None, run, team)
        folder = create_branch(run, step, overrides, listener=listener)
        return _train_in(folder, (), listener, control, force, team)


def _train_in(
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
    has_begun = _has_begun(folder)
    with RunLock(folder.path), recorded(folder, listener, settings, is_new=not has_begun) as record:
        if has_begun:
            point = _point_to_go_on(folder, before, settings, force, record)
        else:
            if settings != before:
                folder.write_settings(settings)
            point = _point_to_begin(folder, force, record)
        lora = _train(settings, folder, record, control, point, team)
    return TrainingResult(folder.path, lora)


def _has_begun(folder: RunFolder) -> bool:
    """Whether the run has taken a first step, or was about to."""
    started = any(isinstance(event, RunStarted) for event in RunLog(folder.path).events())
    return started or any((folder.path / "state").glob("*.safetensors"))


def _point_to_begin(folder: RunFolder, force: bool, record: Recorder) -> ResumePoint | None:
    """Where a run begins that has not begun: None is the start, a branch begins in another run."""
    from loraloom.training.state import ResumePoint, find_state

    events = RunLog(folder.path).events()
    created = next((event for event in events if isinstance(event, RunCreated)), RunCreated(str(folder.path)))
    if events != [created]:
        record(created)  # what an attempt before it recorded counts no more
    record(RunTaken())
    if not created.source:
        return None
    source = Path(created.source)
    state = find_state(source / "state", record, step=created.source_step)
    if state is None:
        raise ResumeError(f"{source} no longer has the state of step {created.source_step}", "branch from another one")
    record(Notice(f"branched from {source.name}@{state.step}"))
    return ResumePoint(state, branch=True, force=force)


def _point_to_go_on(
    folder: RunFolder, before: TrainSettings, settings: TrainSettings, force: bool, record: Recorder
) -> ResumePoint | None:
    """Where a run goes on that has begun: at its newest state that is whole, or None: at the start."""
    from loraloom.training.state import ResumePoint, find_state

    record(RunTaken())
    state = find_state(folder.path / "state", record)
    if state is None:
        record(Notice("the run ended before it kept a state, so it starts from the beginning", "warning"))
        record(RunResumed(0))
    if settings != before:
        record.when_begun = lambda: _replace_settings(folder, settings, state.step if state else 0)
    return ResumePoint(state, force=force) if state is not None else None


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
    """What the leading process sends the others before they begin."""

    settings: TrainSettings
    point: ResumePoint | None


def _nothing() -> _Task:
    raise RuntimeError("only the leading process has something to tell")


def _train(
    settings: TrainSettings,
    folder: RunFolder,
    record: Recorder,
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
    ends = [event for event in RunLog(folder.path).events() if isinstance(event, RunFinished)]
    if ends and not ends[-1].stopped and before == settings:
        raise ResumeError(
            f"{folder.path} is finished after {ends[-1].step} steps", "a larger epochs= or steps= lets it go on"
        )


def _replace_settings(folder: RunFolder, settings: TrainSettings, step: int) -> None:
    """Record the settings that hold from now on; the old ones stay beside them."""
    kept = folder.path / f"settings-until-step{step:08d}.toml"
    write_bytes(kept, folder.settings_path.read_bytes())
    folder.write_settings(settings)
