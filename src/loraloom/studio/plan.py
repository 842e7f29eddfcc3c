"""Plan a run, and find the cheapest change that fits a given memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from loraloom.events import Listener, ignore
from loraloom.models.checkpoint import open_checkpoint
from loraloom.training.opening import with_resolution
from loraloom.training.plan import Change, Plan, cheapest_changes, make_plan
from loraloom.training.settings import TrainSettings

__all__ = ["Change", "Plan", "plan_run"]


def plan_run(
    settings: TrainSettings, *, dry: bool = False, limit: int | None = None, listener: Listener = ignore
) -> tuple[Plan, list[Change]]:
    """The plan, and with ``limit`` (bytes) the changes that fit it. The run itself leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="loraloom-plan-") as folder:
        plan = make_plan(settings, dry=dry, folder=Path(folder), listener=listener)
    if limit is None:
        return plan, []
    checkpoint = open_checkpoint(settings.checkpoint)
    settings = with_resolution(settings, checkpoint, ignore)
    return plan, cheapest_changes(settings, checkpoint, plan.work, limit, plan.memory)
