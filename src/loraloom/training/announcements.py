"""What a run says of itself before its first step."""

from __future__ import annotations

import math

from loraloom.events import Notice, RunResumed, RunStarted
from loraloom.training.lr_schedules import LrSchedule, create_lr_schedule
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.state import ResumePoint
from loraloom.training.steps import StepPlan

__all__ = ["announce_resumed", "announce_started"]


def announce_resumed(
    parts: RunParts, plan: StepPlan, progress: Progress, schedule: LrSchedule, point: ResumePoint
) -> None:
    """Say from where the run goes on, and what another length makes of it."""
    state = point.state
    parts.listener(RunResumed(progress.step, str(state.path), tuple(point.changed)))
    if plan.total_steps != state.values["total_steps"]:
        parts.listener(_other_length(parts, plan.total_steps, state.values["total_steps"], progress.step, schedule))


def _other_length(parts: RunParts, total: int, before: int, step: int, schedule: LrSchedule) -> Notice:
    """A schedule is drawn over the whole run: with another length the steps that are left have other rates."""
    old = create_lr_schedule(parts.settings.lr_schedule, before)(min(step, before - 1))
    new = schedule(min(step, total - 1))
    text = f"the run is now {total} steps long, it was {before}"
    if old == new:
        return Notice(text)
    text += (
        f": the learning rate schedule is drawn over the new length, so the next step uses {new:.3g} of the rate "
        f"where it would have used {old:.3g}; a run of {total} steps from the start would differ"
    )
    return Notice(text, "warning")


def announce_started(parts: RunParts, plan: StepPlan) -> None:
    """Say how long the run is and what it trains."""
    total = plan.total_steps
    trained = (parameter.numel() for parameter in parts.adapters.parameters() if parameter.requires_grad)
    parts.listener(
        RunStarted(
            folder=str(parts.folder),
            total_steps=total,
            steps_per_epoch=plan.steps_per_epoch,
            epochs=math.ceil(total / plan.steps_per_epoch),
            images=len(parts.dataset.samples),
            trainable_parameters=sum(trained),
        )
    )
