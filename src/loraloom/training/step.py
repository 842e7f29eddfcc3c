"""One training step as mathematics: a batch and a model go in, a loss comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from loraloom.diffusion import objectives
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.errors import SettingsError
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel
from loraloom.randomness import normal, seed_of, shuffled, uniform
from loraloom.training.settings import ObjectiveSettings, TrainSettings
from loraloom.training.trained import View

__all__ = [
    "Batch",
    "Objective",
    "Part",
    "Preserved",
    "prior_weight",
    "training_loss",
    "training_losses",
    "without_adapters",
]

UNIFORM_SHARE = 0.25
"""Share of the draws of importance sampling that are uniform, so that no weight is above 1 / share."""


@dataclass(frozen=True)
class Preserved:
    """Images of a batch for which the answer is to be that of the checkpoint alone."""

    rows: Sequence[int]
    """Which of the batch."""
    asked: Conditioning
    """What the model with the adapters is asked, len(rows)."""
    base: Conditioning
    """The same text encoded without the adapters."""


@dataclass(frozen=True)
class Part:
    """The whole batch that a part was cut from: the keys of all its images, and which of them are in the part."""

    keys: Sequence[tuple[int | str, ...]]
    rows: Sequence[int]


@dataclass(frozen=True)
class Batch:
    """What one forward pass learns from; B images of one size, on the model's device.

    ``keys`` identify each draw of an image, (epoch, image, occurrence): all of its randomness follows from them.
    """

    latents: Tensor
    """(B, 4, h, w), float32, scaled."""
    conditioning: Conditioning
    weights: Tensor
    """(B,), weight of each image's loss."""
    keys: Sequence[tuple[int | str, ...]]
    masks: Tensor | None = None
    """(B, 1, h, w) float32 in [0, 1]: 1 is learned, 0 is not. None: everything is learned."""
    regularization: Preserved | None = None
    """Regularization images whose target is what the checkpoint says (``asked`` is not used: it is the caption)."""
    preserved: Preserved | None = None
    """Training images to be asked once more, with the class in place of the trigger word."""
    part: Part | None = None
    """Set where several processes share a batch: what is drawn for a batch as a whole is drawn for the whole."""


