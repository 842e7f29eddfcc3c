"""From settings to a sampler: noise levels, options, seeds, and what the image says of it."""

from __future__ import annotations

import re
from typing import Any

from loraloom.diffusion.samplers import LevelOptions, SamplerPlan, resolve_sampler
from loraloom.generation.noise import ImageSeed
from loraloom.generation.settings import GenerateSettings
from loraloom.idle import is_set

__all__ = [
    "LEVELS",
    "OPTIONS",
    "SAMPLING_FIELDS",
    "image_seeds",
    "level_options",
    "plan_of",
    "sampler_options",
    "sampling_fields",
]

SAMPLING_FIELDS = {
    "Eta": "eta",
    "Eta DDIM": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    "Schedule min sigma": "sigma_min",
    "Schedule max sigma": "sigma_max",
    "Schedule rho": "rho",
    "Beta schedule alpha": "beta_alpha",
    "Beta schedule beta": "beta_beta",
    "Discard penultimate sigma": "discard_penultimate_sigma",
    "SGM noise multiplier": "sgm_noise_multiplier",
    "UniPC order": "unipc_order",
    "UniPC variant": "unipc_variant",
    "ENSD": "eta_noise_seed_delta",
    "CFG rescale": "guidance_rescale",
    "NGMS": "s_min_uncond",
    "NGMS all steps": "s_min_uncond_all",
    "Skip Early CFG": "skip_early_cfg",
    "Variation seed strength": "variation_strength",
    "Seed resize from": "seed_resize_from",
}
"""Fields of an infotext (the web UI's names) and the settings they are; written where a setting is not as usual."""

OPTIONS = {
    "eta": "eta",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
    "unipc_order": "order",
    "unipc_variant": "variant",
}
"""Settings that are options of samplers' functions."""
LEVELS = {"sigma_min": "limits", "sigma_max": "limits", "rho": "rho", "beta_alpha": "beta", "beta_beta": "beta"}
"""Settings that shape noise levels, and what they are called in the table of schedules."""


def plan_of(settings: GenerateSettings) -> SamplerPlan:
    """The sampler and the noise levels that the settings name."""
    return resolve_sampler(settings.sampler, settings.schedule)


def sampler_options(settings: GenerateSettings, plan: SamplerPlan) -> dict[str, Any]:
    """The options that the settings give to the sampler's function; what is unset is the sampler's own."""
    values = {option: getattr(settings, name) for name, option in OPTIONS.items() if option in plan.entry.takes}
    return {option: value for option, value in values.items() if value is not None}


def level_options(settings: GenerateSettings, aligned: tuple[float, ...]) -> LevelOptions:
    """What the settings say of the noise levels; ``aligned`` is the family's table of Align Your Steps."""
    return LevelOptions(
        smallest=settings.sigma_min,
        largest=settings.sigma_max,
        rho=settings.rho,
        beta=(settings.beta_alpha, settings.beta_beta),
        aligned=aligned,
    )


def image_seeds(settings: GenerateSettings, first: int, first_variation: int) -> list[ImageSeed]:
    """The seeds of all images: the seed counts up, or with variations the variation seed, as in the web UI."""
    varied = settings.variation_strength > 0
    size = [int(number) for number in re.findall(r"\d+", settings.seed_resize_from or "")]
    return [
        ImageSeed(
            seed=first if varied else first + index,
            variation_seed=first_variation + index,
            variation_strength=settings.variation_strength,
            resize_from=(size[0], size[1]) if size else None,
            seed_delta=settings.eta_noise_seed_delta,
        )
        for index in range(settings.count)
    ]


def sampling_fields(settings: GenerateSettings, seed: ImageSeed) -> dict[str, object]:
    """The fields of an image's infotext that tell of noise and guidance where they are not as usual."""
    plan = plan_of(settings)
    unused = {name for name, option in OPTIONS.items() if option not in plan.entry.takes}
    unused |= {name for name, option in LEVELS.items() if option not in plan.levels.takes}

    # The web UI keeps two of them, one for DDIM alone: the other would be read as that of every other sampler.
    unused_eta = "Eta" if plan.entry.pure_noise else "Eta DDIM"
    unused_fields = {"Eta", "Eta DDIM"} if "eta" in unused else {unused_eta}

    fields: dict[str, object] = {}
    for field, name in SAMPLING_FIELDS.items():
        if field in unused_fields or name in unused or not is_set(settings, name):
            continue
        value = getattr(settings, name)
        fields[field] = f"{value:g}" if isinstance(value, float) else value

    if seed.variation_strength > 0:
        fields["Variation seed"] = seed.variation_seed
    return fields
