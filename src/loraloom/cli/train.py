"""``loraloom train``: a settings file, overrides, or both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.jobs import QueueHome, ToQueue, check_queue_options, in_the_home, put_into_queue
from loraloom.errors import SettingsError

if TYPE_CHECKING:
    from loraloom.studio.runs.training import TrainingResult
    from loraloom.training.settings import TrainSettings

__all__ = ["resume_here", "split_arguments", "train", "watched"]


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTINGS.toml] [KEY=VALUE]...",
            help="A settings file and/or overrides: checkpoint=model.ckpt dataset.folder=pictures adapter.rank=32",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Train with a recipe of another program (docs/coming-from.md)."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="LORA_FILE", help="Train with the settings of this LoRA, from its metadata."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Resume a run in its folder, exactly where it stopped."),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(
            "--branch", metavar="RUN[@STEP]", help="Start a new run from a saved state of RUN, with other settings."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume even if the pictures, the checkpoint or the settings differ.")
    ] = False,
    queue: ToQueue = False,
    home: QueueHome = None,
    plot_lr: Annotated[
        bool, typer.Option("--plot-lr", help="Draw the learning rate of every step instead of training.")
    ] = False,
) -> None:
    """Train a LoRA.

    `loraloom settings` explains every setting; `loraloom settings --toml > run.toml` writes a file to edit.
    Ctrl-C once finishes the step, saves and ends; twice stops at once. `--resume RUN` goes on from there.
    """
    from loraloom.studio.runs.folder import run_and_step
    from loraloom.studio.runs.training import branch_training, one_voice, run_training

    with one_voice():
        path, overrides = split_arguments(arguments or [])
        if resume is not None or branch is not None or force:
            _check_alone(path, recipe, like, resume, branch)
        _check_queue(queue=queue, home=home, plot_lr=plot_lr, force=force)
        if resume is None and branch is None:
            settings = _chosen_settings(path, recipe, like, overrides)

    # A run that goes on or branches off has its settings already.
    if queue:
        there = _run_to_queue(resume, branch, overrides)
        put_into_queue(home, "train", there or in_the_home(settings, home))
    elif resume is not None:
        resume_here(_run_here(resume), overrides, force=force)
    elif branch is not None:
        run, step = run_and_step(branch)
        folder = _run_here(run)
        watched(lambda **doors: branch_training(folder, step, overrides, force=force, **doors))
    elif plot_lr:
        _plot_rates(settings)
    else:
        watched(lambda **doors: run_training(settings, **doors))


def _check_queue(*, queue: bool, home: Path | None, plot_lr: bool, force: bool) -> None:
    """What goes with the queue, and what does not."""
    check_queue_options(queue=queue, home=home)
    if queue and (plot_lr or force):
        raise SettingsError([f"--queue does not go with {'--plot-lr' if plot_lr else '--force'}"], "leave one out")


def _run_to_queue(resume: str | None, branch: str | None, overrides: list[str]) -> Path | None:
    """The folder of a run that exists and is to go on, or of a new branch; None for a run that begins."""
    from loraloom.studio.runs.creation import create_branch
    from loraloom.studio.runs.folder import run_and_step

    if resume is not None:
        if overrides:
            raise SettingsError(["a run that goes on by the queue keeps its settings"], "--branch takes other ones")
        return _run_here(resume)
    if branch is None:
        return None
    run, step = run_and_step(branch)
    return create_branch(_run_here(run), step, overrides).path


def resume_here(folder: Path, overrides: list[str], *, force: bool) -> None:
    """Go on with a run in this terminal."""
    from loraloom.studio.runs.training import resume_training

    watched(lambda **doors: resume_training(folder, overrides, force=force, **doors))


def watched(start: Callable[..., TrainingResult]) -> None:
    """Train with a progress bar; Ctrl-C asks for a clean end."""
    from loraloom.cli.progress import ProgressDisplay
    from loraloom.events import ignore
    from loraloom.studio.runs.training import is_leader
    from loraloom.studio.stopping import StopRequest, stop_on_signals

    stop = StopRequest()
    if not is_leader():
        with stop_on_signals(stop, ignore):
            start(listener=ignore, control=stop)
        return
    with ProgressDisplay() as display, stop_on_signals(stop, display):
        result = start(listener=display, control=stop)
    typer.echo(f"run folder: {result.folder}")


def _run_here(text: str) -> Path:
    """The folder of a run. Of several processes, only the leading one has to see it; it hands the settings on."""
    from loraloom.actions import Sentence
    from loraloom.errors import MissingFileError
    from loraloom.studio.runs.folder import find_run
    from loraloom.studio.runs.training import is_leader, launched_together

    if not is_leader():
        return Path(text)
    try:
        return find_run(text)
    except MissingFileError as error:
        if launched_together() == 1:
            raise
        hint = Sentence(error.hint, "; under torchrun it must lie on the machine of process 0 (of --node-rank 0)")
        raise MissingFileError(error.problem, hint) from error


def _check_alone(
    path: Path | None, recipe: Path | None, like: Path | None, resume: str | None, branch: str | None
) -> None:
    """A run that goes on has its settings already."""
    if resume is None and branch is None:
        raise SettingsError(["--force goes with --resume or --branch"])
    if resume is not None and branch is not None:
        raise SettingsError(["--resume goes on with a run and --branch starts a new one: choose one of them"])
    other = next((str(file) for file in (path, recipe, like) if file is not None), None)
    if other is not None:
        raise SettingsError([f"the settings come from the run, not from {other}"], "changes are given as key=value")


def _plot_rates(settings: TrainSettings) -> None:
    from loraloom.studio.planned_rates import plan_rates, rate_lines, write_rates

    curves = plan_rates(settings)
    for line in rate_lines(curves):
        typer.echo(line)
    typer.echo(f"drawing: {write_rates(settings, curves)}")


def _chosen_settings(path: Path | None, recipe: Path | None, like: Path | None, overrides: list[str]) -> TrainSettings:
    """The settings of a run; where they are another program's or a LoRA's, with what became of those printed."""
    from loraloom.studio.recipes import choose_recipe
    from loraloom.studio.runs.training import is_leader
    from loraloom.training.settings import TrainSettings

    found = choose_recipe(path, recipe, like)
    if found is None:
        return TrainSettings.load(path, overrides)
    if is_leader():
        from rich.console import Console

        from loraloom.cli.recipes import show_account

        show_account(found, Console(stderr=True, highlight=False, emoji=False))
    return found.finished(overrides)


def split_arguments(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """A settings file (at most one) and ``key=value`` overrides, which are recognised by the equals sign."""
    overrides = [argument for argument in arguments if "=" in argument]
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise SettingsError(
            [f"{len(files)} settings files were given: {', '.join(files)}"], "name one; the rest as key=value"
        )
    return (Path(files[0]) if files else None), overrides
