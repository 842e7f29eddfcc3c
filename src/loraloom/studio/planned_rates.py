"""Learning rates of a run that has not begun: every parameter group over every step, without loading the model."""

from __future__ import annotations

from pathlib import Path

from loraloom.formats.files import atomic_writer, make_folder
from loraloom.studio.curves import Curves, draw_rates, sparkline
from loraloom.training.settings import TrainSettings

__all__ = ["plan_rates", "rate_lines", "write_rates"]


def plan_rates(settings: TrainSettings) -> Curves:
    """The rate of every parameter group in every step, with no losses.

    Reads the names in the checkpoint, and the dataset unless ``steps`` says how long the run is. Raises what a run
    would raise for them and for rates that do not fit.
    """
    from loraloom.models.checkpoint import open_checkpoint
    from loraloom.training.lr_schedules import create_lr_schedule
    from loraloom.training.opening import planned_groups, with_resolution
    from loraloom.training.parameter_groups import rates_at

    checkpoint = open_checkpoint(settings.checkpoint)
    settings = with_resolution(settings, checkpoint, lambda event: None)
    total = _total_steps(settings)
    optimizer, plan = settings.optimizer, planned_groups(settings, checkpoint)
    schedule = create_lr_schedule(settings.lr_schedule, total)
    rows = [rates_at(plan, optimizer, schedule, step, total) for step in range(total)]
    rates = {group.name: tuple(row[group.name] for row in rows) for group in plan}
    return Curves(steps=tuple(range(1, total + 1)), rates=rates)


def _total_steps(settings: TrainSettings) -> int:
    from loraloom.data.dataset import load_dataset
    from loraloom.training.validation import split_off
    from loraloom.training.work import count_work

    if settings.steps is not None:
        return settings.steps
    return count_work(settings, split_off(load_dataset(settings.dataset), settings.validation)[0]).steps


def rate_lines(curves: Curves, width: int = 40) -> list[str]:
    """For each group its curve in block letters, its highest rate, and its last."""
    longest = max(len(name) for name in curves.rates)
    return [f"{len(curves.steps)} steps"] + [
        f"{name:<{longest}}  {sparkline(rates, width)}  at most {max(rates):.3g}, at the end {rates[-1]:.3g}"
        for name, rates in curves.rates.items()
    ]


def write_rates(settings: TrainSettings, curves: Curves) -> Path:
    """Draw the rates into ``<output>/<name>-lr.png``; raises OutputError."""
    make_folder(settings.output, hint="set output=FOLDER")
    path = settings.output / f"{settings.name}-lr.png"
    with atomic_writer(path) as file:
        draw_rates(curves, title=settings.name).save(file, "PNG", optimize=True)
    return path
