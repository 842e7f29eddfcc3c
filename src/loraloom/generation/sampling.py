"""From settings to a sampler: noise levels, options, seeds, what has no effect, and what the image says of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from loraloom.diffusion.samplers import KARRAS, LevelOptions, SamplerPlan, resolve_sampler
from loraloom.generation.noise import ImageSeed
from loraloom.generation.settings import GenerateSettings

__all__ = [
    "SAMPLING_FIELDS",
    "ignored_settings",
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

_OPTIONS = {
    "eta": "eta",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
    "unipc_order": "order",
    "unipc_variant": "variant",
}
"""Settings that are options of samplers' functions."""
_LEVELS = {"sigma_min": "limits", "sigma_max": "limits", "rho": "rho", "beta_alpha": "beta", "beta_beta": "beta"}
"""Settings that shape noise levels, and what they are called in the table of schedules."""


def plan_of(settings: GenerateSettings) -> SamplerPlan:
    """The sampler and the noise levels that the settings name."""
    return resolve_sampler(settings.sampler, settings.schedule)


def sampler_options(settings: GenerateSettings, plan: SamplerPlan) -> dict[str, Any]:
    """The options that the settings give to the sampler's function; what is unset is the sampler's own."""
    values = {option: getattr(settings, name) for name, option in _OPTIONS.items() if option in plan.entry.takes}
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


def ignored_settings(settings: GenerateSettings) -> list[str]:
    """What was set and has no effect, one sentence each."""
    plan = plan_of(settings)
    entry = plan.entry
    lines = []
    options = [name for name, option in _OPTIONS.items() if option not in entry.takes and _is_set(settings, name)]
    if options:
        lines.append(f"{plan.sampler} has no use for {_listed(options)}")
    if "s_churn" in entry.takes and not settings.s_churn:
        windows = [name for name in ("s_tmin", "s_tmax", "s_noise") if _is_set(settings, name)]
        if windows:
            lines.append(f"without s_churn, {plan.sampler} has no use for {_listed(windows)}")
    takes = frozenset({"limits"}) if entry.own_levels else plan.levels.takes
    levels = [name for name, option in _LEVELS.items() if option not in takes and _is_set(settings, name)]
    if levels:
        lines.append(f"the noise levels {plan.schedule} have no use for {_listed(levels)}")
    if entry.own_levels and not plan.is_usual:
        lines.append(f"{plan.sampler} chooses its own noise levels, so {plan.schedule} does nothing")
    if entry.own_levels and settings.discard_penultimate_sigma:
        lines.append(f"{plan.sampler} chooses its own noise levels, so discard_penultimate_sigma does nothing")
    if entry.karras_from is not None and settings.steps >= entry.karras_from and plan.schedule != KARRAS:
        ends = f"between the ends of {plan.schedule}"
        lines.append(f"{plan.sampler} takes {KARRAS} levels from {entry.karras_from} steps on, {ends}")
    if entry.pure_noise and settings.sgm_noise_multiplier:
        lines.append(f"{plan.sampler} starts from pure noise anyway, so sgm_noise_multiplier does nothing")
    if settings.variation_strength == 0 and settings.variation_seed != -1:
        lines.append("variation_seed does nothing without variation_strength")
    if settings.eta_noise_seed_delta and not _draws_fresh(settings, plan):
        lines.append(f"eta_noise_seed_delta does nothing: {plan.sampler} draws no fresh noise from the seed")
    if entry.one_at_a_time and settings.batch_size > 1:
        lines.append(f"{plan.sampler} fits its steps to each image, so images are made one at a time")
    if plan.entry.needs_unguided and settings.cfg_scale > 12.5:
        lines.append(f"{plan.sampler} is meant for a cfg_scale between 0 and 12.5")
    if settings.cfg_scale == 1 and not entry.needs_unguided:
        names = ("guidance_rescale", "s_min_uncond", "s_min_uncond_all", "skip_early_cfg")
        unused = [name for name in names if _is_set(settings, name)]
        if unused:
            lines.append(f"cfg_scale 1 guides nothing, so {_listed(unused)} has no effect")
    return lines + _ignored_of_pictures(settings)


def _ignored_of_pictures(settings: GenerateSettings) -> list[str]:
    without_picture = ["resize_mode", "all_steps", *([] if settings.has_hires else ["denoising_strength"])]
    without_mask = ["mask_blur", "mask_invert", "mask_content", "inpaint_area", "inpaint_padding"]
    without_hires = [name for name in type(settings).model_fields if name.startswith("hires_")]
    lines = []
    for missing, needed, names in (
        (settings.init_image is None, "init_image", without_picture),
        (settings.mask is None, "mask", without_mask),
        (not settings.has_hires, "hires_scale or hires_width and hires_height", without_hires),
    ):
        if missing and (unused := [name for name in names if _is_set(settings, name)]):
            lines.append(f"without {needed}, {_listed(unused)} has no effect")
    if settings.mask is not None and settings.inpaint_area == "whole" and _is_set(settings, "inpaint_padding"):
        lines.append("inpaint_padding is for inpaint_area=mask")
    return lines


def sampling_fields(settings: GenerateSettings, seed: ImageSeed) -> dict[str, object]:
    """The fields of an image's infotext that tell of noise and guidance where they are not as usual."""
    plan = plan_of(settings)
    unused = {name for name, option in _OPTIONS.items() if option not in plan.entry.takes}
    unused |= {name for name, option in _LEVELS.items() if option not in plan.levels.takes}
    unused.add("eta" if plan.entry.pure_noise else "")
    fields: dict[str, object] = {}
    for field, name in SAMPLING_FIELDS.items():
        wrong_eta = name == "eta" and (field == "Eta DDIM") != plan.entry.pure_noise
        if not _is_set(settings, name) or wrong_eta or (name in unused and name != "eta"):
            continue
        value = getattr(settings, name)
        fields[field] = f"{value:g}" if isinstance(value, float) else value
    if "eta" not in plan.entry.takes:
        fields.pop("Eta", None)
        fields.pop("Eta DDIM", None)
    if seed.variation_strength > 0:
        fields["Variation seed"] = seed.variation_seed
    return fields


def _draws_fresh(settings: GenerateSettings, plan: SamplerPlan) -> bool:
    """Whether the sampler draws from the image's stream: not from its Brownian path, and not nothing."""
    if plan.entry.brownian:
        return False
    if plan.entry.random:
        return settings.eta != 0
    return bool(settings.eta or settings.s_churn)


def _is_set(settings: GenerateSettings, name: str) -> bool:
    return bool(getattr(settings, name) != type(settings).model_fields[name].default)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
