"""What the U-Net is asked to predict, and how its answer turns into a clean latent.

Latents, noise and model outputs have shape (B, C, h, w); timesteps are whole numbers of shape (B,), one per sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from loraloom.diffusion.schedules import NoiseSchedule

__all__ = [
    "HuberSchedule",
    "LossType",
    "Prediction",
    "add_noise",
    "debiased_weights",
    "denoised",
    "difference",
    "draw_timesteps",
    "huber_thresholds",
    "linear_denoiser_loss",
    "logit_normal_density",
    "masked_mean",
    "min_snr_weights",
    "noise_like_weights",
    "pyramid_noise",
    "target",
    "v_like_weights",
]

Prediction = Literal["epsilon", "v"]
LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]

SNR_LIMITS = (1e-3, 1e3)
"""Weights that divide by the SNR use it within these limits, so that they are finite at both ends of a schedule."""


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


# ---------------------------------------------------------------------------------------- weights of timesteps


def debiased_weights(schedule: NoiseSchedule, prediction: Prediction, timesteps: Tensor) -> Tensor:
    """Debiased estimation (Yu et al., 2310.08442), weights (B,): ``1 / sqrt(SNR)``, for v models ``1 / (SNR + 1)``.

    The SNR is limited to SNR_LIMITS; only a schedule with zero terminal SNR goes below them.
    """
    snr = schedule.snr(timesteps).clamp(*SNR_LIMITS)
    return snr.rsqrt() if prediction == "epsilon" else 1.0 / (snr + 1.0)


def noise_like_weights(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """What makes the squared error of v that of epsilon, (B,): ``SNR / (SNR + 1)``. Zero where there is no signal."""
    snr = schedule.snr(timesteps).clamp(max=SNR_LIMITS[1])
    return snr / (snr + 1.0)


def v_like_weights(schedule: NoiseSchedule, timesteps: Tensor, amount: float) -> Tensor:
    """The squared error of epsilon plus ``amount`` times that of v, as weights (B,): ``1 + amount (SNR + 1) / SNR``."""
    snr = schedule.snr(timesteps).clamp(*SNR_LIMITS)
    return 1.0 + amount * (snr + 1.0) / snr


# ---------------------------------------------------------------------------------------- choice of timesteps


def logit_normal_density(count: int, mean: float, std: float) -> Tensor:
    """Probability (count,), float64, of each timestep when ``logit((t + u) / count)``, u in [0, 1), is normal.

    Esser et al., 2403.03206, section 3.1; a positive mean prefers the noisy end.
    """
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    reached: Tensor = torch.special.ndtr((torch.special.logit(edges) - mean) / std)
    return reached.diff()


def linear_denoiser_loss(schedule: NoiseSchedule, prediction: Prediction) -> Tensor:
    """Expected squared error (T,), float64, of the best linear denoiser of natural pictures, at every timestep.

    A Gaussian picture whose power falls with the square of the frequency (Field 1987), unit variance on a 64 x 64
    grid: at power P the error of epsilon is ``alpha P / (alpha P + 1 - alpha)``; that of v is it divided by alpha.
    """
    lines = torch.fft.fftfreq(64, dtype=torch.float64)
    squared = lines.square()[:, None] + lines.square()[None, :]
    squared[0, 0] = squared[0, 1]  # the mean is as strong as the longest wave
    power, counts = (1.0 / squared).unique(return_counts=True)
    share = counts / counts.sum()
    power = power / (power * share).sum()
    alpha = schedule.alphas_cumprod.cpu().double()[:, None]
    error = power / (alpha * power + 1.0 - alpha)
    expected: Tensor = ((error if prediction == "v" else alpha * error) * share).sum(dim=1)
    return expected


def draw_timesteps(density: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The timesteps (B,) at which the distribution ``density`` (T,) passes each number in [0, 1)."""
    reached = density.double().cumsum(0)
    numbers = torch.tensor(uniforms, dtype=torch.float64) * reached[-1]
    index: Tensor = torch.searchsorted(reached, numbers, right=True)
    last = int(density.nonzero()[-1].item())
    return index.clamp(max=last)


# ---------------------------------------------------------------------------------------- noise


def pyramid_noise(noise: Tensor, levels: Sequence[Tensor], discount: float) -> Tensor:
    """Noise (C, h, w) with coarser noise on top, again of standard deviation 1 (Whitaker 2023).

    ``levels``: standard normal (C, h', w') of any size; each is enlarged bilinearly and counts ``discount`` as much
    as the one before, the first counts 1.
    """
    size, factor = noise.shape[-2:], 1.0
    for level in levels:
        noise = noise + factor * functional.interpolate(level[None], size=size, mode="bilinear")[0]
        factor *= discount
    return noise / noise.std()


# ---------------------------------------------------------------------------------------- loss


def huber_thresholds(schedule: NoiseSchedule, name: HuberSchedule, c: float, scale: float) -> Tensor:
    """Where the Huber losses go over from square to straight, at every timestep: (T,) (Khrapov et al., 2403.16728).

    constant: ``c scale``; exponential: from ``scale`` at the clean end to ``c scale`` at the noisy one; snr:
    ``(1 - c) / (1 + sigma)² + c``, in which ``scale`` has no part.
    """
    count = len(schedule)
    if name == "constant":
        return torch.full((count,), c * scale)
    if name == "exponential":
        return torch.exp(math.log(c) / count * torch.arange(count, dtype=torch.float64)).float() * scale
    return (1.0 - c) / (1.0 + schedule.sigmas.cpu()).square() + c


def difference(kind: LossType, predicted: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
    """How wrong every element is, in the shape of ``predicted``. ``threshold``: (B,), of the two Huber losses.

    huber: ``2 c (sqrt(d² + c²) - c)``, near d² for small d; smooth_l1: ``2 (sqrt(d² + c²) - c)``, near 2 |d| for large.
    """
    error = predicted - target
    if kind == "l2":
        return error.square()
    if kind == "l1":
        return error.abs()
    if threshold is None:
        raise ValueError(f"{kind} needs a threshold")
    c = _per_sample(threshold, error)
    bent = 2.0 * ((error.square() + c.square()).sqrt() - c)
    return c * bent if kind == "huber" else bent


def masked_mean(errors: Tensor, masks: Tensor, *, normalized: bool) -> Tensor:
    """Mean of each image's errors (B, C, h, w) under its mask (B, 1, h, w): (B,).

    ``normalized`` divides by the area of the mask (an empty mask gives 0), else by the whole area.
    """
    total = (errors * masks).sum(dim=(1, 2, 3))
    if not normalized:
        return total / errors[0].numel()
    area = masks.sum(dim=(1, 2, 3)) * errors.shape[1]
    return torch.where(area > 0, total / torch.where(area > 0, area, torch.ones_like(area)), torch.zeros_like(total))


def _scales(schedule: NoiseSchedule, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(signal, noise) of every sample, shaped to multiply ``like``."""
    index = timesteps.to(schedule.signal.device, torch.long)
    return _per_sample(schedule.signal[index], like), _per_sample(schedule.noise[index], like)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
