"""``loraloom train``: a settings file, overrides, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraloom.errors import SettingsError

__all__ = ["train"]


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTINGS.toml] [KEY=VALUE]...",
            help="A settings file and/or overrides: checkpoint=model.ckpt dataset.folder=pictures adapter.rank=32",
        ),
    ] = None,
) -> None:
    """Train a LoRA.

    `loraloom settings` explains every setting; `loraloom settings --toml > run.toml` writes a file to edit.
    Ctrl-C once finishes the step, saves and ends; twice stops at once.
    """
    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.training import StopRequest, run_training, stop_on_signals
    from loraloom.training.settings import TrainSettings

    path, overrides = split_arguments(arguments or [])
    settings = TrainSettings.load(path, overrides)
    stop = StopRequest()
    with ProgressDisplay() as display, stop_on_signals(stop, display):
        result = run_training(settings, listener=display, stop=stop)
    typer.echo(f"run folder: {result.folder}")


def split_arguments(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """A settings file (at most one) and ``key=value`` overrides, told apart by the equals sign."""
    overrides = [argument for argument in arguments if "=" in argument]
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise SettingsError(
            [f"{len(files)} settings files were given: {', '.join(files)}"], "name one; the rest as key=value"
        )
    return (Path(files[0]) if files else None), overrides
