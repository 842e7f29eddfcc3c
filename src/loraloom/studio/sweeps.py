"""Sweeps: one run for every combination of settings, on the same draws, and the guide's comparison of what came out.

The folder ``<output>/<name>-sweep`` holds one run folder for each combination, ``table.csv`` and ``sheet.png``. It is
the record: the same command again trains what is missing and goes on with what was interrupted.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.actions import Action, Sentence
from loraloom.control import Control, Request, heed, keep_going, wait_out
from loraloom.errors import HardwareError, LoraloomError, SettingsError
from loraloom.events import Event, Listener, Notice, RunFinished, ValidationMeasured, WeightsSaved, ignore
from loraloom.formats.files import make_folder, write_text
from loraloom.formats.room import Need, require_room
from loraloom.settings import apply_overrides
from loraloom.studio.crash_report import write_report
from loraloom.studio.painter import Job, Loading, Painter
from loraloom.studio.runs.folder import RunFolder, check_run_name, with_absolute_paths
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.training import run_training, train_run
from loraloom.training.settings import TrainSettings

if TYPE_CHECKING:
    from PIL import Image

    from loraloom.generation.loras import AppliedLora
    from loraloom.training.previews import PreviewPrompt

__all__ = ["Axis", "Combination", "Outcome", "SweepResult", "missing_of", "plan_sweep", "run_sweep", "split_axes"]

_TOLD = 3
"""Runs that failed, of which the last words of a sweep give the reason; all reasons are in the table."""


@dataclass(frozen=True)
class Axis:
    """A setting (dotted) and the values it takes, as text."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: its name, what it says on the sheet, its settings."""

    name: str
    label: str
    settings: TrainSettings


@dataclass(frozen=True)
class Outcome:
    """What a finished run of a sweep came to. Losses are None where nothing was measured."""

    combination: Combination
    folder: Path
    lora: Path
    training_loss: float
    validation_loss: float | None
    best_validation_loss: float | None
    best_epoch: int | None
    seconds: float


@dataclass(frozen=True)
class SweepResult:
    """Every finished run, the table, and the sheet (None without preview prompts)."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    failures: tuple[tuple[Combination, str], ...]
    table: Path
    sheet: Path | None

    @property
    def best(self) -> tuple[Outcome, ...]:
        """The runs with the lowest validation loss; none where no run measured one."""
        losses = [loss for outcome in self.outcomes if (loss := outcome.best_validation_loss) is not None]
        return tuple(outcome for outcome in self.outcomes if losses and outcome.best_validation_loss == min(losses))

    def failure(self) -> LoraloomError | None:
        """Which runs failed and why, as an error to end with; None where all went well."""
        if not self.failures:
            return None
        total = len(self.outcomes) + len(self.failures)
        lines = [f"{len(self.failures)} of {total} runs of the sweep failed"]
        lines += [f"{combination.label}: {problem}" for combination, problem in self.failures[:_TOLD]]
        if len(self.failures) > _TOLD:
            lines.append(f"and {len(self.failures) - _TOLD} more: {self.table}, column problem")
        finished = "finished runs are kept; " if self.outcomes else ""
        return LoraloomError("; ".join(lines), f"{finished}the same command again trains what is missing")


def split_axes(overrides: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Overrides with several values are axes: ``lr=1e-5,1e-4``. Commas in quotes or brackets belong to the value."""
    fixed, axes = [], []
    for override in overrides:
        key, _, text = override.partition("=")
        values = _split(text)
        if len(values) > 1:
            axes.append(Axis(key.strip().replace("-", "_"), tuple(values)))
        else:
            fixed.append(override)
    return fixed, axes


