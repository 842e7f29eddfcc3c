"""One update of what is trained: the gradients of a step's pictures, in all processes together."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from loraloom.errors import NotFiniteError
from loraloom.training.batching import BatchMaker
from loraloom.training.parameter_groups import text_encoder_stopped
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.step import training_losses
from loraloom.training.steps import Step, StepPlan

__all__ = ["Updates"]


class Updates:
    """Makes updates; ``not_finite`` gives the error for a loss or a gradient that is none."""

    def __init__(
        self,
        parts: RunParts,
        plan: StepPlan,
        batches: BatchMaker,
        progress: Progress,
        not_finite: Callable[[str], NotFiniteError],
    ) -> None:
        self._parts = parts
        self._plan = plan
        self._batches = batches
        self._progress = progress
        self._not_finite = not_finite
        self._trained = [parameter for parameter in parts.adapters.parameters() if parameter.requires_grad]

    def make(self, step: Step) -> tuple[float, bool]:
        """One update from one or several batches: the mean loss of its images, and whether it was applied.

        Every image counts alike: a short last batch weighs as little as it has images. NotFiniteError for a loss or
        a gradient that is NaN or infinite.
        """
        parts, number = self._parts, self._progress.step

        # A text encoder that learns no more drops nothing either.
        parts.adapters.train()
        if text_encoder_stopped(parts.settings.optimizer, number, self._plan.total_steps):
            parts.adapters.rest_text_encoders()

        loss = float(parts.team.sum_gradients(self._trained, self.accumulate(step))) / step.images
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss of step {number + 1} is {loss}")
        return loss, self._apply()

    def accumulate(self, step: Step) -> Tensor:
        """The backward passes of this process's share of a step; returns the sum of its images' losses, ()."""
        parts, number = self._parts, self._progress.step
        settings = parts.settings
        full = settings.batch_size * settings.gradient_accumulation
        sums: list[Tensor] = []
        for share in parts.team.share(step.batches):
            parts.adapters.seed_step(settings.seed, number, share.number)
            parts.adapters.take_rows(*self._batches.dropout_rows(step.epoch, share, number))
            batch = self._batches.batch(step.epoch, share.batch, number, None if share.is_whole else share.rows)
            for part in training_losses(parts.model, batch, parts.objective, parts.attachment):
                losses = part * batch.weights
                parts.scaler.scale(losses.sum() / full).backward()  # type: ignore[no-untyped-call]
                sums.append(losses.detach().sum())
        return torch.stack(sums).sum() if sums else torch.zeros((), device=parts.model.device)

    def _apply(self) -> bool:
        """One update from the gradients that are there; False when fp16 overflowed and it was skipped."""
        parts = self._parts
        parts.scaler.unscale_(parts.optimizer)
        limit = parts.settings.optimizer.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(parts.adapters.parameters(), limit))

        # With a loss scale that is an overflow, which the scaler notices and skips.
        finite = math.isfinite(norm)
        if not finite and not parts.scaler.is_enabled():
            raise self._not_finite(f"the gradient of step {self._progress.step + 1} is not finite")

        # From here until the step is counted, tensors and counters do not belong together.
        self._progress.is_sound = False
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
        if finite and parts.settings.adapter.max_norm:
            parts.adapters.apply_max_norm(parts.settings.adapter.max_norm)
        return finite