@dataclass(frozen=True)
class Objective:
    """What is asked of the model: which noise at which timestep, and how its answer is judged.

    Latents, noise and answers are (B, C, h, w), timesteps (B,).
    """

    schedule: NoiseSchedule
    prediction: objectives.Prediction
    seed: int
    settings: ObjectiveSettings = field(default_factory=ObjectiveSettings)

    def check(self) -> None:
        """Raise SettingsError for what does not go with a checkpoint of this prediction, all of it at once."""
        problems = []
        if self.settings.scale_v_like_noise and self.prediction != "v":
            problems.append("objective.scale_v_like_noise is for v models, but the checkpoint predicts epsilon (noise)")
        if self.settings.v_like_loss and self.prediction == "v":
            problems.append("objective.v_like_loss is for models that predict noise, but the checkpoint predicts v")
        if self.settings.min_timestep >= self._end:
            problems.append(f"objective.min_timestep={self.settings.min_timestep} leaves none of {self._end} timesteps")
        elif not float(self._shape.sum()) > 0:
            problems.append(
                f"objective.timestep_sampling={self.settings.timestep_sampling} never draws a timestep between "
                f"objective.min_timestep={self.settings.min_timestep} and objective.max_timestep={self._end}"
            )
        if problems:
            raise SettingsError(problems, "leave it out, or set prediction if the checkpoint was detected wrongly")

    # -- noise -------------------------------------------------------------------------------------------------

    def noise(self, batch: Batch) -> Tensor:
        """The noise to be predicted, (B, 4, h, w): standard normal, then shifted and coarsened as the settings say."""
        settings = self.settings
        shape = batch.latents.shape[1:]
        noise = torch.stack([normal(shape, self.seed, "noise", *key) for key in batch.keys])
        noise = noise.to(batch.latents.device)
        if settings.noise_offset or settings.adaptive_noise_scale:
            noise = noise + self._shift(batch)
        if settings.multires_noise_iterations:  # after the shift, as in sd-scripts: it is scaled down with the rest
            noise = torch.stack([self._coarsened(row, key) for row, key in zip(noise, batch.keys, strict=True)])
        return noise

    def _shift(self, batch: Batch) -> Tensor:
        """(B, C, 1, 1): a random number for every channel times the strength of the offset."""
        settings, latents = self.settings, batch.latents
        shape = (latents.shape[1], 1, 1)
        offsets = torch.stack([normal(shape, self.seed, "noise offset", *key) for key in batch.keys])
        strength = torch.full((len(latents), 1, 1, 1), settings.noise_offset)
        if settings.noise_offset_random_strength:
            strength = strength * self._uniforms(batch, "noise offset strength")
        strength = strength.to(latents.device)
        if settings.adaptive_noise_scale:
            mean = latents.mean(dim=(2, 3), keepdim=True).abs()
            strength = (strength + settings.adaptive_noise_scale * mean).clamp(min=0)
        return strength * offsets.to(latents.device)

    def _coarsened(self, noise: Tensor, key: tuple[int | str, ...]) -> Tensor:
        """One image's noise with its coarser layers: the i-th is smaller by r**i, r random in [2, 4) each time."""
        settings = self.settings
        channels, height, width = noise.shape
        levels = []
        for index in range(settings.multires_noise_iterations):
            shrink = (2.0 + 2.0 * uniform(self.seed, "coarse noise size", index, *key)) ** index
            size = max(1, int(height / shrink)), max(1, int(width / shrink))
            levels.append(normal((channels, *size), self.seed, "coarse noise", index, *key).to(noise.device))
            if 1 in size:
                break
        return objectives.pyramid_noise(noise, levels, settings.multires_noise_discount)

    def perturbed(self, noise: Tensor, batch: Batch) -> Tensor:
        """The noise that the model sees: with ``ip_noise_gamma`` more than it shall predict (2301.11706)."""
        gamma = self.settings.ip_noise_gamma
        if not gamma:
            return noise
        more = torch.stack([normal(noise.shape[1:], self.seed, "input noise", *key) for key in batch.keys])
        if self.settings.ip_noise_gamma_random_strength:
            more = more * self._uniforms(batch, "input noise strength")
        return noise + gamma * more.to(noise.device)

    def _uniforms(self, batch: Batch, what: str) -> Tensor:
        numbers = [uniform(self.seed, what, *key) for key in batch.keys]
        return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noised latents of the forward process."""
        return objectives.add_noise(self.schedule, latents, noise, timesteps)

    # -- timesteps ---------------------------------------------------------------------------------------------

    def timesteps(self, batch: Batch) -> Tensor:
        """Whole timesteps, (B,), on the CPU (where the schedule is: no wait for the device)."""
        settings = self.settings
        if settings.timestep_sampling == "uniform" and not settings.stratified_timesteps:
            low, count = settings.min_timestep, self._end - settings.min_timestep
            drawn = [low + seed_of(self.seed, "timestep", *key) % count for key in batch.keys]
            return torch.tensor(drawn)

        # Strata are dealt out over the whole batch, so a part of it has to draw as the whole would.
        whole = batch.keys if batch.part is None else batch.part.keys
        numbers = [uniform(self.seed, "timestep", *key) for key in whole]
        if settings.stratified_timesteps:
            strata = shuffled(range(len(numbers)), self.seed, "strata", *(part for key in whole for part in key))
            numbers = [(stratum + number) / len(numbers) for stratum, number in zip(strata, numbers, strict=True)]
        if batch.part is not None:
            numbers = [numbers[row] for row in batch.part.rows]

        return objectives.draw_timesteps(self.density, numbers)

    @property
    def _end(self) -> int:
        return min(self.settings.max_timestep, len(self.schedule))

    @cached_property
    def _range(self) -> Tensor:
        """(T,), float64: uniform over the timesteps that are trained, 0 elsewhere."""
        allowed = torch.zeros(len(self.schedule), dtype=torch.float64)
        allowed[self.settings.min_timestep : self._end] = 1.0
        return allowed / allowed.sum()

    @cached_property
    def density(self) -> Tensor:
        """Probability of every timestep, (T,), float64."""
        density = self._shape / self._shape.sum()
        if self.settings.timestep_sampling == "importance":
            return (1.0 - UNIFORM_SHARE) * density + UNIFORM_SHARE * self._range
        return density

    @cached_property
    def _shape(self) -> Tensor:
        """(T,), float64: how likely timesteps are relative to one another, 0 outside the range."""
        settings = self.settings
        if settings.timestep_sampling == "logit_normal":
            bell = objectives.logit_normal_density(len(self.schedule), settings.logit_mean, settings.logit_std)
            return bell * (self._range > 0)
        if settings.timestep_sampling == "importance":
            # What is expected to be lost: the draws that matter most come most often.
            expected = objectives.linear_denoiser_loss(self.schedule, self.prediction)
            return expected * self._importance * (self._range > 0)
        return self._range

    # -- loss --------------------------------------------------------------------------------------------------

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect model would answer."""
        return objectives.target(self.schedule, self.prediction, latents, noise, timesteps)

    def loss(self, predicted: Tensor, target: Tensor, timesteps: Tensor, *, masks: Tensor | None = None) -> Tensor:
        """Loss of each image, (B,): the mean of its elements' differences times the weight of its timestep."""
        settings = self.settings
        threshold = None if self._thresholds is None else self._thresholds[timesteps]
        errors = objectives.difference(settings.loss_type, predicted, target, threshold)
        if masks is None:
            losses = errors.mean(dim=(1, 2, 3))
        else:
            floor = settings.mask_floor
            masks = masks if not floor else floor + (1.0 - floor) * masks
            losses = objectives.masked_mean(errors, masks, normalized=settings.masked_loss_normalized)
        if self.timestep_weights is None:
            return losses
        return losses * self.timestep_weights[timesteps].to(losses.device)

    @cached_property
    def _thresholds(self) -> Tensor | None:
        settings = self.settings
        if settings.loss_type not in ("huber", "smooth_l1"):
            return None
        return objectives.huber_thresholds(
            self.schedule, settings.huber_schedule, settings.huber_c, settings.huber_scale
        )

    @cached_property
    def timestep_weights(self) -> Tensor | None:
        """Weight of the loss at every timestep, (T,), on the CPU; None where all are 1."""
        weights = self._importance
        if self.settings.timestep_sampling == "importance":
            # uniform / density: the average over all draws is that of uniform draws.
            weights = weights * torch.where(self._range > 0, self._range / self.density, torch.zeros_like(weights))
        return None if bool((weights == 1.0).all()) else weights.float()

    @cached_property
    def _importance(self) -> Tensor:
        """(T,), float64: the weights that the settings give to timesteps, whatever their density."""
        settings, schedule, every = self.settings, self.schedule, torch.arange(len(self.schedule))
        weights = torch.ones(len(schedule), dtype=torch.float64)
        if settings.min_snr_gamma:
            weights = weights * objectives.min_snr_weights(schedule, self.prediction, every, settings.min_snr_gamma)
        if settings.scale_v_like_noise:
            weights = weights * objectives.noise_like_weights(schedule, every)
        if settings.v_like_loss:
            weights = weights * objectives.v_like_weights(schedule, every, settings.v_like_loss)
        if settings.debiased_estimation:
            weights = weights * objectives.debiased_weights(schedule, self.prediction, every)
        return weights


