"""Training targets and their inverses, against diffusers and their own algebra."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from loraloom.diffusion.objectives import (
    LossType,
    Prediction,
    add_noise,
    debiased_weights,
    denoised,
    difference,
    draw_timesteps,
    huber_thresholds,
    linear_denoiser_loss,
    logit_normal_density,
    masked_mean,
    min_snr_weights,
    noise_like_weights,
    pyramid_noise,
    target,
    v_like_weights,
)
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


def test_the_snr_is_that_of_the_rescaled_schedule() -> None:
    plain, rescaled = (NoiseSchedule.scaled_linear(zero_terminal_snr=zero).snr() for zero in (False, True))
    assert plain[[900, 999]].tolist() == pytest.approx([0.01435, 0.00468], rel=2e-3)
    assert rescaled[[900, 999]].tolist() == pytest.approx([0.00297, 0.0], rel=2e-3)
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    at = torch.tensor([900, 999])
    assert min_snr_weights(schedule, "v", at, 5.0).tolist() == pytest.approx([0.00297 / 1.00297, 0.0], rel=2e-3)
    assert noise_like_weights(schedule, at).tolist() == pytest.approx([0.00297 / 1.00297, 0.0], rel=2e-3)
    assert float(debiased_weights(schedule, "epsilon", at)[0]) == pytest.approx(0.00297**-0.5, rel=2e-3)


@pytest.mark.parametrize("zero", [False, True])
def test_weights_are_finite_and_their_closed_forms(zero: bool) -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    every = torch.arange(1000)
    snr = schedule.snr().double().clamp(1e-3, 1e3)
    torch.testing.assert_close(debiased_weights(schedule, "epsilon", every).double(), snr**-0.5, rtol=1e-5, atol=0)
    torch.testing.assert_close(debiased_weights(schedule, "v", every).double(), 1 / (snr + 1), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        v_like_weights(schedule, every, 0.5).double(), 1 + 0.5 * (1 + 1 / snr), rtol=1e-5, atol=0
    )
    inside = schedule.snr() > 1e-3
    ratio = (snr / (snr + 1))[inside]
    torch.testing.assert_close(noise_like_weights(schedule, every).double()[inside], ratio, rtol=1e-5, atol=0)


def test_the_v_options_turn_one_loss_into_the_other(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    """An answer about v that is wrong by e is wrong by sqrt(SNR / (SNR + 1)) e about the noise."""
    latents, noise = draws
    schedule = NoiseSchedule.scaled_linear()
    timesteps = torch.tensor([20, 300, 600, 999])
    signal, amount = (table[timesteps].view(-1, 1, 1, 1) for table in (schedule.signal, schedule.noise))
    answer = target(schedule, "v", latents, noise, timesteps) + 0.1 * latents
    noise_from_v = signal * answer + amount * add_noise(schedule, latents, noise, timesteps)
    of_noise = (noise_from_v - noise).square().mean(dim=(1, 2, 3))
    of_v = (0.1 * latents).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(of_v * noise_like_weights(schedule, timesteps), of_noise, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(
        of_noise * v_like_weights(schedule, timesteps, 2.0), of_noise + 2 * of_v, rtol=1e-3, atol=0
    )


# ------------------------------------------------------------------------------------------------ timesteps


def test_logit_normal_is_the_distribution_of_its_samples() -> None:
    density = logit_normal_density(1000, 0.5, 0.8)
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-12)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampled = (torch.sigmoid(0.5 + 0.8 * normal) * 1000).long()
    found = torch.bincount(sampled, minlength=1000).reshape(20, 50).sum(1) / 200_000
    torch.testing.assert_close(found.double(), density.reshape(20, 50).sum(1), atol=4e-3, rtol=0)


def test_drawing_inverts_the_cumulative_distribution() -> None:
    density = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    drawn = draw_timesteps(density, [0.0, 0.2499, 0.25, 0.7499, 0.75, 0.999999999999999])
    assert drawn.tolist() == [1, 1, 3, 3, 4, 4]
    uniform = draw_timesteps(torch.full((1000,), 1e-3, dtype=torch.float64), [(t + 0.5) / 1000 for t in range(1000)])
    assert uniform.tolist() == list(range(1000))


def test_drawing_is_exact_to_the_last_bit_below_an_edge() -> None:
    """Numbers nearer to an edge than float32 can tell, whatever the precision that the density comes in."""
    for dtype in (torch.float64, torch.float32, torch.float16):
        density = torch.tensor([0.125, 0.5, 0.0, 0.375], dtype=dtype)
        assert draw_timesteps(density, [0.125 - 1e-12, 0.125, 0.625 - 1e-12, 0.625]).tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_linear_denoiser_is_the_best_linear_one(prediction: Prediction) -> None:
    """Against a simulation of Gaussian pictures with that spectrum, each wave denoised by least squares."""
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    expected = linear_denoiser_loss(schedule, prediction)
    lines = torch.fft.fftfreq(64)
    squared = lines.square()[:, None] + lines.square()[None, :]
    squared[0, 0] = squared[0, 1]
    scale = squared.rsqrt() / squared.rsqrt().square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    picture, noise = (torch.randn(400, 64, 64, generator=generator) for _ in range(2))
    picture = picture * scale  # one real coefficient for each wave
    for timestep in (10, 300, 700, 999):
        signal, amount = schedule.signal[timestep], schedule.noise[timestep]
        noisy = signal * picture + amount * noise
        wanted = noise if prediction == "epsilon" else signal * noise - amount * picture
        slope = (noisy * wanted).mean(0) / noisy.square().mean(0)
        found = (wanted - slope * noisy).square().mean()
        assert float(found) == pytest.approx(float(expected[timestep]), rel=0.02, abs=1e-6)


def test_the_linear_denoiser_wave_by_wave() -> None:
    """The sum over the 64 x 64 waves, each by itself, to nine digits."""
    schedule = NoiseSchedule.scaled_linear()
    waves = [min(number, 64 - number) / 64 for number in range(64)]
    powers = [1 / max(x * x + y * y, 1 / 64**2) for x in waves for y in waves]
    mean = sum(powers) / len(powers)
    for timestep in (3, 250, 890):
        alpha = float(schedule.alphas_cumprod[timestep])
        parts = [power / mean / (alpha * power / mean + 1 - alpha) for power in powers]
        wanted = sum(parts) / len(parts)
        assert float(linear_denoiser_loss(schedule, "v")[timestep]) == pytest.approx(wanted, rel=1e-9)
        assert float(linear_denoiser_loss(schedule, "epsilon")[timestep]) == pytest.approx(alpha * wanted, rel=1e-9)


# ------------------------------------------------------------------------------------------------ noise


def test_pyramid_noise_is_of_unit_size_and_coarser() -> None:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(4, 32, 32, generator=generator)
    levels = [torch.randn(4, size, size, generator=generator) for size in (32, 12, 4, 1)]
    coarse = pyramid_noise(noise, levels, 0.8)
    assert float(coarse.std()) == pytest.approx(1.0, abs=1e-6)
    assert float(coarse.mean(dim=(1, 2)).std()) > 3 * float(noise.mean(dim=(1, 2)).std())
    assert torch.equal(pyramid_noise(noise, [], 0.8), noise / noise.std())
    # Four levels: with two of them a discount that is not compounded could not show.
    large = [functional.interpolate(level[None], size=(32, 32), mode="bilinear")[0] for level in levels]
    for count, factors in ((2, (1.0, 0.7)), (4, (1.0, 0.7, 0.49, 0.343))):
        by_hand = noise + sum(factor * level for factor, level in zip(factors, large[:count], strict=True))
        torch.testing.assert_close(pyramid_noise(noise, levels[:count], 0.7), by_hand / by_hand.std())


# ------------------------------------------------------------------------------------------------ loss


def test_huber_thresholds_by_hand() -> None:
    schedule = NoiseSchedule.scaled_linear()
    assert huber_thresholds(schedule, "constant", 0.1, 3.0).tolist() == pytest.approx([0.3] * 1000)
    exponential = huber_thresholds(schedule, "exponential", 0.1, 2.0)
    assert exponential[[0, 500, 999]].tolist() == pytest.approx([2.0, 2.0 * 0.1**0.5, 2.0 * 0.1**0.999])
    snr = huber_thresholds(schedule, "snr", 0.1, 7.0)
    sigma = float(schedule.sigmas[400])
    assert float(snr[400]) == pytest.approx(0.9 / (1 + sigma) ** 2 + 0.1)
    ending = huber_thresholds(NoiseSchedule.scaled_linear(zero_terminal_snr=True), "snr", 0.1, 1.0)
    assert float(ending[999]) == pytest.approx(0.1, abs=1e-6)


def test_l2_and_l1_are_torchs(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = draws
    torch.testing.assert_close(difference("l2", a, b), functional.mse_loss(a, b, reduction="none"))
    torch.testing.assert_close(difference("l1", a, b), functional.l1_loss(a, b, reduction="none"))


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_the_bent_losses_lie_within_torchs(draws: tuple[torch.Tensor, torch.Tensor], kind: LossType) -> None:
    """The smooth forms keep to torch's piecewise ones (which are half as large) within c² and c."""
    a, b = draws
    c = torch.tensor([1e-3, 0.1, 1.0, 100.0])
    found = difference(kind, a, b, c)
    for row, threshold in enumerate(c.tolist()):
        if kind == "huber":
            reference = 2 * functional.huber_loss(a[row], b[row], reduction="none", delta=threshold)
            limit = threshold**2
        else:
            reference = 2 * functional.smooth_l1_loss(a[row], b[row], reduction="none", beta=threshold)
            limit = threshold
        error = (a[row] - b[row]).double()
        exact = 2 * ((error.square() + threshold**2).sqrt() - threshold) * (threshold if kind == "huber" else 1)
        torch.testing.assert_close(found[row].double(), exact, rtol=1e-3, atol=1e-2 if threshold == 100 else 1e-5)
        assert bool((found[row] <= reference + 1e-2 * limit).all())
        assert bool((reference - found[row] <= limit * 1.01).all())


def test_bent_losses_by_hand() -> None:
    one = torch.ones(1, 1, 1, 1)
    c = torch.tensor([0.5])
    assert float(difference("huber", one, 0 * one, c)) == pytest.approx(math.sqrt(1.25) - 0.5)
    assert float(difference("smooth_l1", one, 0 * one, c)) == pytest.approx(2 * (math.sqrt(1.25) - 0.5))


def test_masked_means_by_hand() -> None:
    errors = torch.arange(16.0).reshape(2, 2, 2, 2)
    masks = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    weighted = (0 + 4) * 1.0 + (2 + 6) * 0.5
    assert masked_mean(errors, masks, normalized=True).tolist() == pytest.approx([weighted / (2 * 1.5), 0.0])
    assert masked_mean(errors, masks, normalized=False).tolist() == pytest.approx([weighted / 8, 0.0])
    whole = torch.ones(2, 1, 2, 2)
    for normalized in (True, False):
        assert masked_mean(errors, whole, normalized=normalized).tolist() == pytest.approx([3.5, 11.5])
