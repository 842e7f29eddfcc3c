"""Noise schedules against diffusers, closed forms and the definitions in the papers."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

from loraloom.diffusion.beta_distribution import beta_quantile
from loraloom.diffusion.samplers import (
    ALIGNED_SD,
    ALIGNED_SDXL,
    SAMPLERS,
    SIGMA_SCHEDULES,
    LevelOptions,
    resolve_sampler,
)
from loraloom.diffusion.schedules import NoiseSchedule, sampler_sigmas, sampling_sigmas
from loraloom.errors import SettingsError

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


@pytest.mark.parametrize("name", [name for name in SIGMA_SCHEDULES if name not in ("DDIM", "KL Optimal")])
def test_sampling_starts_at_the_highest_level_and_ends_at_zero(name: str) -> None:
    schedule = NoiseSchedule.scaled_linear()
    sigmas = sampling_sigmas(schedule, name, 20)
    assert sigmas[0] == pytest.approx(float(schedule.sigmas[-1]), rel=1e-4)
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
    sigmas = sampler_sigmas(schedule, resolve_sampler("DDIM"), steps)
    assert torch.equal(schedule.sigma_to_timestep(sigmas[:-1], quantized=True), oracle.timesteps)
    assert torch.equal(sigmas[1:-1], schedule.sigmas[oracle.timesteps[1:]])
    assert sigmas[-1] == schedule.sigmas[0]


# --- every other schedule against its own formula


def test_normal_is_uniform_between_any_limits() -> None:
    schedule = NoiseSchedule.scaled_linear()
    torch.testing.assert_close(sampling_sigmas(schedule, "Normal", 9), sampling_sigmas(schedule, "Uniform", 9))
    limits = LevelOptions(smallest=0.1, largest=10.0)
    sigmas = sampling_sigmas(schedule, "Normal", 9, limits)
    timesteps = schedule.sigma_to_timestep(sigmas[:-1])
    torch.testing.assert_close(sigmas[[0, -2]], torch.tensor([10.0, 0.1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(timesteps.diff(), timesteps.diff().mean().expand(8), rtol=1e-3, atol=0)


def test_polyexponential_is_a_power_of_an_even_ramp() -> None:
    schedule = NoiseSchedule.scaled_linear()
    torch.testing.assert_close(
        sampling_sigmas(schedule, "Polyexponential", 11), sampling_sigmas(schedule, "Exponential", 11)
    )
    low, high = (float(schedule.sigmas[index]) for index in (0, -1))
    expected = [np.exp(np.log(low) + ramp**2.5 * np.log(high / low)) for ramp in np.linspace(1, 0, 11)] + [0.0]
    sigmas = sampling_sigmas(schedule, "Polyexponential", 11, LevelOptions(rho=2.5))
    np.testing.assert_allclose(sigmas.numpy(), expected, rtol=1e-5)


def test_karras_takes_rho_and_limits() -> None:
    sigmas = sampling_sigmas(
        NoiseSchedule.scaled_linear(), "Karras", 5, LevelOptions(smallest=0.1, largest=10.0, rho=3.0)
    )
    expected = [*(np.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), 5) ** 3), 0.0]
    np.testing.assert_allclose(sigmas.numpy(), expected, rtol=1e-5)


def test_kl_optimal_is_even_in_arctan_and_has_no_zero() -> None:
    schedule = NoiseSchedule.scaled_linear()
    sigmas = sampling_sigmas(schedule, "KL Optimal", 8)
    angles = sigmas.double().atan()
    torch.testing.assert_close(angles.diff(), angles.diff().mean().expand(8), rtol=1e-4, atol=0)
    torch.testing.assert_close(sigmas[[0, -1]], schedule.sigmas[[-1, 0]], rtol=1e-5, atol=0)


def test_align_your_steps_is_the_papers_table() -> None:
    schedule = NoiseSchedule.scaled_linear()
    assert sampling_sigmas(schedule, "AYS", 11).tolist() == pytest.approx([*ALIGNED_SD, 0.0])
    xl = sampling_sigmas(schedule, "Align Your Steps", 11, LevelOptions(aligned=ALIGNED_SDXL))
    assert xl.tolist() == pytest.approx([*ALIGNED_SDXL, 0.0])
    sigmas = sampling_sigmas(schedule, "Align Your Steps", 21)[:-1]
    torch.testing.assert_close(sigmas[::2], torch.tensor(ALIGNED_SD), rtol=1e-5, atol=0)
    torch.testing.assert_close(sigmas[1:-1:2] ** 2, sigmas[:-2:2] * sigmas[2::2], rtol=1e-5, atol=0)
    for table, known in ((ALIGNED_SD, "StableDiffusionTimesteps"), (ALIGNED_SDXL, "StableDiffusionXLTimesteps")):
        timesteps = schedule.sigma_to_timestep(torch.tensor(table[:-1]))
        oracle = torch.tensor(AysSchedules[known], dtype=torch.float32)
        assert float((timesteps - oracle).abs().max()) < 2  # diffusers has the paper's whole timesteps


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (2.0, 0.5), (0.9, 3.0)])
def test_quantiles_of_the_beta_distribution(alpha: float, beta: float) -> None:
    for share in (1e-6, 0.03, 0.3, 0.5, 0.77, 0.999):
        assert float(mpmath.betainc(alpha, beta, 0, beta_quantile(share, alpha, beta), regularized=True)) == (
            pytest.approx(share, rel=1e-9)
        )
    assert [beta_quantile(share, alpha, beta) for share in (0.0, 1.0)] == [0.0, 1.0]


def test_beta_spaces_sigma_by_quantiles() -> None:
    schedule = NoiseSchedule.scaled_linear()
    low, high = (float(schedule.sigmas[index]) for index in (0, -1))
    sigmas = sampling_sigmas(schedule, "Beta", 7, LevelOptions(beta=(0.7, 0.5)))
    shares = (sigmas[:-1].double() - low) / (high - low)
    found = [float(mpmath.betainc(0.7, 0.5, 0, float(share), regularized=True)) for share in shares[1:-1]]
    np.testing.assert_allclose(found, np.linspace(1, 0, 7)[1:-1], rtol=1e-4)


@pytest.mark.parametrize("steps", [4, 20, 30])
def test_turbo_is_diffusers_trailing_spacing(steps: int) -> None:
    schedule = NoiseSchedule.scaled_linear()
    oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    oracle.set_timesteps(steps)
    torch.testing.assert_close(sampling_sigmas(schedule, "Turbo", steps), oracle.sigmas, rtol=1e-5, atol=1e-6)


def test_simple_counts_entries_from_the_end() -> None:
    schedule = NoiseSchedule.scaled_linear()
    timesteps = schedule.sigma_to_timestep(sampling_sigmas(schedule, "Simple", 3)[:-1], quantized=True)
    assert timesteps.tolist() == [999, 666, 333]
    sgm = schedule.sigma_to_timestep(sampling_sigmas(schedule, "SGM Uniform", 4)[:-1])
    torch.testing.assert_close(sgm, torch.tensor([999.0, 749.25, 499.5, 249.75]), rtol=1e-4, atol=0)


def test_lcm_visits_timesteps_of_distillation() -> None:
    schedule = NoiseSchedule.scaled_linear()
    sigmas = sampling_sigmas(schedule, "LCM", 50)
    assert schedule.sigma_to_timestep(sigmas[:-1], quantized=True).tolist() == list(range(999, 0, -20))
    few = sampling_sigmas(schedule, "LCM", 3)
    middle = (schedule.sigmas[499] * schedule.sigmas[519]).sqrt()
    torch.testing.assert_close(few, torch.stack([schedule.sigmas[999], middle, schedule.sigmas[19], few.new_zeros(())]))


def test_limits_the_wrong_way_round_are_told() -> None:
    with pytest.raises(SettingsError, match="not below the largest"):
        sampling_sigmas(NoiseSchedule.scaled_linear(), "Karras", 5, LevelOptions(smallest=20.0))


# --- what a sampler makes of them


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize("zero", [False, True])
def test_every_sampler_gets_falling_levels(name: str, steps: int, zero: bool) -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    for levels in ("automatic", "Karras", "KL Optimal"):
        plan = resolve_sampler(name, levels)
        sigmas = sampler_sigmas(schedule, plan, steps)
        assert sigmas.shape == (steps + 1,)
        assert bool((sigmas.diff() < 0).all())
        if zero and not (plan.entry.own_levels or levels == "automatic" or steps == 1):
            assert float(sigmas[0]) >= 4095


def test_a_discarded_level_is_the_last_above_zero() -> None:
    schedule = NoiseSchedule.scaled_linear()
    longer = sampling_sigmas(schedule, "Karras", 11)
    kept = torch.cat([longer[:-2], longer[-1:]])
    assert torch.equal(sampler_sigmas(schedule, resolve_sampler("DPM2"), 10), kept)
    assert torch.equal(sampler_sigmas(schedule, resolve_sampler("DPM++ 2M"), 10, discard_penultimate=True), kept)
    plain = sampler_sigmas(schedule, resolve_sampler("DPM2"), 10, discard_penultimate=False)
    assert torch.equal(plain, sampling_sigmas(schedule, "Karras", 10))


def test_zero_terminal_snr_starts_where_nothing_of_the_image_is_left() -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    for name, largest in (("Euler", 4096.0), ("DPM++ 2M", 4096.0), ("DDIM", 2.0**24), ("UniPC", 2.0**24)):
        sigmas = sampler_sigmas(schedule, resolve_sampler(name), 10)
        assert float(sigmas[0]) == pytest.approx(largest, rel=1e-6)
        assert float(schedule.sigma_to_timestep(sigmas[:1])) == 999


def test_samplers_with_own_levels_get_the_ends() -> None:
    schedule = NoiseSchedule.scaled_linear()
    sigmas = sampler_sigmas(schedule, resolve_sampler("DPM fast"), 1)
    torch.testing.assert_close(sigmas, schedule.sigmas[[-1, 0]], rtol=1e-5, atol=0)
