"""Passes of a sampler: planned once for all images, then taken batch by batch.

A pass starts from noise, from a picture, or from the smaller latents of the pass before, enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from loraloom.diffusion.samplers import SAMPLERS, SamplerPlan
from loraloom.diffusion.schedules import sampler_sigmas
from loraloom.events import Listener
from loraloom.formats.files import sha256_of
from loraloom.generation.decoding import decode, encode, image_of, not_finite
from loraloom.generation.embeddings import load_embeddings
from loraloom.generation.guidance import Guidance, ImagePlans, StepCounter, TextCache, calls_per_step, encoder_widths
from loraloom.generation.init_image import InitImage, inpainting_channels, pixels_of
from loraloom.generation.loras import AppliedLora, BatchLoras
from loraloom.generation.noise import LATENT_STEP, BatchNoise, ImageSeed
from loraloom.generation.prompts import ImagePrompt, PromptPlan, plan_prompt
from loraloom.generation.sampling import level_options, plan_of, sampler_options
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.strength import strength_of
from loraloom.models.loaded import LoadedModel

__all__ = ["Pass", "Start", "Step", "hires_settings", "hires_size", "plan_passes", "sample", "steps_of"]

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

    def steps_planned(self, steps: int) -> int:
        """Steps whose noise levels are laid out, of which the last :meth:`steps_taken` are taken."""
        return int(steps / min(self.strength, 0.999)) if self.all_steps else steps

    def steps_taken(self, steps: int) -> int:
        """How many of the ``steps`` asked for are taken."""
        return steps_of(steps, self.strength, all_steps=self.all_steps)

    def with_kept(self, x: Tensor) -> Tensor:
        """``x`` (B, 4, h, w) with the start's latents where nothing is painted."""
        return x if self.painted is None else self.latents * (1 - self.painted) + x * self.painted


@dataclass(frozen=True)
class Pass:
    """One pass over every image of some settings: from noise or a picture, or from the latents of the pass before."""

    settings: GenerateSettings
    """Of this pass."""
    size: tuple[int, int]
    """Width and height in pixels."""
    plans: Callable[[ImagePrompt], ImagePlans]
    """The plan of an image's prompts."""
    texts: TextCache
    """Encoded texts of all images."""
    embedding_hashes: str | None
    init: InitImage | None
    """The picture it starts from."""
    earlier_steps: int | None
    """Steps of the passes before; None for the first one."""

    @property
    def steps(self) -> int:
        """How many are taken."""
        return steps_taken(self.settings)

    def start(
        self, model: LoadedModel, seeds: Sequence[ImageSeed], earlier: Tensor | None, listener: Listener
    ) -> Start | None:
        """What a batch starts from: a picture, ``earlier`` latents (B, 4, h, w) enlarged, or None for noise alone."""
        settings = self.settings
        if earlier is not None:
            return Start(_enlarged(model, settings, earlier, self.size, listener), settings.denoising_strength, True)
        if self.init is not None:
            return Start(self.init.latents(seeds), settings.denoising_strength, settings.all_steps, self.init.painted)
        return None


def plan_passes(
    model: LoadedModel,
    each: Sequence[tuple[GenerateSettings, Sequence[ImagePrompt], Sequence[AppliedLora]]],
    size: tuple[int, int],
    init: InitImage | None,
    listener: Listener,
) -> tuple[Pass, ...]:
    """The passes that take these settings, prompts of all images and LoRAs (which may bring words), one by one.

    ``size`` (width, height) and ``init`` are the first one's. Raises FileError and PromptError for embeddings.
    """
    passes: list[Pass] = []
    for settings, prompts, loras in each:
        earlier = passes[-1].settings.steps if passes else None
        if passes:
            size = _size_of(settings)
        plans = _planner(settings, earlier)
        both = [plan for prompt in prompts for plan in (plans(prompt).positive, plans(prompt).negative)]

        # Words of textual inversion: those in the folders, and those that LoRAs bring along.
        texts = list(dict.fromkeys(text for plan in both for text in plan.texts))
        brought = {word: file for lora in loras for word, file in lora.words().items()}
        folders, widths = settings.embedding_folders, encoder_widths(model)
        embeddings, paths = load_embeddings(texts, folders, model.tokenizer, widths, listener, brought=brought)
        hashes = ", ".join(f"{name}: {_file_hash(path)}" for name, path in paths.items())

        cache = TextCache(model, settings, embeddings, size)
        passes.append(Pass(settings, size, plans, cache, hashes or None, None if passes else init, earlier))
    return tuple(passes)


