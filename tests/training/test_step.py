"""What the model is asked and how its answer is judged: draws, noise, loss, masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from loraloom.diffusion.objectives import Prediction, linear_denoiser_loss, logit_normal_density, min_snr_weights
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.errors import SettingsError
from loraloom.models.conditioning import Conditioning
from loraloom.randomness import normal, uniform
from loraloom.training.settings import ObjectiveSettings, TrainSettings
from loraloom.training.step import (
    UNIFORM_SHARE,
    Batch,
    Objective,
    prior_weight,
)

MakeSettings = Callable[..., TrainSettings]
SCHEDULE = NoiseSchedule.scaled_linear()
ENDING_IN_NOISE = NoiseSchedule.scaled_linear(zero_terminal_snr=True)


def objective(prediction: Prediction = "epsilon", schedule: NoiseSchedule = SCHEDULE, **settings: object) -> Objective:
    return Objective(schedule, prediction, 7, ObjectiveSettings.model_validate(settings))


def batch(count: int = 4, size: tuple[int, int] = (8, 8), epoch: int = 0) -> Batch:
    latents = torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(11))
    keys = [(epoch, f"picture {index}", 0) for index in range(count)]
    return Batch(latents, Conditioning(torch.zeros(count, 77, 8)), torch.ones(count), keys)


# ------------------------------------------------------------------------------------------------ timesteps


def test_timesteps_stay_in_their_range_and_reach_its_ends() -> None:
    for sampling in ("uniform", "logit_normal", "importance"):
        asked = objective(min_timestep=10, max_timestep=14, timestep_sampling=sampling)
        drawn = torch.cat([asked.timesteps(batch(50, epoch=epoch)) for epoch in range(8)])
        assert set(drawn.tolist()) == {10, 11, 12, 13}, sampling


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal", "importance"])
@pytest.mark.parametrize("stratified", [False, True])
def test_timesteps_follow_the_stated_density(sampling: str, stratified: bool) -> None:
    asked = objective(timestep_sampling=sampling, stratified_timesteps=stratified, logit_mean=-0.5)
    drawn = torch.cat([asked.timesteps(batch(8, epoch=epoch)) for epoch in range(1500)])
    found = torch.bincount(drawn, minlength=1000).reshape(10, 100).sum(1) / len(drawn)
    torch.testing.assert_close(found.double(), asked.density.reshape(10, 100).sum(1), atol=0.012, rtol=0)


def test_stratified_timesteps_take_one_of_each_part() -> None:
    asked = objective(stratified_timesteps=True)
    for epoch in range(20):
        assert sorted((asked.timesteps(batch(4, epoch=epoch)) // 250).tolist()) == [0, 1, 2, 3]
    firsts = {int(asked.timesteps(batch(4, epoch=epoch))[0]) // 250 for epoch in range(30)}
    assert firsts == {0, 1, 2, 3}


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("weighing", [{}, {"min_snr_gamma": 5.0}, {"min_timestep": 100, "max_timestep": 700}])
def test_importance_sampling_leaves_the_expected_loss(prediction: Prediction, weighing: dict[str, float]) -> None:
    plain = objective(prediction, **weighing)
    sampled = objective(prediction, timestep_sampling="importance", **weighing)
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [
        float((asked.density * losses * (1.0 if weights is None else weights)).sum())
        for asked in (plain, sampled)
        for weights in [asked.timestep_weights]
    ]
    assert expected[1] == pytest.approx(expected[0], rel=1e-5)
    ratio = sampled.timestep_weights / (1.0 if plain.timestep_weights is None else plain.timestep_weights)
    assert float(ratio.max()) <= 1 / UNIFORM_SHARE + 1e-4
    assert float(sampled.density.max() / sampled.density[sampled.density > 0].min()) > 1.2


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_density_of_importance_sampling_by_hand(prediction: Prediction) -> None:
    """A quarter uniform over the range, the rest as the expected loss times its weight; nothing outside."""
    asked = objective(prediction, timestep_sampling="importance", min_snr_gamma=3.0, min_timestep=130, max_timestep=710)
    every = torch.arange(1000)
    expected = linear_denoiser_loss(SCHEDULE, prediction) * min_snr_weights(SCHEDULE, prediction, every, 3.0)
    inside = (every >= 130) & (every < 710)
    expected = torch.where(inside, expected, torch.zeros(1000, dtype=torch.float64))
    wanted = 0.75 * expected / expected.sum() + 0.25 * inside / 580
    torch.testing.assert_close(asked.density, wanted, rtol=1e-6, atol=0)
    assert float(asked.density.sum()) == pytest.approx(1.0)


def test_the_density_of_a_logit_normal_is_cut_to_the_range() -> None:
    asked = objective(
        timestep_sampling="logit_normal", logit_mean=0.4, logit_std=1.3, min_timestep=130, max_timestep=710
    )
    whole = logit_normal_density(1000, 0.4, 1.3)
    wanted = torch.zeros(1000, dtype=torch.float64)
    wanted[130:710] = whole[130:710] / whole[130:710].sum()
    torch.testing.assert_close(asked.density, wanted, rtol=1e-9, atol=0)


def test_draws_do_not_depend_on_the_batch_unless_stratified() -> None:
    whole = batch(4)
    one = replace(whole, latents=whole.latents[2:3], keys=whole.keys[2:3])
    options = {
        "timestep_sampling": "importance",
        "noise_offset": 0.1,
        "noise_offset_random_strength": True,
        "adaptive_noise_scale": 0.2,
        "multires_noise_iterations": 4,
        "ip_noise_gamma": 0.1,
        "ip_noise_gamma_random_strength": True,
    }
    asked = objective(**options)
    assert asked.timesteps(one).item() == asked.timesteps(whole)[2].item()
    noise, alone = asked.noise(whole), asked.noise(one)
    torch.testing.assert_close(alone[0], noise[2])
    torch.testing.assert_close(asked.perturbed(alone, one)[0], asked.perturbed(noise, whole)[2])
    torch.testing.assert_close(noise, asked.noise(whole), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ noise


def test_an_offset_shifts_every_channel_as_a_whole() -> None:
    plain, shifted = objective().noise(batch()), objective(noise_offset=0.1).noise(batch())
    shift = (shifted - plain).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(shifted - plain, shift.expand_as(plain), atol=1e-6, rtol=0)
    many = objective(noise_offset=0.1).noise(batch(500, (2, 2))) - objective().noise(batch(500, (2, 2)))
    assert float(many[:, :, 0, 0].std()) == pytest.approx(0.1, rel=0.05)
    random = objective(noise_offset=0.1, noise_offset_random_strength=True).noise(batch(500, (2, 2)))
    random = random - objective().noise(batch(500, (2, 2)))
    assert float(random[:, :, 0, 0].std()) == pytest.approx(0.1 / 3**0.5, rel=0.08)  # a uniform number squared: 1/3


def test_the_adaptive_offset_follows_the_mean_of_the_latents() -> None:
    given = batch()
    unit = objective(noise_offset=1.0).noise(given) - objective().noise(given)
    mean = given.latents.mean(dim=(2, 3), keepdim=True).abs()
    adaptive = objective(noise_offset=0.05, adaptive_noise_scale=0.3).noise(given) - objective().noise(given)
    torch.testing.assert_close(adaptive, (0.05 + 0.3 * mean) * unit, atol=1e-6, rtol=1e-4)
    less = objective(noise_offset=0.05, adaptive_noise_scale=-1.0).noise(given) - objective().noise(given)
    torch.testing.assert_close(less, (0.05 - mean).clamp(min=0) * unit, atol=1e-6, rtol=1e-4)


def test_multires_noise_is_coarser_and_of_unit_size_for_each_image() -> None:
    given = batch(64, (16, 16))
    plain, coarse = objective().noise(given), objective(multires_noise_iterations=6, multires_noise_discount=0.9)
    noise = coarse.noise(given)
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(64))
    assert float(noise.mean(dim=(2, 3)).std()) > 3 * float(plain.mean(dim=(2, 3)).std())


def test_multires_noise_by_hand() -> None:
    """The i-th layer is smaller by r**i on sides of unlike length, down to the first that has a side of one value."""
    given = batch(3, (24, 10))
    plain = objective().noise(given)
    found = objective(multires_noise_iterations=9, multires_noise_discount=0.7).noise(given)
    sizes = set()
    for row, key in enumerate(given.keys):
        total = plain[row]
        for index in range(9):
            shrink = (2 + 2 * uniform(7, "coarse noise size", index, *key)) ** index
            size = max(1, int(24 / shrink)), max(1, int(10 / shrink))
            layer = normal((4, *size), 7, "coarse noise", index, *key)
            total = total + 0.7**index * interpolate(layer[None], size=(24, 10), mode="bilinear")[0]
            sizes.add(size)
            if 1 in size:
                break
        torch.testing.assert_close(found[row], total / total.std())
    assert (24, 10) in sizes and len(sizes) > 4, "layers of several sizes, not the same for every image"


def test_input_perturbation_is_seen_but_not_asked_for() -> None:
    given = batch(200)
    asked = objective(ip_noise_gamma=0.2)
    noise = asked.noise(given)
    more = asked.perturbed(noise, given) - noise
    assert float(more.std()) == pytest.approx(0.2, rel=0.02)
    assert float((more * noise).mean()) == pytest.approx(0.0, abs=0.005)
    assert asked.target(given.latents, noise, torch.full((200,), 500)) is noise
    random = objective(ip_noise_gamma=0.2, ip_noise_gamma_random_strength=True).perturbed(noise, given) - noise
    assert float(random.std()) == pytest.approx(0.2 / 3**0.5, rel=0.1)


def test_without_options_nothing_is_computed() -> None:
    given, asked = batch(), objective()
    noise = asked.noise(given)
    assert asked.perturbed(noise, given) is noise
    assert asked.timestep_weights is None
    predicted = given.latents
    expected = (predicted - noise).square().mean(dim=(1, 2, 3))
    assert torch.equal(asked.loss(predicted, noise, asked.timesteps(given)), expected)


# ------------------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize(
    ("prediction", "settings", "weight"),
    [
        ("epsilon", {"min_snr_gamma": 5.0}, lambda snr: min(snr, 5.0) / snr),
        ("v", {"min_snr_gamma": 5.0}, lambda snr: min(snr, 5.0) / (snr + 1)),
        ("epsilon", {"debiased_estimation": True}, lambda snr: snr**-0.5),
        ("v", {"debiased_estimation": True}, lambda snr: 1 / (snr + 1)),
        ("v", {"scale_v_like_noise": True}, lambda snr: snr / (snr + 1)),
        ("epsilon", {"v_like_loss": 0.5}, lambda snr: 1 + 0.5 * (snr + 1) / snr),
        (
            "v",
            {"scale_v_like_noise": True, "min_snr_gamma": 1.0},
            lambda snr: snr / (snr + 1) * min(snr, 1.0) / (snr + 1),
        ),
        (
            "epsilon",
            {"min_snr_gamma": 3.0, "debiased_estimation": True},
            lambda snr: min(snr, 3.0) / snr * snr**-0.5,
        ),
        (
            "v",
            {"min_snr_gamma": 3.0, "debiased_estimation": True},
            lambda snr: min(snr, 3.0) / (snr + 1) / (snr + 1),
        ),
    ],
)
@pytest.mark.parametrize("schedule", [SCHEDULE, ENDING_IN_NOISE], ids=["plain", "zero terminal SNR"])
def test_the_loss_is_weighed_by_the_snr(
    prediction: Prediction,
    settings: dict[str, object],
    weight: Callable[[float], float],
    schedule: NoiseSchedule,
) -> None:
    given = batch(3)
    timesteps = torch.tensor([100, 500, 900])
    zeros = torch.zeros_like(given.latents)
    found = objective(prediction, schedule, **settings).loss(given.latents, zeros, timesteps)
    plain = given.latents.square().mean(dim=(1, 2, 3))
    alpha = schedule.alphas_cumprod[timesteps].double()
    expected = [float(loss) * weight(float(snr)) for loss, snr in zip(plain, alpha / (1 - alpha), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_every_weight_is_finite_where_there_is_no_signal() -> None:
    for prediction, options in (
        ("epsilon", {"min_snr_gamma": 5.0}),
        ("epsilon", {"debiased_estimation": True}),
        ("epsilon", {"v_like_loss": 1.0}),
        ("epsilon", {"timestep_sampling": "importance", "debiased_estimation": True}),
        ("v", {"timestep_sampling": "importance", "min_snr_gamma": 5.0}),
        ("v", {"scale_v_like_noise": True, "debiased_estimation": True}),
    ):
        weights = objective(prediction, ENDING_IN_NOISE, **options).timestep_weights
        assert weights is not None
        assert bool(weights.isfinite().all())


def test_huber_thresholds_are_those_of_each_images_timestep() -> None:
    asked = objective(loss_type="huber", huber_schedule="exponential", huber_c=0.1)
    predicted = torch.full((2, 4, 2, 2), 3.0)
    found = asked.loss(predicted, torch.zeros_like(predicted), torch.tensor([0, 999]))
    expected = [2 * c * ((9 + c * c) ** 0.5 - c) for c in (1.0, 0.1**0.999)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
@pytest.mark.parametrize("normalized", [True, False])
def test_what_is_masked_gets_no_gradient_at_all(loss_type: str, normalized: bool) -> None:
    given = batch(2)
    masks = torch.ones(2, 1, 8, 8)
    masks[:, :, :, 4:] = 0
    predicted = given.latents.clone().requires_grad_()
    asked = objective(loss_type=loss_type, masked_loss_normalized=normalized, min_snr_gamma=5.0)
    asked.loss(predicted, torch.zeros_like(predicted), torch.tensor([50, 700]), masks=masks).sum().backward()
    assert predicted.grad is not None
    assert float(predicted.grad[..., 4:].abs().max()) == 0.0
    assert float(predicted.grad[..., :4].abs().min()) > 0.0


def test_masked_losses_by_hand() -> None:
    given = batch(2)
    errors = given.latents.square()
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, :2] = 1
    zeros, timesteps = torch.zeros_like(errors), torch.tensor([5, 6])

    def loss(**settings: object) -> list[float]:
        return objective(**settings).loss(given.latents, zeros, timesteps, masks=masks).tolist()

    inside, whole = errors[:, :, :2].mean(dim=(1, 2, 3)), errors.mean(dim=(1, 2, 3))
    assert loss() == pytest.approx(inside.tolist())
    assert loss(masked_loss_normalized=False) == pytest.approx((inside / 4).tolist())
    floored = 0.25 * errors.sum(dim=(1, 2, 3)) + 0.75 * errors[:, :, :2].sum(dim=(1, 2, 3))
    assert loss(mask_floor=0.25) == pytest.approx((floored / (4 * (0.25 * 48 + 16))).tolist())
    assert loss(mask_floor=0.25, masked_loss_normalized=False) == pytest.approx((floored / 256).tolist())
    assert float((whole - inside).abs().min()) > 1e-3


def test_the_floor_of_a_mask_is_a_mix_and_no_bound() -> None:
    """A grey mask is above the floor already: lifted all the same, where a bound would leave it."""
    given, grey, floor = batch(2), 0.6, 0.3
    errors = given.latents.square()
    masks = torch.full((2, 1, 8, 8), grey)
    asked = objective(mask_floor=floor, masked_loss_normalized=False)
    found = asked.loss(given.latents, torch.zeros_like(errors), torch.tensor([5, 6]), masks=masks)
    torch.testing.assert_close(found, (floor + (1 - floor) * grey) * errors.mean(dim=(1, 2, 3)))


def test_the_prior_weight_changes_evenly(make_settings: MakeSettings) -> None:
    settings = make_settings("prior_loss_weight=0.75", "objective.prior_loss_min=0.1")
    weights = [prior_weight(settings, step, 11) for step in range(11)]
    assert weights == pytest.approx([0.75 - 0.065 * step for step in range(11)])
    shorter = make_settings("prior_loss_weight=0.75", "objective.prior_loss_min=0.1", "objective.prior_loss_steps=6")
    assert [prior_weight(shorter, step, 11) for step in (0, 5, 10)] == pytest.approx([0.75, 0.1, 0.1])
    assert prior_weight(make_settings("prior_loss_weight=0.75"), 9, 10) == 0.75
    for settings_of_one in (
        settings,
        make_settings("prior_loss_weight=0.75", "objective.prior_loss_min=0.1", "objective.prior_loss_steps=1"),
    ):
        assert prior_weight(settings_of_one, 0, 1) == 0.75, "a change in a single step has not begun"
    for steps, wanted in ((4, [0.2, 0.6, 1.0, 1.4, 1.4]), (2, [0.2, 1.4, 1.4, 1.4, 1.4]), (1, [0.2, *[1.4] * 4])):
        rising = make_settings(
            "prior_loss_weight=0.2", "objective.prior_loss_min=1.4", f"objective.prior_loss_steps={steps}"
        )
        assert [prior_weight(rising, step, 100) for step in (0, 1, 2, 3, 99)] == pytest.approx(wanted)


# ------------------------------------------------------------------------------------------------ what goes together


def test_contradictions_are_named_together(make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings(
            "objective.min_timestep=600",
            "objective.max_timestep=600",
            "objective.scale_v_like_noise=true",
            "objective.v_like_loss=0.3",
        )
    text = str(caught.value)
    assert "min_timestep=600 must be below max_timestep=600" in text
    assert "scale_v_like_noise is for v models and v_like_loss" in text and "{" not in text


def test_names_of_sd_scripts_are_answered(make_settings: MakeSettings) -> None:
    for theirs, ours in (
        ("v_pred_like_loss=1", "objective.v_like_loss"),
        ("debiased_estimation_loss=true", "objective.debiased_estimation"),
        ("huber_c=0.2", "objective.huber_c"),
        ("ip_noise_gamma=0.1", "objective.ip_noise_gamma"),
    ):
        with pytest.raises(SettingsError, match=f"is called '{ours}' here"):
            make_settings(theirs)


@pytest.mark.parametrize(
    ("prediction", "name", "settings"),
    [("epsilon", "scale_v_like_noise", {"scale_v_like_noise": True}), ("v", "v_like_loss", {"v_like_loss": 1.0})],
)
def test_what_the_prediction_forbids_is_said_with_both_names(
    prediction: Prediction, name: str, settings: dict[str, object]
) -> None:
    with pytest.raises(SettingsError) as caught:
        objective(prediction, **settings).check()
    assert f"objective.{name}" in str(caught.value)
    assert f"predicts {prediction}" in str(caught.value)
    objective("v" if prediction == "epsilon" else "epsilon", **settings).check()


def test_a_density_without_timesteps_is_an_error() -> None:
    with pytest.raises(SettingsError, match="never draws a timestep"):
        objective(timestep_sampling="logit_normal", logit_mean=10, logit_std=0.1, max_timestep=5).check()


def test_a_range_beyond_the_end_of_a_shorter_schedule_is_an_error() -> None:
    """The settings know of 1000 timesteps; a schedule may have fewer."""
    short = NoiseSchedule.scaled_linear(steps=700)
    with pytest.raises(SettingsError, match=r"min_timestep=700 leaves none of 700 timesteps") as caught:
        objective(schedule=short, min_timestep=700, max_timestep=930, v_like_loss=0.3, prediction="v").check()
    assert "v_like_loss" in str(caught.value), "all of it at once"
    asked = objective(schedule=short, min_timestep=699, max_timestep=930)
    asked.check()
    assert asked.timesteps(batch()).tolist() == [699] * 4
