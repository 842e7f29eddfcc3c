"""``loraloom sweep``: train every combination of some settings and compare what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.jobs import QueueHome, ToQueue, check_queue_options, in_the_home, put_into_queue

if TYPE_CHECKING:
    from rich.table import Table

    from loraloom.studio.sweeps import SweepResult

__all__ = ["sweep"]


def sweep(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[SETTINGS.toml] KEY=VALUE,VALUE... [KEY=VALUE]...",
            help="As for train; settings with several values are varied: optimizer.lr=1e-5,1e-4 adapter.rank=8,32",
        ),
    ],
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Runs to train at once, through Ray. 0: one after another.")
    ] = 0,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Use the machines of a Ray cluster that share these folders.")
    ] = None,
    queue: ToQueue = False,
    home: QueueHome = None,
) -> None:
    """Train a LoRA for every combination, on the same draws, and compare: a table of losses and a sheet of images.

    Run it again after an interruption: finished runs are kept, an interrupted one goes on.
    """
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.cli.train import split_arguments
    from loraloom.errors import SettingsError
    from loraloom.studio.runs.training import launched_together, one_voice
    from loraloom.studio.stopping import StopRequest, stop_on_signals
    from loraloom.studio.sweeps import plan_sweep, run_sweep

    if launched_together() > 1:
        with one_voice():
            raise SettingsError(
                ["a sweep under torchrun"], "start it without torchrun; --workers trains several runs at once"
            )
    if queue or home is not None:
        _put_into_queue(*split_arguments(arguments), home, queue=queue, workers=workers, address=ray_address)
        return
    combinations = plan_sweep(*split_arguments(arguments))
    console = Console(highlight=False, emoji=False)
    stop = StopRequest()
    with ProgressDisplay(console) as display, stop_on_signals(stop, display):
        result = run_sweep(combinations, workers=workers, address=ray_address, listener=display, control=stop)
    console.print(_losses(result))
    if result.sheet is not None:
        console.print(f"sheet: {result.sheet}", markup=False, soft_wrap=True)
    console.print(f"table: {result.table}", markup=False, soft_wrap=True)
    if (failure := result.failure()) is not None:
        raise failure


def _put_into_queue(
    path: Path | None, overrides: list[str], home: Path | None, *, queue: bool, workers: int, address: str | None
) -> None:
    from loraloom.errors import SettingsError
    from loraloom.studio.jobs.settings import SweepSettings

    check_queue_options(queue=queue, home=home)
    if workers or address is not None:
        raise SettingsError(
            ["--queue does not go with --workers or --ray-address"], "a job trains one run after another"
        )
    settings = SweepSettings.load_axes(path, overrides)
    put_into_queue(home, "sweep", settings.model_copy(update={"train": in_the_home(settings.train, home)}))


def _losses(result: SweepResult) -> Table:
    """A row for each combination, the best of them marked; those that failed were asked for as well."""
    from rich.table import Table

    table = Table("combination", title="Losses", title_justify="left")
    for heading in ("training", "validation", "best", "at epoch"):
        table.add_column(heading, justify="right")
    best = result.best
    for outcome in result.outcomes:
        numbers = (outcome.training_loss, outcome.validation_loss, outcome.best_validation_loss)
        table.add_row(
            outcome.combination.label,
            *("-" if number is None else f"{number:.4f}" for number in numbers),
            "-" if outcome.best_epoch is None else str(outcome.best_epoch),
            style="bold green" if outcome in best else "",
        )
    for combination, _ in result.failures:
        table.add_row(combination.label, "-", "-", "-", "failed", style="red")
    return table
