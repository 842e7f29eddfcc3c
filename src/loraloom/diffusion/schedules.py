"""Noise schedules: how much noise each training timestep holds, and at which noise levels a sampler stops.

Two pictures of the same noisy latent are in use. Variance preserving (training): ``signal * x0 + noise * n``, where
``signal² + noise² = 1``. Variance exploding (samplers): ``x0 + sigma * n``, where ``sigma = noise / signal``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from loraloom.diffusion.samplers import SIGMA_SCHEDULES, resolve_sigma_schedule

__all__ = [
    "NoiseSchedule",
    "ddim",
    "exponential",
    "karras",
    "sampling_sigmas",
    "sgm_uniform",
    "simple",
    "uniform",
]

SMALLEST_ALPHA = 2.0**-24  # a sampler starts at a finite sigma even when the terminal SNR is zero (4096, as diffusers)
PURE_NOISE = 2.0**24  # DDIM can start nearer to infinity: here 32-bit floats no longer tell x from sigma * noise


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The forward process. Every field is a float32 tensor of shape (T,), computed in float64, index = timestep."""

    betas: Tensor
    alphas_cumprod: Tensor
    """Exactly 0 at the last timestep of a zero-terminal-SNR schedule."""
    sigmas: Tensor
    """noise / signal, finite everywhere: the last one is 4096 under zero terminal SNR."""
    signal: Tensor
    """sqrt(alphas_cumprod)."""
    noise: Tensor
    """sqrt(1 - alphas_cumprod)."""
    zero_terminal_snr: bool = False

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012, zero_terminal_snr: bool = False
    ) -> Self:
        """Stable Diffusion's schedule: betas are the squares of evenly spaced roots (Rombach et al., 2112.10752)."""
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        return cls.from_betas(betas, zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def from_betas(cls, betas: Tensor, *, zero_terminal_snr: bool = False) -> Self:
        """The schedule of given betas (T,); zero terminal SNR by rescaling them (Lin et al., 2305.08891, alg. 1)."""
        betas = betas.detach().cpu().double()
        alphas = torch.cumprod(1.0 - betas, dim=0)
        if zero_terminal_snr:
            signal = alphas.sqrt()
            alphas = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
            betas = 1.0 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        finite = alphas.clamp(min=SMALLEST_ALPHA)
        return cls(
            betas=betas.float(),
            alphas_cumprod=alphas.float(),
            sigmas=((1.0 - finite) / finite).sqrt().float(),
            signal=alphas.sqrt().float(),
            noise=(1.0 - alphas).sqrt().float(),
            zero_terminal_snr=zero_terminal_snr,
        )

    def __len__(self) -> int:
        return self.betas.shape[0]

    def to(self, device: torch.device) -> Self:
        """The same schedule with its tables on another device."""
        return replace(
            self,
            betas=self.betas.to(device),
            alphas_cumprod=self.alphas_cumprod.to(device),
            sigmas=self.sigmas.to(device),
            signal=self.signal.to(device),
            noise=self.noise.to(device),
        )

    def snr(self, timesteps: Tensor | None = None) -> Tensor:
        """Signal-to-noise power ratio of whole timesteps, any shape; without an argument the whole table (T,)."""
        ratio = (self.signal / self.noise).square()
        return ratio if timesteps is None else ratio.to(timesteps.device)[timesteps]

    def sigma_to_timestep(self, sigma: Tensor, *, quantized: bool = False) -> Tensor:
        """Timestep of a noise level, any shape: a fraction interpolated in log sigma, or the nearest whole one.

        Levels outside the schedule give its first or last timestep. The result is float32 (int64 if ``quantized``).
        """
        table = self.sigmas.cpu().double().log()
        levels = sigma.detach().cpu().double().log().clamp(table[0], table[-1]).contiguous()
        high = torch.searchsorted(table, levels).clamp(1, len(self) - 1)
        low = high - 1
        fraction = (levels - table[low]) / (table[high] - table[low])
        if quantized:
            return torch.where(fraction < 0.5, low, high).to(sigma.device)
        return (low + fraction).float().to(sigma.device)

    def timestep_to_sigma(self, timestep: Tensor) -> Tensor:
        """Noise level of whole or fractional timesteps, any shape; the inverse of :meth:`sigma_to_timestep`."""
        table = self.sigmas.cpu().double().log()
        position = timestep.detach().cpu().double().clamp(0, len(self) - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=len(self) - 1)
        sigma = torch.lerp(table[low], table[high], position - low).exp()
        return sigma.float().to(timestep.device)


def sampling_sigmas(schedule: NoiseSchedule, name: str, steps: int) -> Tensor:
    """The ``steps + 1`` falling noise levels that a sampler visits (float32, CPU). ``name``: one of SIGMA_SCHEDULES."""
    levels: Tensor = SIGMA_SCHEDULES.load(resolve_sigma_schedule(name))(schedule, steps)
    return levels.float()


def uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced timesteps from the last to the first, then 0 (k-diffusion's ``get_sigmas``)."""
    return _ending_at_zero(schedule.timestep_to_sigma(torch.linspace(len(schedule) - 1, 0, steps, dtype=torch.float64)))


def sgm_uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced timesteps that stop one stride short of the first, then 0 (Stability's generative-models)."""
    timesteps = torch.linspace(len(schedule) - 1, 0, steps + 1, dtype=torch.float64)[:-1]
    return _ending_at_zero(schedule.timestep_to_sigma(timesteps))


def simple(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Every (T / steps)-th entry of the table from its end, then 0."""
    stride = len(schedule) / steps
    return _ending_at_zero(schedule.sigmas[[-1 - int(index * stride) for index in range(steps)]])


def karras(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> Tensor:
    """Evenly spaced in sigma^(1/rho), then 0 (Karras et al., 2206.00364, eq. 5)."""
    smallest, largest = (float(schedule.sigmas[index]) ** (1 / rho) for index in (0, -1))
    return _ending_at_zero(torch.linspace(largest, smallest, steps, dtype=torch.float64) ** rho)


def exponential(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced in log sigma, then 0."""
    smallest, largest = schedule.sigmas[[0, -1]].double().log().tolist()
    return _ending_at_zero(torch.linspace(largest, smallest, steps, dtype=torch.float64).exp())


def ddim(schedule: NoiseSchedule, steps: int) -> Tensor:
    """DDIM's whole timesteps as Stable Diffusion uses them, ending at the noise level of timestep 0.

    Multiples of T // steps, plus one. Under zero terminal SNR they are counted from the end instead, so that sampling
    starts from pure noise (2305.08891, section 3.3).
    """
    total = len(schedule)
    if not schedule.zero_terminal_snr:
        timesteps = [min(index * (total // steps) + 1, total - 1) for index in reversed(range(steps))]
        return schedule.sigmas[[*timesteps, 0]]
    timesteps = [round(total - index * total / steps) - 1 for index in range(steps)]
    sigmas = schedule.sigmas[[*timesteps, 0]]
    sigmas[0] = PURE_NOISE
    return sigmas


def _ending_at_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