def plan_sweep(common: Path | TrainSettings | None, overrides: Sequence[str]) -> list[Combination]:
    """The settings of every combination, the last axis varying fastest.

    ``common``: what they have in common, or a file with it; the overrides come on top.

    Raises SettingsError for a setting that does not exist or a value that it does not take, and when there is no axis.
    """
    fixed, axes = split_axes(overrides)
    if not axes:
        raise SettingsError(["a sweep needs a setting with several values"], "for example optimizer.lr=1e-5,1e-4,1e-3")
    fruitless = [axis.key for axis in axes if axis.key in ("name", "output") or axis.key.startswith("preview.")]
    if fruitless:
        raise SettingsError([f"{key} is the same for every run of a sweep" for key in fruitless], "give it one value")

    combinations: list[Combination] = []
    for values in itertools.product(*(axis.values for axis in axes)):
        combination = _combination(common, fixed, [(axis.key, value) for axis, value in zip(axes, values, strict=True)])
        # Values may differ only in signs that no folder's name has, and two runs would share a folder.
        if any(combination.name == other.name for other in combinations):
            raise SettingsError(
                [f"two combinations of the sweep are both called {combination.name}"], "name each value once"
            )
        combinations.append(combination)
    return combinations


def _combination(
    common: Path | TrainSettings | None, fixed: Sequence[str], chosen: Sequence[tuple[str, str]]
) -> Combination:
    """The settings of one run of a sweep: ``chosen`` are the keys and values of the axes."""
    overrides = [*fixed, *(f"{key}={value}" for key, value in chosen)]
    if isinstance(common, TrainSettings):
        settings = TrainSettings.parse(apply_overrides(common.model_dump(), overrides), source="the sweep")
    else:
        settings = TrainSettings.load(common, overrides)
    label = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in chosen)
    tag = re.sub(r"[^\w.+-]+", "-", label.replace(", ", "_").replace(" ", ""))
    name = f"{settings.name}-{tag}"
    check_run_name(name)  # the values in it can make it too long

    folder = settings.output / f"{settings.name}-sweep"
    update: dict[str, object] = {"name": name, "output": folder}
    if settings.dataset.cache_to_disk is None:
        # Every run needs the same latents: they are encoded once.
        data = {"cache_to_disk": True, "cache_folder": settings.dataset.cache_folder or folder / "latents"}
        update["dataset"] = settings.dataset.model_copy(update=data)
    return Combination(name, label, settings.model_copy(update=update))


def missing_of(combinations: Sequence[Combination]) -> list[Combination]:
    """The combinations of which there is no finished run yet."""
    return [combination for combination in combinations if _finished(combination) is None]


