"""Noise schedules: how much noise each training timestep holds, and at which noise levels a sampler stops.

Two pictures of the same noisy latent are in use. Variance preserving (training): ``signal * x0 + noise * n``, where
``signal² + noise² = 1``. Variance exploding (samplers): ``x0 + sigma * n``, where ``sigma = noise / signal``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from loraloom.diffusion.beta_distribution import beta_quantile
from loraloom.diffusion.samplers import SIGMA_SCHEDULES, LevelOptions, SamplerPlan, resolve_sigma_schedule
from loraloom.errors import SettingsError

__all__ = [
    "NoiseSchedule",
    "align_your_steps",
    "beta",
    "ddim",
    "exponential",
    "karras",
    "kl_optimal",
    "lcm",
    "normal",
    "polyexponential",
    "sampler_sigmas",
    "sampling_sigmas",
    "sgm_uniform",
    "simple",
    "turbo",
    "uniform",
]

USUAL_LEVELS = LevelOptions()
_CONSISTENCY_STEPS = 50

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


def sampling_sigmas(schedule: NoiseSchedule, name: str, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """The ``steps + 1`` falling noise levels of that name in SIGMA_SCHEDULES (float32, CPU)."""
    levels: Tensor = SIGMA_SCHEDULES.load(resolve_sigma_schedule(name))(schedule, steps, options)
    return levels.float()


def sampler_sigmas(
    schedule: NoiseSchedule,
    plan: SamplerPlan,
    steps: int,
    options: LevelOptions = USUAL_LEVELS,
    *,
    discard_penultimate: bool | None = None,
) -> Tensor:
    """The ``steps + 1`` falling noise levels (float32, CPU) that a sampler visits with the levels of its plan.

    ``discard_penultimate`` leaves out the last level above zero, and starts with one more; None: where the web UI does.
    A sampler that chooses its own levels gets evenly spaced ones (log sigma) between the ends.
    """
    entry = plan.entry
    if entry.own_levels:
        return exponential(schedule, steps + 1, options)[:-1].float()
    discards = entry.discards_penultimate if discard_penultimate is None else discard_penultimate
    sigmas = sampling_sigmas(schedule, plan.schedule, steps + discards, options)
    if discards:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    if entry.ends_at_first and plan.is_usual and sigmas[-1] == 0:
        sigmas[-1] = schedule.sigmas[0]
    if entry.pure_noise and schedule.zero_terminal_snr and sigmas[0] == schedule.sigmas[-1]:
        sigmas[0] = PURE_NOISE
    return sigmas


def uniform(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced timesteps from the last to the first, then 0 (k-diffusion's ``get_sigmas``)."""
    return _ending_at_zero(schedule.timestep_to_sigma(torch.linspace(len(schedule) - 1, 0, steps, dtype=torch.float64)))