def training_loss(model: LoadedModel, batch: Batch, objective: Objective, attachment: View | None = None) -> Tensor:
    """Loss of each image, (B,): noise the latents, ask the model what was added, compare.

    ``attachment`` is needed where the checkpoint's own answer is: see :func:`training_losses`.
    """
    parts = list(training_losses(model, batch, objective, attachment))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


def training_losses(
    model: LoadedModel, batch: Batch, objective: Objective, attachment: View | None = None
) -> Iterator[Tensor]:
    """The parts of the loss, each (B,), one after the other: propagate one back before asking for the next.

    So only one of them is in memory at a time. First that of the images themselves, then, where the batch has any
    ``preserved``, that of answering the class prompt as the checkpoint alone does (``attachment`` switches the
    adapters off for it).
    """
    noise = objective.noise(batch)
    timesteps = objective.timesteps(batch)
    noisy = objective.add_noise(batch.latents, objective.perturbed(noise, batch), timesteps)
    target = objective.target(batch.latents, noise, timesteps)
    if batch.regularization is not None:
        rows = list(batch.regularization.rows)
        own = _base_answer(model, noisy[rows], timesteps[rows], batch.regularization.base, attachment)
        target = target.index_copy(0, torch.tensor(rows, device=target.device), own)
    predicted = model.denoise(noisy, timesteps, batch.conditioning)
    yield objective.loss(predicted, target, timesteps, masks=batch.masks)
    if batch.preserved is None:
        return
    rows = list(batch.preserved.rows)
    own = _base_answer(model, noisy[rows], timesteps[rows], batch.preserved.base, attachment)
    predicted = model.denoise(noisy[rows], timesteps[rows], batch.preserved.asked)
    differences = (predicted - own).square().mean(dim=(1, 2, 3)) * objective.settings.preserve_weight
    yield torch.zeros(len(noisy), device=differences.device).index_copy(
        0, torch.tensor(rows, device=differences.device), differences
    )


def _base_answer(
    model: LoadedModel, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, attachment: View | None
) -> Tensor:
    if attachment is None:
        raise ValueError("the checkpoint's own answer needs the attachment, to switch the adapters off")
    with torch.no_grad(), without_adapters(attachment):
        return model.denoise(noisy, timesteps, conditioning)


@contextmanager
def without_adapters(attachment: View) -> Iterator[None]:
    """Inside, the model is the checkpoint alone; afterwards the adapters are at full weight again."""
    attachment.set_weights(unet=0.0, text_encoder=0.0)
    try:
        yield
    finally:
        attachment.set_weights(unet=1.0, text_encoder=1.0)


def prior_weight(settings: TrainSettings, step: int, total: int) -> float:
    """Weight of the regularization images' loss in a step (from 0): even change from the first weight to the last."""
    start, end = settings.prior_loss_weight, settings.objective.prior_loss_min
    if end is None:
        return start
    steps = settings.objective.prior_loss_steps or total
    return start + (end - start) * min(step / max(steps - 1, 1), 1.0)
