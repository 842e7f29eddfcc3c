"""The kinds of jobs. A new one is a function that does it, its settings in ``settings.py``, and a line in KINDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraloom.control import Control
from loraloom.errors import UnknownNameError
from loraloom.events import Event, JobCreated, Listener, PieceFinished, RunFinished, RunStarted, StepFinished
from loraloom.settings import Settings
from loraloom.studio.home import Home
from loraloom.studio.jobs.folder import make_job_folder, read_settings
from loraloom.studio.jobs.settings import ClassImagesSettings, DemoSettings, SweepSettings
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.folder import with_each_path
from loraloom.studio.runs.log import EventLog
from loraloom.training.settings import TrainSettings

if TYPE_CHECKING:
    from loraloom.studio.sweeps import Combination

__all__ = ["KINDS", "JobKind", "find_kind", "is_run"]


@dataclass(frozen=True)
class JobKind:
    """One kind of job."""

    name: str
    summary: str
    settings: type[Settings]
    """What it is told."""
    run: Callable[[Path, Listener, Control], object]
    """Do the job of a folder, in this process; what is returned is its result. An error of the package ends it with a
    problem and a hint, :class:`loraloom.control.Interrupted` is how it is left. It may be called again after that."""
    title: Callable[[Any], str]
    """What a list calls a job with these settings."""
    check: Callable[[Any], object] = lambda settings: None
    """Asked before a job is made: SettingsError for settings that contradict one another."""
    inputs: Callable[[Any], tuple[Path, ...]] = lambda settings: ()
    """Files and folders that must be there when the job starts."""
    needs_device: bool = True
    """Whether it paints or trains; others run beside it."""
    device: Callable[[Any], str] = lambda settings: str(getattr(settings, "device", "auto"))
    """The device that its settings name."""
    is_run: bool = False
    """Whether its folder is that of a run, which records itself."""

    def create(self, home: Home, settings: Settings) -> Path:
        """The folder of a new job, with a log that says so. SettingsError for a name that cannot be that of a folder,
        OutputError where the folder cannot be written."""
        if self.is_run:
            assert isinstance(settings, TrainSettings)
            return create_run(with_each_path(settings, lambda path: home.path / path.expanduser())).path
        rows = home.database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'")
        folder = make_job_folder(home.jobs, self.name, number=rows[0][0] + 1 if rows else 1)
        with EventLog(folder) as log:
            log(JobCreated(self.name))
        return folder


def _train(folder: Path, listener: Listener, control: Control) -> object:
    from loraloom.studio.runs.training import train_run

    return train_run(folder, listener=listener, control=control)


def _sweep(folder: Path, listener: Listener, control: Control) -> object:
    from loraloom.studio.sweeps import missing_of, run_sweep

    combinations = _plan(read_settings(folder, SweepSettings))
    whole = _WholeSweep(len(missing_of(combinations)), listener)
    result = run_sweep(combinations, listener=whole, control=control)
    if (failure := result.failure()) is not None:
        raise failure
    best = [outcome.combination.label for outcome in result.best]
    return {"folder": result.folder, "table": result.table, "sheet": result.sheet, "best": best}


def _plan(settings: SweepSettings) -> list[Combination]:
    from loraloom.studio.sweeps import plan_sweep

    return plan_sweep(settings.train, settings.axes)


class _WholeSweep:
    """The listener of a sweep's runs that tells of their steps as steps of the whole."""

    def __init__(self, runs: int, listener: Listener) -> None:
        self._runs = runs
        self._listener = listener
        self._before = 0
        self._each = 0
        self._ended = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._each = event.total_steps
            case StepFinished():
                total = self._before + self._each * (self._runs - self._ended)
                self._listener(PieceFinished("steps", self._before + event.step, total))
            case RunFinished():
                self._before += event.step
                self._ended += 1
            case _:
                self._listener(event)


def _class_images(folder: Path, listener: Listener, control: Control) -> object:
    from loraloom.studio.class_images import make_class_images

    settings = read_settings(folder, ClassImagesSettings)
    return make_class_images(
        settings.checkpoint,
        settings.dataset,
        settings.paint,
        count=settings.count,
        folder=settings.folder,
        trigger=settings.trigger,
        listener=listener,
        control=control,
    )


def _demo(folder: Path, listener: Listener, control: Control) -> object:
    from loraloom.studio.demo import CHARACTER, STYLE, run_demo

    settings = read_settings(folder, DemoSettings)
    place, number = folder / "demo", 1
    while place.exists():  # of a try that was left
        number += 1
        place = folder / f"demo-{number}"
    plan = CHARACTER if settings.character else STYLE
    return run_demo(place, plan=plan, epochs=settings.epochs, listener=listener, control=control)


KINDS: Mapping[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind(
            "train",
            "train a LoRA",
            TrainSettings,
            _train,
            lambda settings: settings.name,
            inputs=lambda settings: (settings.checkpoint, settings.dataset.folder),
            is_run=True,
        ),
        JobKind(
            "sweep",
            "train one for every combination of settings, and compare",
            SweepSettings,
            _sweep,
            lambda settings: f"{settings.train.name}: {' '.join(settings.axes)}",
            check=_plan,
            inputs=lambda settings: (settings.train.checkpoint, settings.train.dataset.folder),
            device=lambda settings: settings.train.device,
        ),
        JobKind(
            "class_images",
            "paint regularization images",
            ClassImagesSettings,
            _class_images,
            lambda settings: settings.paint.prompt,
            inputs=lambda settings: (settings.checkpoint, settings.dataset.folder),
            device=lambda settings: settings.paint.device,
        ),
        JobKind(
            "demo",
            "the whole job once, on drawings that come with the package",
            DemoSettings,
            _demo,
            lambda settings: "a character" if settings.character else "a style",
        ),
    )
}


def find_kind(name: str) -> JobKind:
    """The kind of this name; UnknownNameError where there is none."""
    if name not in KINDS:
        raise UnknownNameError("kind of job", name, KINDS)
    return KINDS[name]


def is_run(name: str) -> bool:
    """Whether a job of this kind is a run; one of a kind that this version does not know is none."""
    return name in KINDS and KINDS[name].is_run
