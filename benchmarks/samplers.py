"""How fast each sampler converges, on a mixture of two Gaussians whose exact flow and distribution are known.

    python benchmarks/samplers.py

``flow``: the largest error against the exact flow, without fresh noise, on each sampler's usual levels of Stable
Diffusion, for values of the first noise from -1.5 to 1.5; and the order it falls with on smooth levels from 3 to 0.3.
``spread``: with its usual noise, the error of the standard deviation of 20,000 samples of a Gaussian (0.5), in percent.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import torch
from harness import record

from known_flows import MEAN, SPREAD, NoNoise, RandomNoise, gaussian_denoiser, mixture_denoiser, mixture_flow
from loraloom.diffusion.samplers import SAMPLERS, resolve_sampler
from loraloom.diffusion.sampling.brownian import BrownianPath
from loraloom.diffusion.schedules import NoiseSchedule, sampler_sigmas

STEPS = (10, 20, 40, 80)
SAMPLES = 20000


class PathNoise(RandomNoise):
    """Random noise whose Brownian steps are those of one path."""

    def __init__(self, like: torch.Tensor, seed: int) -> None:
        super().__init__(like, seed)
        self._path = BrownianPath(like.shape, seed)

    def brownian(self, sigma: float, following: float) -> torch.Tensor:
        return self._path.increment(sigma, following).to(torch.float64)


def sample(
    name: str, denoise: Any, x: torch.Tensor, sigmas: torch.Tensor, noise: Any, **options: float
) -> torch.Tensor:
    needs_both = resolve_sampler(name).entry.needs_unguided
    answer = (lambda x, sigma: (denoise(x, sigma),) * 2) if needs_both else denoise
    result: torch.Tensor = SAMPLERS.load(name)(answer, x, sigmas, noise=noise, **options)
    return result


def flow_error(name: str, sigmas: torch.Tensor) -> float:
    """Against the flow to the last level (the smallest above zero where that is zero, which differs by 1e-3)."""
    x = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64).view(1, -1) * sigmas[0]
    options = {"eta": 0.0} if "eta" in resolve_sampler(name).entry.takes else {}
    result = sample(name, mixture_denoiser, x, sigmas, NoNoise(), **options)
    return float((result - mixture_flow(x, float(sigmas[0]), float(sigmas[-1]))).abs().max())


def spread_error(name: str, sigmas: torch.Tensor) -> float:
    x = torch.randn(1, SAMPLES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = x * (sigmas[0] ** 2 + SPREAD**2).sqrt() + MEAN
    result = sample(name, gaussian_denoiser, x, sigmas, PathNoise(x, 6))
    exact = math.hypot(SPREAD, float(sigmas[-1]))
    return 100 * (float(result.std()) / exact - 1)


def smooth_levels(steps: int) -> torch.Tensor:
    shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return 3.0 - 2.7 * shares**2 * (3 - 2 * shares)


def main() -> None:
    schedule = NoiseSchedule.scaled_linear()
    table = {}
    for name in SAMPLERS:
        if name == "LCM":  # solves no equation: it needs a model that answers with the end of the flow
            continue
        plan = resolve_sampler(name)
        levels = {steps: sampler_sigmas(schedule, plan, steps).double() for steps in STEPS}
        row: dict[str, Any] = {"schedule": plan.schedule, "calls_a_step": plan.entry.calls}
        if name != "Restart":  # always adds noise
            row["flow"] = {steps: float(f"{flow_error(name, sigmas):.3g}") for steps, sigmas in levels.items()}
            if name != "DPM adaptive":
                errors = [flow_error(name, smooth_levels(steps)) for steps in (98, 194)]
                row["order"] = round(math.log(errors[0] / errors[1]) / math.log(194 / 98), 2)
        if plan.entry.random:
            row["spread_percent"] = {steps: round(spread_error(name, sigmas), 2) for steps, sigmas in levels.items()}
        table[name] = row
    record("samplers", {"samplers": table})


if __name__ == "__main__":
    main()
