"""One training step as mathematics: a batch and a model go in, a loss comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.diffusion import objectives
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel
from loraloom.randomness import normal, seed_of

__all__ = ["Batch", "Objective", "training_loss"]


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


@dataclass(frozen=True)
class Objective:
    """What is asked of the model: which noise at which timestep, and how its answer is judged."""

    schedule: NoiseSchedule
    prediction: objectives.Prediction
    seed: int

    def noise(self, batch: Batch) -> Tensor:
        """Standard normal noise, (B, 4, h, w)."""
        shape = batch.latents.shape[1:]
        noise = torch.stack([normal(shape, self.seed, "noise", *key) for key in batch.keys])
        return noise.to(batch.latents.device)

    def timesteps(self, batch: Batch) -> Tensor:
        """Uniform whole timesteps, (B,), on the CPU."""
        count = len(self.schedule.alphas_cumprod)
        drawn = [seed_of(self.seed, "timestep", *key) % count for key in batch.keys]
        return torch.tensor(drawn)  # on the CPU, where the schedule is: no wait for the device

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noised latents of the forward process."""
        return objectives.add_noise(self.schedule, latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect model would answer."""
        return objectives.target(self.schedule, self.prediction, latents, noise, timesteps)

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of each image, (B,)."""
        return (predicted - target).square().mean(dim=(1, 2, 3))


def training_loss(model: LoadedModel, batch: Batch, objective: Objective) -> Tensor:
    """Loss of each image, (B,): noise the latents, ask the model what was added, compare."""
    noise = objective.noise(batch)
    timesteps = objective.timesteps(batch)
    noisy = objective.add_noise(batch.latents, noise, timesteps)
    predicted = model.denoise(noisy, timesteps, batch.conditioning)
    target = objective.target(batch.latents, noise, timesteps)
    return objective.loss(predicted, target)
