"""``loraloom runs``, ``pause``, ``resume``, ``stop``, ``save`` and ``preview``: runs seen and steered from another
terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.output import duration, takes_all_letters

if TYPE_CHECKING:
    from loraloom.studio.runs.status import RunStatus

__all__ = ["pause", "preview", "resume", "runs", "save", "stop"]

Run = Annotated[str, typer.Argument(metavar="RUN", help="The name of a run in runs/, or its folder.")]


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per run.")] = False,
) -> None:
    """List the runs of a folder: state, progress, loss, best validation loss, time left, last preview."""
    import json

    from loraloom.studio.results import to_record
    from loraloom.studio.runs.status import list_runs

    found = list_runs(folder)
    if as_json:
        for run in found:
            typer.echo(json.dumps(to_record(run), ensure_ascii=not takes_all_letters()))
    elif found:
        _show(found)
    else:
        typer.echo(f"no runs in {folder}")


def pause(
    run: Run,
    free: Annotated[
        bool, typer.Option("--free", help="Save the state and end the process, which frees all memory.")
    ] = False,
) -> None:
    """Pause a run after the step in progress, until `loraloom resume` or `loraloom stop`."""
    from loraloom.control import Request
    from loraloom.studio.runs.control import ask
    from loraloom.studio.runs.folder import find_run

    ask(find_run(run), Request.LEAVE if free else Request.PAUSE)
    how = "ends after the step in progress with its state kept" if free else "waits after the step in progress"
    typer.echo(f"{run} {how}; `loraloom resume {run}` lets it go on")


def resume(run: Run) -> None:
    """Let a paused run go on: in its own process if that is waiting, else here (as `loraloom train --resume RUN`
    does)."""
    from loraloom.cli.train import resume_here
    from loraloom.studio.runs.control import let_go_on
    from loraloom.studio.runs.folder import find_run

    folder = find_run(run)
    if let_go_on(folder):
        typer.echo(f"{run} goes on in its own process")
    else:
        resume_here(folder, [], force=False)


def stop(
    run: Run,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Save the LoRA and the state before the end.")] = True,
) -> None:
    """End a run after the step in progress, as Ctrl-C in its terminal would."""
    from loraloom.control import Request
    from loraloom.studio.runs.control import ask
    from loraloom.studio.runs.folder import find_run

    ask(find_run(run), Request.STOP if save else Request.DISCARD)
    typer.echo(f"{run} ends after the step in progress{'' if save else ' without saving'}")


def save(run: Run) -> None:
    """Save the LoRA and the state after the step in progress (at once in a pause); the run goes on as it was."""
    from loraloom.control import Order
    from loraloom.studio.runs.folder import find_run
    from loraloom.studio.runs.orders import give_order

    give_order(find_run(run), Order.SAVE)
    typer.echo(f"{run} saves its LoRA and its state after the step in progress, and goes on")


def preview(run: Run) -> None:
    """Paint the previews after the step in progress (at once in a pause); the run goes on as it was."""
    from loraloom.control import Order
    from loraloom.studio.runs.folder import find_run
    from loraloom.studio.runs.orders import give_order

    give_order(find_run(run), Order.PREVIEW)
    typer.echo(f"{run} paints its previews after the step in progress, and goes on")


def _show(found: list[RunStatus]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "loss", "best validation", "time left", "last preview"):
        table.add_column(name, overflow="fold")
    for run in found:
        table.add_row(*map(Text, _cells(run)))
    console = Console(highlight=False, emoji=False)
    console.print(table)
    for run in found:
        if run.problem:
            console.print(Text(f"{run.name}: {run.problem}"), soft_wrap=True)


def _cells(run: RunStatus) -> tuple[str, ...]:
    """A run's row. What it has not come to yet is left empty: a zero would look measured."""
    return (
        run.name,
        run.state,
        f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
        f"{run.loss:.4f}" if run.loss is not None else "",
        f"{run.best_loss:.4f}, epoch {run.best_epoch}" if run.best_loss is not None else "",
        duration(run.seconds_left) if run.is_unfinished and run.seconds_left is not None else "",
        Path(run.last_preview).name if run.last_preview else "",
    )