def normal(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced timesteps between the limits, then 0: Uniform unless there are other limits than the model's."""
    return _ending_at_zero(schedule.timestep_to_sigma(_timesteps(schedule, steps, options)))


def sgm_uniform(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced timesteps that stop one stride short of the smallest, then 0 (Stability's generative-models)."""
    return _ending_at_zero(schedule.timestep_to_sigma(_timesteps(schedule, steps + 1, options)[:-1]))


def simple(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Every (T / steps)-th entry of the table from its end, then 0."""
    stride = len(schedule) / steps
    return _ending_at_zero(schedule.sigmas[[-1 - int(index * stride) for index in range(steps)]])


def turbo(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Whole timesteps counted back from the last ("trailing" spacing, Lin et al., 2305.08891, table 2), then 0."""
    total = len(schedule)
    return _ending_at_zero(schedule.sigmas[[round(total - index * total / steps) - 1 for index in range(steps)]])


def lcm(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced among 50 timesteps (19, 39, ... 999), interpolated in log sigma, then 0, as the web UI has them."""
    stride = max(1, len(schedule) // _CONSISTENCY_STEPS)
    table = schedule.sigmas.double().flip(0)[::stride].flip(0).log()
    position = torch.linspace(len(table) - 1, 0, steps, dtype=torch.float64)
    low = position.floor().long()
    high = position.ceil().long()
    return _ending_at_zero(torch.lerp(table[low], table[high], position - low).exp())


def karras(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced in sigma^(1/rho), then 0 (Karras et al., 2206.00364, eq. 5)."""
    rho = options.rho or 7.0
    largest, smallest = (level ** (1 / rho) for level in _limits(schedule, options))
    return _ending_at_zero(torch.linspace(largest, smallest, steps, dtype=torch.float64) ** rho)


def exponential(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced in log sigma, then 0."""
    largest, smallest = map(math.log, _limits(schedule, options))
    return _ending_at_zero(torch.linspace(largest, smallest, steps, dtype=torch.float64).exp())


def polyexponential(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Log sigma falls as the rho-th power of an even ramp from 1 to 0, then 0 (k-diffusion); rho is 1 unless given."""
    largest, smallest = map(math.log, _limits(schedule, options))
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** (options.rho or 1.0)
    return _ending_at_zero((smallest + ramp * (largest - smallest)).exp())


def kl_optimal(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Evenly spaced in arctan sigma down to the smallest level, which is the last: no 0 (2404.14507, theorem 3.1)."""
    largest, smallest = map(math.atan, _limits(schedule, options))
    return torch.linspace(largest, smallest, steps + 1, dtype=torch.float64).tan()


def align_your_steps(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """The table of the family interpolated in log sigma, then 0 (Sabour et al., 2404.14507).

    Under zero terminal SNR the first level is the model's, not the table's.
    """
    table = torch.tensor(options.aligned, dtype=torch.float64).log()
    position = torch.linspace(0, len(table) - 1, steps, dtype=torch.float64)
    low = position.floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    levels = torch.lerp(table[low], table[high], position - low).exp()
    if schedule.zero_terminal_snr:
        levels[0] = schedule.sigmas[-1].double()
    return _ending_at_zero(levels)


def beta(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """Sigma spaced by the quantiles of a beta distribution, then 0 (Lee et al., 2407.12173)."""
    largest, smallest = _limits(schedule, options)
    shares = torch.linspace(1, 0, steps, dtype=torch.float64).tolist()
    quantiles = torch.tensor([beta_quantile(share, *options.beta) for share in shares], dtype=torch.float64)
    return _ending_at_zero(smallest + quantiles * (largest - smallest))


def ddim(schedule: NoiseSchedule, steps: int, options: LevelOptions = USUAL_LEVELS) -> Tensor:
    """DDIM's whole timesteps as Stable Diffusion uses them, then 0.

    Multiples of T // steps, plus one. Under zero terminal SNR they are counted from the end instead, so that sampling
    starts from pure noise (2305.08891, section 3.3).
    """
    if schedule.zero_terminal_snr:
        return turbo(schedule, steps, options)
    total = len(schedule)
    timesteps = [min(index * (total // steps) + 1, total - 1) for index in reversed(range(steps))]
    return _ending_at_zero(schedule.sigmas[timesteps])


def _limits(schedule: NoiseSchedule, options: LevelOptions) -> tuple[float, float]:
    """The first level and the last one above zero."""
    largest = float(schedule.sigmas[-1]) if options.largest is None else options.largest
    smallest = float(schedule.sigmas[0]) if options.smallest is None else options.smallest
    if smallest >= largest:
        raise SettingsError(
            [f"the smallest noise level {smallest:g} is not below the largest, {largest:g}"],
            "set sigma_min below sigma_max; unset, they are those of the model",
        )
    return largest, smallest


def _timesteps(schedule: NoiseSchedule, count: int, options: LevelOptions) -> Tensor:
    first, last = schedule.sigma_to_timestep(torch.tensor(_limits(schedule, options), dtype=torch.float64)).tolist()
    return torch.linspace(float(first), float(last), count, dtype=torch.float64)


def _ending_at_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
