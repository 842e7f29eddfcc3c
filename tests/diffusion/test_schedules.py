"""Noise schedules against diffusers, closed forms and the definitions in the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from loraloom.diffusion.samplers import SIGMA_SCHEDULES
from loraloom.diffusion.schedules import NoiseSchedule, sampling_sigmas

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("zero", [False, True])
def test_tables_agree_with_diffusers(zero: bool) -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    oracle = DDIMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=zero)
    torch.testing.assert_close(schedule.betas, oracle.betas, atol=2e-7, rtol=1e-4)
    torch.testing.assert_close(schedule.alphas_cumprod, oracle.alphas_cumprod, atol=1e-6, rtol=1e-5)


def test_tables_are_computed_in_64_bits() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    schedule = NoiseSchedule.scaled_linear()
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), alphas, rtol=1e-7)
    np.testing.assert_allclose(schedule.noise.numpy(), np.sqrt(1 - alphas), rtol=1e-7)
    np.testing.assert_allclose(schedule.sigmas.numpy(), np.sqrt((1 - alphas) / alphas), rtol=1e-7)
    assert schedule.sigmas[0] == pytest.approx(0.0292, abs=1e-4)
    assert schedule.sigmas[-1] == pytest.approx(14.6146, abs=1e-4)


def test_zero_terminal_snr_keeps_the_first_step_and_empties_the_last() -> None:
    plain, zero = (NoiseSchedule.scaled_linear(zero_terminal_snr=flag) for flag in (False, True))
    assert zero.alphas_cumprod[0] == pytest.approx(float(plain.alphas_cumprod[0]), rel=1e-6)
    assert zero.alphas_cumprod[-1] == 0.0
    assert zero.snr()[-1] == 0.0
    assert zero.betas[-1] == 1.0
    assert zero.sigmas[-1] == pytest.approx(4096, rel=1e-6)
    assert bool(torch.isfinite(zero.sigmas).all())
    assert bool((zero.sigmas.diff() > 0).all())


def test_snr_is_signal_power_over_noise_power() -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    timesteps = torch.tensor([[0, 500], [998, 999]])
    alphas = schedule.alphas_cumprod.double()[timesteps]
    torch.testing.assert_close(schedule.snr(timesteps).double(), alphas / (1 - alphas), rtol=2e-4, atol=0)


def test_timesteps_and_sigmas_are_inverse() -> None:
    schedule = NoiseSchedule.scaled_linear()
    timesteps = torch.tensor([0.0, 0.25, 17.5, 500.0, 998.75, 999.0])
    torch.testing.assert_close(
        schedule.sigma_to_timestep(schedule.timestep_to_sigma(timesteps)), timesteps, atol=1e-3, rtol=0
    )
    whole = torch.arange(1000)
    torch.testing.assert_close(schedule.timestep_to_sigma(whole), schedule.sigmas, rtol=1e-6, atol=0)
    assert torch.equal(schedule.sigma_to_timestep(schedule.sigmas, quantized=True), whole)


def test_interpolation_is_linear_in_log_sigma() -> None:
    schedule = NoiseSchedule.scaled_linear()
    middle = (schedule.sigmas[10] * schedule.sigmas[11]).sqrt()
    assert schedule.sigma_to_timestep(middle) == pytest.approx(10.5, abs=1e-3)
    assert schedule.sigma_to_timestep(middle * 0.999, quantized=True) == 10
    assert schedule.sigma_to_timestep(middle * 1.001, quantized=True) == 11


def test_levels_outside_the_schedule_are_clamped() -> None:
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.sigma_to_timestep(torch.tensor([0.0, 1e-6, 1e6])).tolist() == [0.0, 0.0, 999.0]


@pytest.mark.parametrize("name", list(SIGMA_SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 500])
@pytest.mark.parametrize("zero", [False, True])
def test_sampling_sigmas_fall_and_number_steps_plus_one(name: str, steps: int, zero: bool) -> None:
    sigmas = sampling_sigmas(NoiseSchedule.scaled_linear(zero_terminal_snr=zero), name, steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert bool((sigmas.diff() < 0).all())


@pytest.mark.parametrize("name", ["Uniform", "Karras", "Exponential", "SGM Uniform", "Simple"])
def test_sampling_starts_at_the_highest_level_and_ends_at_zero(name: str) -> None:
    schedule = NoiseSchedule.scaled_linear()
    sigmas = sampling_sigmas(schedule, name, 20)
    assert sigmas[0] == pytest.approx(float(schedule.sigmas[-1]), rel=1e-6)
    assert sigmas[-1] == 0


def test_karras_and_exponential_agree_with_diffusers() -> None:
    schedule = NoiseSchedule.scaled_linear()
    for name, option in (("Karras", "use_karras_sigmas"), ("Exponential", "use_exponential_sigmas")):
        oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION, **{option: True})
        oracle.set_timesteps(25)
        torch.testing.assert_close(sampling_sigmas(schedule, name, 25), oracle.sigmas, rtol=1e-5, atol=1e-6)


def test_uniform_agrees_with_diffusers_where_timesteps_are_whole() -> None:
    # Between whole timesteps diffusers interpolates sigma, k-diffusion and Loraloom its logarithm.
    oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION)
    oracle.set_timesteps(28)
    sigmas = sampling_sigmas(NoiseSchedule.scaled_linear(), "uniform", 28)
    torch.testing.assert_close(sigmas, oracle.sigmas, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 10, 20, 50])
@pytest.mark.parametrize("zero", [False, True])
def test_ddim_levels_are_those_of_diffusers_timesteps(steps: int, zero: bool) -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    oracle = DDIMScheduler(
        **STABLE_DIFFUSION,
        steps_offset=1,
        timestep_spacing="trailing" if zero else "leading",
        rescale_betas_zero_snr=zero,
    )
    oracle.set_timesteps(steps)
    sigmas = sampling_sigmas(schedule, "ddim", steps)
    assert torch.equal(schedule.sigma_to_timestep(sigmas[:-1], quantized=True), oracle.timesteps)
    assert torch.equal(sigmas[1:-1], schedule.sigmas[oracle.timesteps[1:]])
    assert sigmas[-1] == schedule.sigmas[0]
