"""One pass of a sampler over a batch: from noise, from a picture, or from smaller latents that were enlarged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from loraloom.diffusion.samplers import SAMPLERS
from loraloom.diffusion.schedules import sampler_sigmas
from loraloom.events import Listener
from loraloom.formats.files import sha256_of
from loraloom.generation.decoding import decode, encode, image_of, not_finite
from loraloom.generation.embeddings import load_embeddings
from loraloom.generation.guidance import Guidance, ImagePlans, StepCounter, TextCache, calls_per_step, encoder_widths
from loraloom.generation.init_image import pixels_of
from loraloom.generation.loras import AppliedLora, BatchLoras
from loraloom.generation.noise import LATENT_STEP, BatchNoise, ImageSeed
from loraloom.generation.prompts import ImagePrompt, PromptPlan, plan_prompt
from loraloom.generation.sampling import level_options, plan_of, sampler_options
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.strength import strength_of
from loraloom.models.loaded import LoadedModel

__all__ = ["PlannedPrompts", "Start", "Step", "enlarged", "hires_settings", "hires_size", "plan_prompts", "sample"]

Step = Callable[[int, Tensor], None]
"""Called after each step with its number (from 0) and the clean latents as they look now."""


@dataclass(frozen=True)
class Start:
    """What a pass starts from besides noise.

    ``latents`` (B, 4, h, w); ``painted`` (1, 1, h, w) is 1 where they may change, None: everywhere.
    """

    latents: Tensor
    strength: float
    all_steps: bool
    painted: Tensor | None = None


@dataclass(frozen=True)
class PlannedPrompts:
    """What the images of some settings share: plans of their prompts, encoded texts, embeddings in use."""

    plans: Callable[[ImagePrompt], ImagePlans]
    texts: TextCache
    embedding_hashes: str | None


def plan_prompts(
    model: LoadedModel,
    settings: GenerateSettings,
    prompts: Sequence[ImagePrompt],
    size: tuple[int, int],
    listener: Listener,
    *,
    earlier_steps: int | None = None,
    loras: Iterable[AppliedLora] = (),
) -> PlannedPrompts:
    """Plan the prompts of a pass; ``earlier_steps`` are those of the pass before it, ``loras`` may bring words."""
    calls = calls_per_step(plan_of(settings).entry, settings.prompt_compatibility)
    # The web UI counts the steps that were asked for also where image-to-image takes fewer.
    from_picture = settings.init_image is not None and settings.prompt_compatibility == "none"
    steps = steps_taken(settings) if from_picture else settings.steps

    @cache
    def planned(text: str, is_negative: bool) -> PromptPlan:
        return plan_prompt(
            text,
            steps,
            calls_per_step=calls,
            earlier_steps=earlier_steps,
            is_negative=is_negative,
            compatibility=settings.prompt_compatibility,
        )

    def plans(prompt: ImagePrompt) -> ImagePlans:
        return ImagePlans(planned(prompt.text, False), planned(prompt.negative_text, True))

    both = [plan for prompt in prompts for plan in (plans(prompt).positive, plans(prompt).negative)]
    texts = list(dict.fromkeys(text for plan in both for text in plan.texts))
    brought = {word: file for lora in loras for word, file in lora.words().items()}
    folders, widths = settings.embedding_folders, encoder_widths(model)
    embeddings, paths = load_embeddings(texts, folders, model.tokenizer, widths, listener, brought=brought)
    hashes = ", ".join(f"{name}: {_file_hash(path)}" for name, path in paths.items())
    return PlannedPrompts(plans, TextCache(model, settings, embeddings, size), hashes or None)


def sample(
    model: LoadedModel,
    settings: GenerateSettings,
    planned: PlannedPrompts,
    batch: Sequence[tuple[ImagePrompt, ImageSeed]],
    loras: BatchLoras,
    size: tuple[int, int],
    step: Step,
    *,
    start: Start | None = None,
    channels: Tensor | None = None,
) -> Tensor:
    """Finished latents (B, 4, h, w), float32. ``channels``: what an inpainting model reads besides latents."""
    if start is not None and start.strength == 0:
        return start.latents
    plan = plan_of(settings)
    sigmas = sampler_sigmas(
        model.schedule,
        plan,
        settings.steps if start is None else steps_planned(settings.steps, start.strength, all_steps=start.all_steps),
        level_options(settings, model.family.aligned_sigmas),
        discard_penultimate=settings.discard_penultimate_sigma,
    )
    if start is not None:
        sigmas = sigmas[len(sigmas) - 1 - steps_of(settings.steps, start.strength, all_steps=start.all_steps) :]
    first, end = sigmas[0].item(), sigmas[-1].item()
    noise = BatchNoise([seed for _, seed in batch], size, model.device)
    starts_pure = start is None and (plan.entry.pure_noise or settings.sgm_noise_multiplier)
    x = noise.first() * ((1 + first**2) ** 0.5 if starts_pure else first)
    guidance = Guidance(
        model,
        planned.texts,
        [planned.plans(prompt) for prompt, _ in batch],
        strength_of(settings, plan),
        loras,
        one_pass=not settings.low_memory,
        needs_unguided=plan.entry.needs_unguided,
        channels=channels,
    )
    both = guidance.denoiser(
        StepCounter(sigmas, settings.prompt_compatibility), calls=(len(sigmas) - 1) * plan.entry.calls
    )
    if start is not None:
        x = x + start.latents
        if start.painted is not None:
            both = _keeping(both, start.latents, start.painted)
    with model.using("unet"):
        x = SAMPLERS.load(plan.sampler)(
            both if plan.entry.needs_unguided else lambda x, sigma: both(x, sigma)[0],
            x,
            sigmas,
            noise=noise,
            callback=lambda number, x, clean: step(number, clean),
            **sampler_options(settings, plan),
        )
    if plan.entry.ends_at_first:
        x = x / (1 + end**2) ** 0.5  # DDIM ends at the first training timestep, in the other picture
    if start is not None and start.painted is not None:
        x = start.latents * (1 - start.painted) + x * start.painted
    latents: Tensor = x
    if not bool(torch.isfinite(latents).all()):
        raise not_finite(model, "the latents")
    return latents


def _keeping(
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], latents: Tensor, painted: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The denoiser with what is not painted as it was."""

    def denoise(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        guided, unguided = (latents * (1 - painted) + clean * painted for clean in both(x, sigma))
        return guided, unguided

    return denoise


# ------------------------------------------------------------------------------------------------ steps


def steps_of(steps: int, strength: float, *, all_steps: bool) -> int:
    """Steps that are taken from a picture: by the web UI's rule one more than strength's share, rounded down."""
    return steps if all_steps else int(min(strength, 0.999) * steps) + 1


def steps_planned(steps: int, strength: float, *, all_steps: bool) -> int:
    """Steps whose noise levels are laid out, of which the last :func:`steps_of` are taken."""
    return int(steps / min(strength, 0.999)) if all_steps else steps


def steps_taken(settings: GenerateSettings) -> int:
    """Steps of the first pass."""
    if settings.init_image is None:
        return settings.steps
    return steps_of(settings.steps, settings.denoising_strength, all_steps=settings.all_steps)


# ------------------------------------------------------------------------------------------------ high resolution


def hires_size(settings: GenerateSettings, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the high-resolution pass after a first one of ``size``, in steps of 8 pixels."""
    width, height = size
    if settings.hires_scale is not None:
        scales = settings.hires_scale, settings.hires_scale
    else:
        wide = (settings.hires_width or 0) / width
        high = (settings.hires_height or 0) / height
        scales = wide or high, high or wide
    return tuple(  # type: ignore[return-value]
        max(int(extent * scale) // LATENT_STEP * LATENT_STEP, LATENT_STEP)
        for extent, scale in zip(size, scales, strict=True)
    )


def hires_settings(settings: GenerateSettings, size: tuple[int, int]) -> GenerateSettings:
    """The settings of the high-resolution pass: what is not set of its own is as in the first."""
    own = {
        "steps": settings.hires_steps or None,
        "sampler": settings.hires_sampler,
        "schedule": settings.hires_schedule,
        "cfg_scale": settings.hires_cfg_scale,
        "prompt": settings.hires_prompt,
        "negative_prompt": settings.hires_negative_prompt,
    }
    changed = {name: value for name, value in own.items() if value is not None}
    nothing = {"hires_scale": None, "hires_width": None, "hires_height": None, "seed_resize_from": None}
    return settings.model_copy(update={**changed, **nothing, "width": size[0], "height": size[1]})


def enlarged(
    model: LoadedModel, settings: GenerateSettings, latents: Tensor, size: tuple[int, int], listener: Listener
) -> Tensor:
    """Latents (B, 4, h, w) of the pass before in another size (width, height in pixels), by ``hires_upscaler``."""
    kind, _, option = settings.hires_upscaler.partition(" ")
    if kind == "Latent":
        words = option.strip("()")
        mode = next((mode for mode in ("bicubic", "nearest-exact", "nearest") if mode in words), "bilinear")
        shape = size[1] // LATENT_STEP, size[0] // LATENT_STEP
        antialias = "antialiased" in words
        return torch.nn.functional.interpolate(latents, size=shape, mode=mode, antialias=antialias)
    filters = {name.title(): value for name, value in Image.Resampling.__members__.items()}
    pictures = decode(model, latents, tiling=settings.vae_tiling, listener=listener)
    pixels = [pixels_of(image_of(picture).resize(size, filters[kind])) for picture in pictures]
    return encode(model, torch.cat(pixels), tiling=settings.vae_tiling)


def _file_hash(path: Path) -> str:
    """What the web UI shows as an embedding's hash."""
    return sha256_of(path)[:12]
