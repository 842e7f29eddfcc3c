"""Settings of a picture that change nothing: every row of the table is tried, by what it says and when it is silent."""

from __future__ import annotations

import pytest

from loraloom.diffusion.samplers import SAMPLERS
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.without_effect import ROWS, Picture, PictureRow, without_effect

# One case for each row, in its order: the only row that has something to say of these settings.
CASES: list[tuple[dict[str, object], str]] = [
    ({"sampler": "Euler", "eta": 0.5}, "Euler has no use for eta"),
    ({"sampler": "Euler", "s_noise": 1.1, "s_tmax": 9}, "without s_churn, Euler has no use for s_tmax and s_noise"),
    ({"sampler": "DPM++ 2M", "rho": 3, "schedule": "Uniform"}, "the noise levels Uniform have no use for rho"),
    (
        {"sampler": "DPM fast", "schedule": "Karras"},
        "DPM fast chooses its own noise levels, so Karras does nothing",
    ),
    (
        {"sampler": "DPM adaptive", "discard_penultimate_sigma": True},
        "DPM adaptive chooses its own noise levels, so discard_penultimate_sigma does nothing",
    ),
    (
        {"sampler": "Restart", "schedule": "Beta", "steps": 20},
        "Restart takes Karras levels from 20 steps on, between the ends of Beta",
    ),
    (
        {"sampler": "DDIM", "sgm_noise_multiplier": True},
        "DDIM starts from pure noise anyway, so sgm_noise_multiplier does nothing",
    ),
    ({"variation_seed": 4}, "variation_seed does nothing without variation_strength"),
    (
        {"sampler": "DPM++ 2M", "eta_noise_seed_delta": 31337},
        "eta_noise_seed_delta does nothing: DPM++ 2M draws no fresh noise from the seed",
    ),
    (
        {"sampler": "DPM adaptive", "batch_size": 4},
        "DPM adaptive fits its steps to each image, so images are made one at a time",
    ),
    ({"sampler": "DDIM CFG++", "cfg_scale": 20}, "DDIM CFG++ is meant for a cfg_scale between 0 and 12.5"),
    (
        {"cfg_scale": 1, "guidance_rescale": 0.5, "s_min_uncond": 0.3, "skip_early_cfg": 0.1},
        "cfg_scale=1 turns guidance off, so guidance_rescale, s_min_uncond and skip_early_cfg has no effect",
    ),
    (
        {"denoising_strength": 0.5, "resize_mode": "fill"},
        "without init_image, resize_mode and denoising_strength has no effect",
    ),
    ({"init_image": "a.png", "mask_blur": 9}, "without mask, mask_blur has no effect"),
    ({"hires_steps": 9}, "without hires_scale or hires_width and hires_height, hires_steps has no effect"),
    (
        {"init_image": "a.png", "mask": "b.png", "inpaint_padding": 9},
        "inpaint_padding is for inpaint_area=mask",
    ),
]


def of(**changes: object) -> GenerateSettings:
    return GenerateSettings.parse(changes)


def test_every_row_is_tried() -> None:
    assert len(CASES) == len(ROWS)


@pytest.mark.parametrize(("row", "case"), list(zip(ROWS, CASES, strict=True)), ids=[line for _, line in CASES])
def test_a_row_says_its_sentence(row: PictureRow, case: tuple[dict[str, object], str]) -> None:
    changes, line = case
    assert without_effect(of(**changes)) == [line]
    assert row.holds(Picture(of(**changes)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "DPM++ SDE", "s_churn": 3}, "s_churn"),
        ({"sampler": "Euler", "sigma_max": 9}, "sigma_max"),
        ({"sampler": "Euler", "beta_alpha": 0.5}, "beta_alpha"),
        ({"sampler": "DPM++ SDE", "eta_noise_seed_delta": 5}, "eta_noise_seed_delta"),
        ({"sampler": "Euler a", "eta": 0, "eta_noise_seed_delta": 5}, "eta_noise_seed_delta"),
    ],
)
def test_other_samplers_say_the_same(changes: dict[str, object], words: str) -> None:
    lines = without_effect(of(**changes))
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "DPM adaptive", "sigma_max": 9},
        {"sampler": "Restart", "schedule": "Beta", "steps": 19},
        {"hires_scale": 1.5, "denoising_strength": 0.5, "hires_steps": 9},
        {"sampler": "DDIM CFG++", "cfg_scale": 1, "guidance_rescale": 0.5},
    ],
)
def test_a_row_is_silent_where_the_setting_works(changes: dict[str, object]) -> None:
    assert without_effect(of(**changes)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": name}
        | (
            {"s_noise": 1.1}
            if "s_noise" in SAMPLERS[name].takes - {"s_churn"} and name not in ("Euler", "Heun", "DPM2")
            else {}
        )  # type: ignore[attr-defined]
        for name in SAMPLERS
    ]
    + [
        {"sampler": "Euler a", "eta_noise_seed_delta": 5, "eta": 0.5},
        {"sampler": "Heun", "s_churn": 3, "s_tmin": 0.1, "s_tmax": 5, "s_noise": 1.1},
        {"schedule": "Karras", "rho": 3, "sigma_min": 0.1},
        {"schedule": "Beta", "beta_alpha": 0.5, "beta_beta": 0.7},
        {"variation_strength": 0.2, "variation_seed": 3},
    ],
)
def test_nothing_is_said_of_what_works(changes: dict[str, object]) -> None:
    assert without_effect(of(**changes)) == []
