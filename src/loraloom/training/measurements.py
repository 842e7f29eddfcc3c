"""The losses that a run measures as it goes on: of pictures that are held out, and in the end of all it learned."""

from __future__ import annotations

from collections.abc import Sequence

from loraloom.control import Control
from loraloom.data.sample import Sample
from loraloom.errors import OutputError
from loraloom.events import Notice, ValidationMeasured
from loraloom.training.batching import size_conditioning
from loraloom.training.interludes import Interludes
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.step import without_adapters
from loraloom.training.validation import ImageLosses, Losses, Patience, Validator, write_image_losses
from loraloom.training.weights_writer import WeightsWriter

__all__ = ["Measurements"]


class Measurements:
    """Measures in the interludes of a run; ``patience`` hears of each validation, ``weights`` keep the best."""

    def __init__(
        self, parts: RunParts, progress: Progress, interludes: Interludes, patience: Patience, weights: WeightsWriter
    ) -> None:
        self._parts = parts
        self._progress = progress
        self._interludes = interludes
        self._patience = patience
        self._weights = weights

    def validate(self, epoch: int) -> None:
        """Measure the loss on the held-out pictures; the best so far (the bare checkpoint's not counted) is kept."""
        parts, step = self._parts, self._progress.step
        if not parts.held_out:
            return
        losses = self._interludes.do("the validation", lambda control: self._measure(parts.held_out, control))
        if losses is None:
            return

        best = step > 0 and self._patience.heard(losses.mean, step=step, epoch=epoch)
        by_timestep = {str(timestep): loss for timestep, loss in losses.by_timestep.items()}
        parts.listener(ValidationMeasured(step, epoch, losses.mean, by_timestep, best))
        if best and parts.settings.validation.save_best:
            self._weights.save_on_the_way(f"{parts.settings.name}-best", epoch)

    def tell_of_best(self) -> None:
        """Say which measurement was the best, and whether the run ends because nothing better came."""
        patience = self._patience
        if not patience.best_step:
            return
        text = f"best validation loss {patience.best:.4f} at step {patience.best_step} (epoch {patience.best_epoch})"
        if patience.is_over:
            text += f"; {patience.without_better} measurements were no better, so the run ends here"
        self._parts.listener(Notice(text))

    def write_image_losses(self) -> None:
        """Which training picture was learned, and how well."""
        parts = self._parts
        if not parts.settings.validation.image_losses:
            return
        losses = self._interludes.do("what was learned of every picture", self._image_losses)
        if losses is None or not parts.team.leads:
            return

        path = parts.folder / "image-losses.csv"
        try:
            write_image_losses(path, losses)
        except OutputError as error:
            parts.listener(Notice(f"the losses of the pictures were not written: {error}", "warning"))
            return
        parts.listener(Notice(f"losses of every training picture: {path}"))

    def _image_losses(self, control: Control) -> list[ImageLosses]:
        samples = self._parts.dataset.training
        after = self._measure(samples, control)
        with without_adapters(self._parts.attachment):
            before = self._measure(samples, control)
        return [ImageLosses(name, before.by_image[name], loss) for name, loss in after.by_image.items()]

    def _measure(self, samples: Sequence[Sample], control: Control) -> Losses:
        """The validation of these pictures (fixed noise and timesteps) for the weights that would be saved now."""
        parts, settings = self._parts, self._parts.settings
        validator = Validator(
            parts.model,
            parts.cache,
            parts.encode,
            size_conditioning,
            samples,
            settings.validation,
            settings.batch_size,
        )
        was_training = parts.adapters.training
        parts.adapters.eval()
        try:
            with parts.as_shown():
                return validator.measure(control)
        finally:
            parts.adapters.train(was_training)
