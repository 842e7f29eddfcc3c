"""Samplers against the exact flow of a Gaussian, against diffusers step by step, and their names."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from loraloom.diffusion.objectives import Prediction, denoised
from loraloom.diffusion.samplers import SAMPLERS, SIGMA_SCHEDULES, SamplerPlan, resolve_sampler
from loraloom.diffusion.schedules import NoiseSchedule, sampling_sigmas
from loraloom.errors import UnknownNameError

MEAN, SPREAD = 0.7, 0.5
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def no_noise(x: torch.Tensor, step: int) -> torch.Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def gaussian_denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact E[x0 | x] when x0 is normal with MEAN and SPREAD."""
    variance = sigma.view(-1, 1).square()
    return (SPREAD**2 * x + variance * MEAN) / (SPREAD**2 + variance)


def exact_flow(x: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """Where the probability flow takes x: the same quantile of the wider and the narrower Gaussian."""
    return MEAN + (x - MEAN) * ((SPREAD**2 + end**2) / (SPREAD**2 + start**2)) ** 0.5


def error_of(name: str, steps: int) -> float:
    sigmas = torch.linspace(3.0, 0.3, steps + 1, dtype=torch.float64)
    x = torch.linspace(-5, 5, 11, dtype=torch.float64).view(11, 1)
    result = SAMPLERS.load(name)(gaussian_denoiser, x, sigmas, noise=no_noise, eta=0.0)
    return float((result - exact_flow(x, 3.0, 0.3)).abs().max())


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("Euler", 1),
        ("Euler a", 1),
        ("DDIM", 1),
        ("Heun", 2),
        ("DPM++ 2M", 2),
        ("DPM++ 2M SDE", 2),
        ("LMS", 3),
    ],
)
def test_convergence_order(name: str, order: float) -> None:
    coarse, fine = error_of(name, 64), error_of(name, 128)
    observed = torch.log2(torch.tensor(coarse / fine)).item()
    assert observed > order - 0.2
    if order < 3:
        assert observed < order + 0.35


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE", "DDIM"])
def test_stochastic_samplers_reach_the_right_distribution(name: str) -> None:
    sigmas = sampling_sigmas(NoiseSchedule.scaled_linear(), "karras", 400)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20000, 1, generator=generator) * (sigmas[0] ** 2 + SPREAD**2).sqrt() + MEAN

    def noise(like: torch.Tensor, step: int) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    result = SAMPLERS.load(name)(gaussian_denoiser, x, sigmas, noise=noise, eta=1.0)
    assert result.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert result.std().item() == pytest.approx(SPREAD, rel=0.02)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_callback_sees_every_step_once_and_the_result_is_finite(name: str) -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    entry = resolve_sampler(name)
    sigmas = sampling_sigmas(schedule, entry.schedule, 12)
    steps: list[int] = []
    x = torch.randn(3, 1, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    result = SAMPLERS.load(name)(
        gaussian_denoiser,
        x,
        sigmas,
        noise=lambda like, step: torch.zeros_like(like),
        callback=lambda step, noisy, clean: steps.append(step),
    )
    assert steps == list(range(12))
    assert bool(torch.isfinite(result).all())
    assert float(result.abs().max()) < 5


def test_noise_is_asked_for_with_the_step_number() -> None:
    asked: list[int] = []

    def noise(x: torch.Tensor, step: int) -> torch.Tensor:
        asked.append(step)
        return torch.zeros_like(x)

    sigmas = torch.tensor([3.0, 2.0, 1.0, 0.0])
    SAMPLERS.load("Euler a")(gaussian_denoiser, torch.ones(1, 1), sigmas, noise=noise)
    assert asked == [0, 1]  # the step to zero needs none


# --- the same toy network, epsilon or v, sampled by diffusers and by us


class Toy(torch.nn.Module):
    """A small nonlinear network of (x, t) with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.weight = torch.randn(4, 4, 3, 3, generator=generator) * 0.25

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        phase = (timesteps.float() / 300).view(-1, 1, 1, 1)
        return torch.nn.functional.conv2d(x, self.weight, padding=1).add(phase).sin() + 0.5 * x


def our_latents(
    prediction: Prediction, schedule: NoiseSchedule, name: str, steps: int, unit: torch.Tensor, *, pure_noise=False
):
    toy, plan, trail = Toy(), resolve_sampler(name), []
    pure_noise = pure_noise or plan.entry.pure_noise

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scale = (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        return denoised(prediction, toy(x / scale, schedule.sigma_to_timestep(sigma)), x, sigma)

    sigmas = sampling_sigmas(schedule, plan.schedule, steps)
    x = unit * ((1 + sigmas[0] ** 2).sqrt() if pure_noise else sigmas[0])
    result = SAMPLERS.load(plan.sampler)(
        denoise, x, sigmas, noise=no_noise, callback=lambda step, noisy, clean: trail.append(noisy)
    )
    return [*trail, result], sigmas


def their_latents(oracle, steps: int, unit: torch.Tensor):
    toy = Toy()
    oracle.set_timesteps(steps)
    x, trail = unit * oracle.init_noise_sigma, []
    for timestep in oracle.timesteps:
        trail.append(x)
        answer = toy(oracle.scale_model_input(x, timestep), timestep.expand(len(x)))
        x = oracle.step(answer, timestep, x).prev_sample
    return [*trail, x]


PREDICTIONS = [("epsilon", "epsilon"), ("v", "v_prediction")]


@pytest.mark.parametrize(("ours", "theirs"), PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 28])
def test_euler_agrees_with_diffusers_at_every_step(ours: Prediction, theirs: str, steps: int) -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    mine, _ = our_latents(ours, NoiseSchedule.scaled_linear(), "Euler", steps, unit)
    oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type=theirs)
    for own, other in zip(mine, their_latents(oracle, steps, unit), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "zero"),
    [("epsilon", "epsilon", False), ("v", "v_prediction", False), ("v", "v_prediction", True)],
)
def test_ddim_agrees_with_diffusers_at_every_step(ours: Prediction, theirs: str, zero: bool) -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    mine, sigmas = our_latents(ours, schedule, "DDIM", 20, unit)
    oracle = DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=theirs,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing" if zero else "leading",
        rescale_betas_zero_snr=zero,
    )
    for own, other, sigma in zip(mine, their_latents(oracle, 20, unit), sigmas, strict=True):
        torch.testing.assert_close(own / (1 + sigma**2).sqrt(), other, atol=1e-4, rtol=0)


def test_dpmpp_2m_karras_agrees_with_diffusers() -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    schedule = NoiseSchedule.scaled_linear()
    mine, _ = our_latents("epsilon", schedule, "DPM++ 2M Karras", 12, unit, pure_noise=True)
    oracle = DPMSolverMultistepScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True)
    oracle.set_timesteps(12)
    oracle.timesteps = schedule.sigma_to_timestep(oracle.sigmas[:-1])  # diffusers rounds them to whole ones
    toy, x = Toy(), unit
    for index, timestep in enumerate(oracle.timesteps):
        oracle._step_index = index
        x = oracle.step(toy(x, timestep.expand(2)), timestep, x).prev_sample
    torch.testing.assert_close(mine[-1], x, atol=1e-4, rtol=0)


def test_euler_from_zero_terminal_snr_agrees_with_diffusers() -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(9))
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    mine, _ = our_latents("v", schedule, "Euler", 10, unit)
    oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    theirs = their_latents(oracle, 10, unit)
    for own, other in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-4)  # diffusers loses digits at sigma 4096


def test_heun_agrees_with_diffusers() -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    mine, _ = our_latents("epsilon", NoiseSchedule.scaled_linear(), "Heun", 10, unit)
    oracle = HeunDiscreteScheduler(**STABLE_DIFFUSION)
    theirs = their_latents(oracle, 10, unit)
    torch.testing.assert_close(mine[-1], theirs[-1], atol=1e-4, rtol=0)


# --- names


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("Euler a", "Euler a", "Uniform"),
        ("euler_a", "Euler a", "Uniform"),
        ("k_euler_a", "Euler a", "Uniform"),
        ("k_euler_ancestral", "Euler a", "Uniform"),
        ("sample_euler_ancestral", "Euler a", "Uniform"),
        ("EULER", "Euler", "Uniform"),
        ("Heun", "Heun", "Uniform"),
        ("DPM++ 2M", "DPM++ 2M", "Uniform"),
        ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("dpmpp_2m_karras", "DPM++ 2M", "Karras"),
        ("k_dpmpp_2m_ka", "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE", "Karras"),
        ("dpmpp_2m_sde", "DPM++ 2M SDE", "Exponential"),
        ("LMS Karras", "LMS", "Karras"),
        ("euler sgm uniform", "Euler", "SGM Uniform"),
        ("ddim", "DDIM", "DDIM"),
    ],
)
def test_names_old_and_new(name: str, sampler: str, schedule: str) -> None:
    assert resolve_sampler(name) == SamplerPlan(sampler, schedule)


def test_an_explicit_schedule_wins_over_the_name() -> None:
    assert resolve_sampler("DPM++ 2M Karras", "exponential").schedule == "Exponential"
    assert resolve_sampler("DPM++ 2M", "Automatic").schedule == "Uniform"
    assert resolve_sampler("Euler", "normal").schedule == "Uniform"


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Euler a'"):
        resolve_sampler("Eular a")
    with pytest.raises(UnknownNameError, match="sigma schedule"):
        resolve_sampler("Euler", "quadratic")


def test_every_entry_resolves_and_has_a_summary() -> None:
    for registry in (SAMPLERS, SIGMA_SCHEDULES):
        for name, entry in registry.items():
            assert callable(entry.load())
            assert entry.summary
            assert name


def test_the_tables_import_no_torch() -> None:
    code = "import sys, loraloom.diffusion.samplers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