def run_sweep(
    combinations: Sequence[Combination],
    *,
    workers: int = 0,
    address: str | None = None,
    painter: Painter | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> SweepResult:
    """Train what is missing, then write the table and the sheet.

    ``workers`` above 0 trains that many runs at once in processes of Ray, ``address`` on a Ray cluster (whose machines
    see the same folders). A run that fails is reported and does not keep the others from running. ``painter`` keeps the
    model of the sheet for later. Interrupted when ``control`` asks for the end: everything finished so far is kept.
    """
    folder = combinations[0].settings.output
    missing = missing_of(combinations)
    if len(missing) < len(combinations):
        listener(Notice(f"{len(combinations) - len(missing)} of {len(combinations)} runs are finished already"))
    if missing:
        # What each run writes is checked as it starts, when its model is known.
        require_room([Need(folder, 0, "the runs")], listener)
    failures: list[tuple[Combination, str]] = []
    train_all = _train_here if workers == 0 and address is None else _train_with_ray(workers, address)
    for combination, problem in train_all(missing, listener, control):
        if not problem and not _is_to_end(control) and _finished(combination) is None:
            problem = f"it was stopped before its end, or its folder is not in {folder}, which all machines must share"
        if problem:
            failures.append((combination, problem))
            listener(Notice(f"{combination.label}: {problem}", "warning"))
        else:
            listener(Notice(f"{combination.label}: finished"))
    heed(control)
    outcomes = [outcome for combination in combinations if (outcome := _finished(combination)) is not None]
    table = folder / "table.csv"
    make_folder(folder)
    write_text(table, _table(outcomes, failures))
    write_text(folder / "sweep.json", json.dumps({c.name: c.label for c in combinations}, indent=1) + "\n")
    sheet = None
    preview = combinations[0].settings.preview
    if outcomes and preview.has_prompts:
        from loraloom.formats.image_info import save_image

        sheet = folder / "sheet.png"
        save_image(_sheet(outcomes, painter or Painter(), listener, control), sheet, "")
    elif outcomes:
        listener(Notice("no sheet: set preview.prompts to see what each combination paints"))
    return SweepResult(folder, tuple(outcomes), tuple(failures), table, sheet)


# -- training ----------------------------------------------------------------------------------------------------

Trained = Iterator[tuple[Combination, str]]


def _train_here(missing: Sequence[Combination], listener: Listener, control: Control) -> Trained:
    for combination in missing:
        if wait_out(control) is not Request.GO:
            return
        listener(Notice(f"training with {combination.label}"))
        yield combination, _train(combination, listener, control)


def _is_to_end(control: Control) -> bool:
    """Whether the end of the sweep was asked for; a pause is none."""
    return control() not in (Request.GO, Request.PAUSE)


def _train(combination: Combination, listener: Listener, control: Control) -> str:
    """Train one combination, or go on with it; what went wrong, or an empty text."""
    try:
        folder = _newest(combination)
        if folder is not None:
            train_run(folder, listener=listener, control=control)
        else:
            run_training(combination.settings, listener=listener, control=control)
    except (LoraloomError, OSError) as error:
        return str(error)
    return ""


def _train_with_ray(workers: int, address: str | None) -> Callable[..., Trained]:
    try:
        import ray
    except ImportError as error:
        raise SettingsError(
            ["several workers need the package ray, which is not installed"], 'pip install "loraloom[ray]"'
        ) from error

    def train_all(missing: Sequence[Combination], listener: Listener, control: Control) -> Trained:
        import torch

        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
        else:
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise HardwareError(
                    f"no Ray cluster answers at {address}: {str(error).strip().splitlines()[0]}",
                    Sentence(
                        Action.START_CLUSTER,
                        " on the first machine, with the same versions of Python and Ray on all of them",
                    ),
                ) from error
        try:
            train = ray.remote(num_cpus=1, num_gpus=1 if torch.cuda.is_available() else 0)(_train_in_worker)
            running = {train.remote(combination): combination for combination in missing}
            while running and not _is_to_end(control):
                done, _ = ray.wait(list(running), timeout=1.0)
                for reference in done:
                    try:
                        problem = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        problem = _lost(error)
                    yield running.pop(reference), problem
        finally:
            ray.shutdown()

    return train_all


def _lost(error: Exception) -> str:
    """What became of a run whose worker gave no answer: an error in it, or it was killed, or its machine is gone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = getattr(error, "cause", None)
    reason = f"{type(cause).__name__}: {cause}" if cause is not None else lines[0] if lines else type(error).__name__
    return f"its worker did not answer ({reason}); the same command again goes on with it"


def _train_in_worker(combination: Combination) -> str:
    """In a process of Ray: events go to the run's folder only. One thread, as the machine is shared."""
    import torch

    torch.set_num_threads(1)
    try:
        return _train(combination, ignore, keep_going)
    except Exception as error:  # noqa: BLE001 (the last net of a process of its own)
        report = write_report(error, ["train", f"name={combination.name}", "(by a worker of a sweep)"])
        where = f"the traceback is in {report}" if report is not None else "no folder would take its traceback"
        return f"a fault in Loraloom itself: {type(error).__name__}: {error}; {where}"


# -- what came out -----------------------------------------------------------------------------------------------


def _newest(combination: Combination) -> Path | None:
    """The run folder of a combination with just these settings, the newest where there are several."""
    output, wanted = combination.settings.output, with_absolute_paths(combination.settings)
    if not output.is_dir():
        return None
    pattern = re.compile(re.escape(combination.name) + r"(-\d+)?")
    folders = [path for path in output.iterdir() if path.is_dir() and pattern.fullmatch(path.name)]
    folders = [path for path in folders if _settings_of(path) == wanted]
    return max(folders, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def _settings_of(folder: Path) -> TrainSettings | None:
    try:
        return TrainSettings.load(RunFolder(folder).settings_path)
    except LoraloomError:
        return None


def _finished(combination: Combination) -> Outcome | None:
    folder = _newest(combination)
    if folder is None:
        return None

    # A run that was stopped goes on, and one whose file is gone is trained again: neither has an outcome.
    events: list[Event] = RunLog(folder).events()
    ends = [event for event in events if isinstance(event, RunFinished) and not event.stopped]
    files = [Path(event.path) for event in events if isinstance(event, WeightsSaved) and event.final]
    if not ends or not files or not files[-1].is_file():
        return None
    measured = [event for event in events if isinstance(event, ValidationMeasured)]
    best = min((event for event in measured if event.step), key=lambda event: event.loss, default=None)
    return Outcome(
        combination,
        folder,
        files[-1],
        training_loss=ends[-1].average_loss,
        validation_loss=measured[-1].loss if measured else None,
        best_validation_loss=best.loss if best else None,
        best_epoch=best.epoch if best else None,
        seconds=ends[-1].seconds,
    )


def _table(outcomes: Sequence[Outcome], failures: Sequence[tuple[Combination, str]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    losses = ["training loss", "validation loss", "best validation loss", "at epoch"]
    table.writerow(["combination", *losses, "seconds", "file", "problem"])
    for outcome in outcomes:
        numbers = (outcome.training_loss, outcome.validation_loss, outcome.best_validation_loss)
        table.writerow(
            [
                outcome.combination.label,
                *("" if number is None else f"{number:.6f}" for number in numbers),
                "" if outcome.best_epoch is None else outcome.best_epoch,
                f"{outcome.seconds:.0f}",
                outcome.lora,
                "",
            ]
        )
    for combination, problem in failures:
        table.writerow([combination.label, *[""] * 6, problem])
    return text.getvalue()


def _sheet(outcomes: Sequence[Outcome], painter: Painter, listener: Listener, control: Control) -> Image.Image:
    """Prompts x combinations, each prompt with one seed, and what each checkpoint makes of them alone."""
    from loraloom.generation.sheets import draw_sheet
    from loraloom.training.previews import preview_prompts

    prompts = preview_prompts(outcomes[0].combination.settings.preview)
    several = len({outcome.combination.settings.checkpoint for outcome in outcomes}) > 1
    columns: list[list[Image.Image]] = []
    labels: list[str] = []
    for _, alike in itertools.groupby(outcomes, lambda outcome: _painted_with(outcome.combination.settings)):
        group = list(alike)
        settings = group[0].combination.settings
        loading = Loading(
            device=settings.device,
            precision=settings.mixed_precision,
            prediction=settings.prediction,
            zero_terminal_snr=settings.zero_terminal_snr,
        )
        with painter.job(settings.checkpoint, loading, listener=listener, control=control) as job:
            columns.append(_paint(job, settings, prompts, []))
            labels.append(f"{settings.checkpoint.stem}, without" if several else "without")
            for outcome in group:
                columns.append(_paint(job, outcome.combination.settings, prompts, [job.lora(outcome.lora)]))
                labels.append(outcome.combination.label)
    return draw_sheet(
        [list(row) for row in zip(*columns, strict=True)],
        rows=[prompt.text for prompt in prompts],
        columns=labels,
        title=outcomes[0].combination.settings.output.name,
    )


def _painted_with(settings: TrainSettings) -> tuple[object, ...]:
    """Equal for runs whose pictures without a LoRA are the same."""
    return settings.checkpoint, settings.prediction, settings.zero_terminal_snr, settings.clip_skip


def _paint(
    job: Job, settings: TrainSettings, prompts: Sequence[PreviewPrompt], loras: Sequence[AppliedLora]
) -> list[Image.Image]:
    from loraloom.training.previews import preview_image_settings

    pictures = []
    for index, prompt in enumerate(prompts):
        chosen = preview_image_settings(
            prompt, settings.preview, index, settings.dataset.size, settings.clip_skip, prompt.text
        )
        pictures += [painted.image for painted in job.paint(chosen, loras)]
    return pictures


def _split(text: str) -> list[str]:
    """At the commas that stand in no quotes and no brackets."""
    parts, depth, quote = [""], 0, ""

    # Quotes are asked about first: a bracket between them is a letter like any other.
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts if part.strip()] or [""]


def _short(value: str) -> str:
    """A value as a label: the name of a file instead of its path."""
    text = value.strip("\"'")
    return Path(text).stem if "/" in text or "\\" in text else text
