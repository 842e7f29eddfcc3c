"""The previews of a run as it goes on: the same prompts each time."""

from __future__ import annotations

from functools import cached_property

import torch

from loraloom.control import Control
from loraloom.errors import OutputError
from loraloom.events import Notice
from loraloom.training.interludes import Interludes
from loraloom.training.parts import RunParts
from loraloom.training.previews import Moment, PreviewPrompt, paint_previews, preview_prompts
from loraloom.training.progress import Progress
from loraloom.training.steps import StepPlan
from loraloom.training.validation import Patience

__all__ = ["PreviewSeries"]


class PreviewSeries:
    """Paints in the interludes of a run; ``patience`` knows the best step, which the sheet marks."""

    def __init__(
        self, parts: RunParts, plan: StepPlan, progress: Progress, interludes: Interludes, patience: Patience
    ) -> None:
        self._parts = parts
        self._plan = plan
        self._progress = progress
        self._interludes = interludes
        self._patience = patience

    @cached_property
    def _prompts(self) -> list[PreviewPrompt]:
        """What is painted, read once: a file may change while the run goes on."""
        return preview_prompts(self._parts.settings.preview)

    def paint(self, epoch: int, *, by_step: bool = False) -> None:
        """Paint all prompts, as files named by the epoch or ``by_step``, unless the run is asked to end meanwhile."""
        if self._parts.settings.preview.has_prompts:
            self._interludes.do("a preview", lambda control: self._attempt(epoch, by_step, control))

    def _attempt(self, epoch: int, by_step: bool, control: Control) -> bool:
        """Whether they were saved; a disk that takes none must not end the run."""
        try:
            self._paint(epoch, by_step, control)
        except OutputError as error:
            text = f"the previews of step {self._progress.step} were not saved: {error}"
            self._parts.listener(Notice(text, "warning"))
            return False
        return True

    def _paint(self, epoch: int, by_step: bool, control: Control) -> None:
        parts = self._parts
        if not self._prompts:
            parts.listener(Notice(f"no previews: {parts.settings.preview.file} has no prompts", "warning"))
            return
        steps_per_epoch, best_step = self._plan.steps_per_epoch, self._patience.best_step
        moment = Moment(epoch, self._progress.step, by_step, steps_per_epoch, best_step)
        with torch.no_grad(), parts.as_shown():
            paint_previews(
                parts.model,
                parts.adapters,
                parts.attachment,
                parts.settings,
                self._prompts,
                parts.folder / "previews",
                moment=moment,
                size=parts.settings.dataset.size,
                listener=parts.listener,
                control=control,
            )
