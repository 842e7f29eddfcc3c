"""Training targets and their inverses, against diffusers and their own algebra."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from loraloom.diffusion.objectives import Prediction, add_noise, denoised, min_snr_weights, target
from loraloom.diffusion.schedules import NoiseSchedule

TIMESTEPS = torch.tensor([0, 1, 400, 999])


@pytest.fixture
def draws() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 4, 5, 3, generator=generator), torch.randn(4, 4, 5, 3, generator=generator)


@pytest.mark.parametrize("zero", [False, True])
def test_noise_and_velocity_agree_with_diffusers(draws: tuple[torch.Tensor, torch.Tensor], zero: bool) -> None:
    latents, noise = draws
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    oracle = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero
    )
    torch.testing.assert_close(
        add_noise(schedule, latents, noise, TIMESTEPS), oracle.add_noise(latents, noise, TIMESTEPS), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(
        target(schedule, "v", latents, noise, TIMESTEPS),
        oracle.get_velocity(latents, noise, TIMESTEPS),
        atol=2e-5,
        rtol=0,
    )
    assert target(schedule, "epsilon", latents, noise, TIMESTEPS) is noise


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_perfect_answer_gives_back_the_latents(
    draws: tuple[torch.Tensor, torch.Tensor], prediction: Prediction
) -> None:
    latents, noise = draws
    schedule = NoiseSchedule.scaled_linear()
    answer = target(schedule, prediction, latents, noise, TIMESTEPS)
    sigma = schedule.sigmas[TIMESTEPS]
    exploding = latents + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(denoised(prediction, answer, exploding, sigma), latents, atol=2e-5, rtol=0)


def test_velocity_gives_the_latents_even_without_signal(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = draws
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    last = torch.full((4,), 999)
    noisy = add_noise(schedule, latents, noise, last)
    assert torch.equal(noisy, noise)
    answer = target(schedule, "v", latents, noise, last)
    assert torch.equal(answer, -latents)


def test_min_snr_weights_are_the_papers() -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    snr = schedule.snr(TIMESTEPS).double()
    epsilon = min_snr_weights(schedule, "epsilon", TIMESTEPS, 5.0).double()
    torch.testing.assert_close(epsilon[:3], snr[:3].clamp(max=5) / snr[:3], rtol=1e-5, atol=0)
    assert epsilon[3] == 1
    velocity = min_snr_weights(schedule, "v", TIMESTEPS, 5.0).double()
    torch.testing.assert_close(velocity, snr.clamp(max=5) / (snr + 1), rtol=1e-5, atol=0)


def test_half_precision_latents_stay_half(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = (tensor.bfloat16() for tensor in draws)
    schedule = NoiseSchedule.scaled_linear()
    assert add_noise(schedule, latents, noise, TIMESTEPS).dtype == torch.bfloat16
    assert target(schedule, "v", latents, noise, TIMESTEPS).dtype == torch.bfloat16
