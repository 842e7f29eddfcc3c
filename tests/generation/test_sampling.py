"""From settings to sampler: options, seeds, what is written into the image."""

from __future__ import annotations

from loraloom.diffusion.samplers import SAMPLERS
from loraloom.generation.noise import ImageSeed
from loraloom.generation.sampling import (
    SAMPLING_FIELDS,
    image_seeds,
    level_options,
    plan_of,
    sampler_options,
    sampling_fields,
)
from loraloom.generation.settings import GenerateSettings


def of(**changes: object) -> GenerateSettings:
    return GenerateSettings.parse(changes)


def test_every_option_of_every_sampler_is_a_setting() -> None:
    settings = of(eta=0.5, s_tmax=9.0)
    for name in SAMPLERS:
        plan = plan_of(of(sampler=name))
        assert set(sampler_options(settings, plan)) == plan.entry.takes
    assert "eta" not in sampler_options(of(), plan_of(of()))


def test_fields_are_settings_and_only_what_works_is_written() -> None:
    assert set(SAMPLING_FIELDS.values()) <= set(GenerateSettings.model_fields)
    seed = ImageSeed(1, 8, 0.25)
    assert sampling_fields(of(), ImageSeed(1)) == {}
    churned = of(sampler="Euler", s_churn=3, eta=0.5, rho=3.0, variation_strength=0.25, seed_resize_from="64x48")
    assert sampling_fields(churned, seed) == {
        "Sigma churn": "3",
        "Variation seed strength": "0.25",
        "Variation seed": 8,
        "Seed resize from": "64x48",
    }
    assert sampling_fields(of(sampler="DDIM", eta=0.5), ImageSeed(1)) == {"Eta DDIM": "0.5"}
    assert sampling_fields(of(sampler="Euler a", eta=0.5, eta_noise_seed_delta=31337), ImageSeed(1)) == {
        "Eta": "0.5",
        "ENSD": 31337,
    }


def test_seeds_count_up_or_the_variations_do() -> None:
    assert [(seed.seed, seed.variation_strength) for seed in image_seeds(of(count=2), 5, 9)] == [(5, 0.0), (6, 0.0)]
    varied = image_seeds(of(count=2, variation_strength=0.3, seed_resize_from="64x48"), 5, 9)
    assert [(seed.seed, seed.variation_seed, seed.resize_from) for seed in varied] == [
        (5, 9, (64, 48)),
        (5, 10, (64, 48)),
    ]


def test_levels_are_told_by_settings() -> None:
    options = level_options(of(sigma_min=0.1, sigma_max=9.0, rho=4.0, beta_alpha=0.5, beta_beta=0.7), (3.0, 1.0))
    assert (options.smallest, options.largest, options.rho, options.beta) == (0.1, 9.0, 4.0, (0.5, 0.7))
    assert options.aligned == (3.0, 1.0)
