"""The files of what is trained, as a run goes on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from loraloom.errors import LoraloomError, OutputError
from loraloom.events import Notice, WeightsSaved
from loraloom.training.failures import Failures
from loraloom.training.optimizers import evaluating
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.saving import SAVE_TYPES, FileFacts, checkpoint_hashes, remove_older, write_or_rescue
from loraloom.training.state import largest_value
from loraloom.training.steps import StepPlan

__all__ = ["WeightsWriter"]


class WeightsWriter:
    """Writes ``weights/NAME.safetensors`` (or the form that is set) of a run."""

    def __init__(self, parts: RunParts, plan: StepPlan, progress: Progress, failures: Failures) -> None:
        self._parts = parts
        self._plan = plan
        self._progress = progress
        self._failures = failures

    @cached_property
    def _checkpoint_hashes(self) -> tuple[str, str] | None:
        """Read from the whole file, so only when something is saved."""
        return checkpoint_hashes(self._parts.model.checkpoint.path)

    def save(self, name: str, epoch: int, *, final: bool = False) -> Path:
        """Write the LoRA as it is now. NotFiniteError for weights that the file's type cannot hold."""
        parts, settings = self._parts, self._parts.settings
        if not parts.team.leads:
            return parts.folder

        # A type that cannot hold a number would write infinity in its place.
        largest = largest_value(parts.adapters.state_dict().values())
        if not largest <= torch.finfo(SAVE_TYPES[settings.saving.precision]).max:
            raise self._failures.beyond_saving()

        if parts.ema is not None and settings.ema.save == "both":
            with evaluating(parts.optimizer):
                self._write(f"{name}-raw", epoch, final=False)
        with parts.as_shown():
            path = self._write(name, epoch, final=final)
        remove_older(path, settings.name, settings.saving.keep_last)
        return path

    def save_on_the_way(self, name: str, epoch: int) -> None:
        """Save; where no disk takes the file the run goes on, since all that was learned is still in memory."""
        try:
            self.save(name, epoch)
        except OutputError as error:
            text = f"{error}; the training goes on, and the next file is tried again"
            self._parts.listener(Notice(text, "warning"))

    def _write(self, name: str, epoch: int, *, final: bool) -> Path:
        parts, step = self._parts, self._progress.step
        path = parts.folder / "weights" / f"{name}.{parts.settings.saving.format}"
        facts = FileFacts(
            settings=parts.settings,
            dataset=parts.dataset,
            model=parts.model,
            checkpoint_hashes=self._checkpoint_hashes,
            mixed_precision=parts.precision.name,
            max_token_length=parts.max_token_length,
            steps_per_epoch=self._plan.steps_per_epoch,
            total_steps=self._plan.total_steps,
            started=parts.started,
            step=step,
            epoch=epoch,
            origins=parts.origins,
        )
        path = write_or_rescue(path, parts.folder, lambda wanted: parts.write(wanted, facts), parts.listener)
        parts.listener(WeightsSaved(path=str(path), step=step, epoch=epoch, final=final))
        return path

    def keep_last_good(self) -> str:
        """Save the weights before a bad step; says where they are, or why they are nowhere."""
        try:
            path = self.save(f"{self._parts.settings.name}-last-good-step{self._progress.step:08d}", 0)
        except LoraloomError as error:
            return f"the weights before that step could not be saved: {error.problem}"
        return f"the weights before that step are in {path}"
