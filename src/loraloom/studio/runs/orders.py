"""What a run is told to do once while it goes on: save now, paint previews now."""

from __future__ import annotations

from pathlib import Path

from loraloom.control import Order
from loraloom.errors import SettingsError
from loraloom.studio.runs.control import leave_order
from loraloom.studio.runs.folder import RunFolder
from loraloom.training.settings import TrainSettings

__all__ = ["give_order"]


def give_order(run: Path, order: Order) -> None:
    """Have the process that trains the run carry out an order after the step in progress, at once where it is paused.

    One that comes before the first step waits for it. Given twice before it is carried out, it is carried out once.
    What was written is in the log, as if it had been due. Raises ResumeError when no process trains the run, and
    SettingsError for previews of a run that has no prompts.
    """
    if order is Order.PREVIEW and not TrainSettings.load(RunFolder(run).settings_path).preview.has_prompts:
        raise SettingsError(
            [f"{run} has no prompts to paint"], "a run that goes on may be given preview.prompts or preview.file"
        )
    leave_order(run, order)