def _planner(settings: GenerateSettings, earlier_steps: int | None) -> Callable[[ImagePrompt], ImagePlans]:
    """Plans an image's prompts for the steps of a pass; the same text is planned once."""
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

    return lambda prompt: ImagePlans(planned(prompt.text, False), planned(prompt.negative_text, True))


# ------------------------------------------------------------------------------------------------ sampling


def sample(
    model: LoadedModel,
    one: Pass,
    batch: Sequence[tuple[ImagePrompt, ImageSeed]],
    loras: BatchLoras,
    start: Start | None,
    step: Step,
) -> Tensor:
    """Finished latents (B, 4, h, w), float32, of a batch in one pass; ``loras`` are on the model already.

    Raises CheckpointError or HardwareError for NaN.
    """
    if start is not None and start.strength == 0:
        return start.latents

    settings, plan = one.settings, plan_of(one.settings)
    sigmas = _noise_levels(model, settings, plan, start)
    noise = BatchNoise([seed for _, seed in batch], one.size, model.device)
    x = _noisy(noise, float(sigmas[0]), settings, plan, start)

    guidance = Guidance(
        model,
        one.texts,
        [one.plans(prompt) for prompt, _ in batch],
        strength_of(settings, plan),
        loras,
        one_pass=not settings.low_memory,
        needs_unguided=plan.entry.needs_unguided,
        channels=inpainting_channels(model, one.init, one.size),
    )
    counter = StepCounter(sigmas, settings.prompt_compatibility)
    denoise = guidance.denoiser(counter, calls=(len(sigmas) - 1) * plan.entry.calls)
    if start is not None and start.painted is not None:
        denoise = _keeping(denoise, start)

    with model.using("unet"):
        x = SAMPLERS.load(plan.sampler)(
            denoise if plan.entry.needs_unguided else lambda x, sigma: denoise(x, sigma)[0],
            x,
            sigmas,
            noise=noise,
            callback=lambda number, x, clean: step(number, clean),
            **sampler_options(settings, plan),
        )
    if plan.entry.ends_at_first:
        x = x / (1 + float(sigmas[-1]) ** 2) ** 0.5  # DDIM ends at the first training timestep, in the other picture
    latents: Tensor = x if start is None else start.with_kept(x)
    if not bool(torch.isfinite(latents).all()):
        raise not_finite(model, "the latents")
    return latents


def _noise_levels(model: LoadedModel, settings: GenerateSettings, plan: SamplerPlan, start: Start | None) -> Tensor:
    """The levels of the steps that are taken, (steps + 1,)."""
    sigmas = sampler_sigmas(
        model.schedule,
        plan,
        settings.steps if start is None else start.steps_planned(settings.steps),
        level_options(settings, model.family.aligned_sigmas),
        discard_penultimate=settings.discard_penultimate_sigma,
    )
    return sigmas if start is None else sigmas[len(sigmas) - 1 - start.steps_taken(settings.steps) :]


def _noisy(
    noise: BatchNoise, sigma: float, settings: GenerateSettings, plan: SamplerPlan, start: Start | None
) -> Tensor:
    """What sampling starts with, (B, 4, h, w): noise of the first level, over the start's latents if there are any."""
    if start is not None:
        return noise.first() * sigma + start.latents
    starts_pure = plan.entry.pure_noise or settings.sgm_noise_multiplier
    return noise.first() * ((1 + sigma**2) ** 0.5 if starts_pure else sigma)


def _keeping(
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: Start
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The denoiser with what is not painted as it was."""

    def denoise(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        guided, unguided = (start.with_kept(clean) for clean in both(x, sigma))
        return guided, unguided

    return denoise


# ------------------------------------------------------------------------------------------------ steps


def steps_of(steps: int, strength: float, *, all_steps: bool) -> int:
    """Steps that are taken from a picture: by the web UI's rule one more than strength's share, rounded down."""
    return steps if all_steps else int(min(strength, 0.999) * steps) + 1


def steps_taken(settings: GenerateSettings) -> int:
    """Steps of a pass with these settings."""
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


def _size_of(settings: GenerateSettings) -> tuple[int, int]:
    """(width, height) of the high-resolution pass, whose settings always name them."""
    return settings.width or 0, settings.height or 0


def _enlarged(
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
