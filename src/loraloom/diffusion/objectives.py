"""What the U-Net is asked to predict, and how its answer turns into a clean latent.

Latents, noise and model outputs have shape (B, C, h, w); timesteps are whole numbers of shape (B,), one per sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from loraloom.diffusion.schedules import NoiseSchedule

__all__ = ["Prediction", "add_noise", "denoised", "min_snr_weights", "target"]

Prediction = Literal["epsilon", "v"]


def add_noise(schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The noisy latents that the model sees: ``signal(t) * latents + noise(t) * noise``."""
    signal, amount = _scales(schedule, timesteps, latents)
    return signal * latents + amount * noise


def target(
    schedule: NoiseSchedule, prediction: Prediction, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the model should answer: the noise, or ``v = signal * noise - noise(t) * latents`` (2202.00512, app. D)."""
    if prediction == "epsilon":
        return noise
    signal, amount = _scales(schedule, timesteps, latents)
    return signal * noise - amount * latents


def denoised(prediction: Prediction, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents for ``x = x0 + sigma * noise`` (variance exploding), sigma (B,), given the model's output.

    The model itself is to be called with ``x / sqrt(1 + sigma²)``.
    """
    sigma = _per_sample(sigma, x)
    if prediction == "epsilon":
        return x - sigma * output
    return x / (sigma.square() + 1) - output * sigma / (sigma.square() + 1).sqrt()


def min_snr_weights(schedule: NoiseSchedule, prediction: Prediction, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma loss weights (B,) (Hang et al., 2303.09556), on the squared error of the model's own target."""
    snr = schedule.snr(timesteps)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)  # at zero SNR: gamma / 0 = inf, so 1
    return snr.clamp(max=gamma) / (snr + 1)


def _scales(schedule: NoiseSchedule, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(signal, noise) of every sample, shaped to multiply ``like``."""
    index = timesteps.to(schedule.signal.device, torch.long)
    return _per_sample(schedule.signal[index], like), _per_sample(schedule.noise[index], like)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
