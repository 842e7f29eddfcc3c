"""Plan a run, and find the cheapest change that fits a given memory."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.control import Control, keep_going
from loraloom.errors import SettingsError
from loraloom.events import Listener, ignore
from loraloom.hardware import choose_device, free_memory_bytes
from loraloom.models.checkpoint import open_checkpoint
from loraloom.studio.results import to_record
from loraloom.training.opening import with_resolution
from loraloom.training.plan import Change, Plan, cheapest_changes, make_plan
from loraloom.training.settings import TrainSettings

__all__ = ["Change", "Plan", "changes_for", "least_peak", "parse_size", "plan_record", "plan_run", "room_here"]

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def plan_run(
    settings: TrainSettings,
    *,
    dry: bool = False,
    limit: int | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> tuple[Plan, list[Change]]:
    """The plan, and with ``limit`` (bytes) the changes that fit it. The run itself leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="loraloom-plan-") as folder:
        plan = make_plan(settings, dry=dry, folder=Path(folder), listener=listener, control=control)
    return plan, [] if limit is None else changes_for(settings, plan, limit)


def changes_for(settings: TrainSettings, plan: Plan, limit: int) -> list[Change]:
    """The cheapest changes of the settings that bring the plan's peak under ``limit`` bytes."""
    checkpoint = open_checkpoint(settings.checkpoint)
    settings = with_resolution(settings, checkpoint, ignore)
    return cheapest_changes(settings, checkpoint, plan.work, limit, plan.memory)


def room_here(settings: TrainSettings, plan: Plan) -> int | None:
    """Bytes that a run may take on this machine now, beside what others take; None where the system does not say."""
    free = free_memory_bytes(choose_device(settings.device))
    return None if free is None else free + plan.memory.process


def plan_record(plan: Plan, changes: list[Change]) -> dict[str, Any]:
    """Everything that was found, as plain data."""
    return {**to_record(plan), "changes": to_record(changes)}


def least_peak(plan: Plan, changes: list[Change]) -> int:
    """The peak in bytes with all changes made: what fits a limit if anything does."""
    return changes[-1].peak if changes else plan.memory.peak


def parse_size(text: str) -> int:
    """Bytes of ``6GB``, ``6 GiB``, ``800m``; a unit is a power of 1024. SettingsError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        problem = Sentence(Action.LIMIT_MEMORY.of(size=repr(text)), " is not a size")
        raise SettingsError([problem], Sentence("for example ", Action.LIMIT_MEMORY.of(size="6GB")))
    return int(float(match[1]) * _UNITS[match[2]])
