"""Text to image: noise of the image's own seed, a sampler guided by the prompt, the VAE."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import loraloom
from loraloom.diffusion.samplers import SAMPLERS, SamplerPlan
from loraloom.diffusion.schedules import sampler_sigmas
from loraloom.errors import CheckpointError, HardwareError, LoraloomError
from loraloom.events import Listener, Notice, SamplerStepped, ignore
from loraloom.formats.files import sha256_of
from loraloom.formats.image_info import format_parameters
from loraloom.generation.embeddings import load_embeddings
from loraloom.generation.guidance import Guidance, ImagePlans, StepCounter, TextCache, calls_per_step, encoder_widths
from loraloom.generation.loras import AppliedLora, attached, load_lora
from loraloom.generation.noise import LATENT_CHANNELS, BatchNoise, ImageSeed
from loraloom.generation.prompts import ImagePrompt, LoraTag, PromptPlan, PromptReader, plan_prompt
from loraloom.generation.sampling import (
    ignored_settings,
    image_seeds,
    level_options,
    plan_of,
    sampler_options,
    sampling_fields,
)
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.strength import strength_of
from loraloom.models.loaded import LoadedModel

__all__ = ["GeneratedImage", "image_size", "paint", "text_to_image", "with_seeds"]


@dataclass(frozen=True)
class GeneratedImage:
    """One image: its pixels, its latents (4, h, w) in float32 on the CPU, its parameters as text, its prompts."""

    image: Image.Image
    latent: Tensor
    infotext: str
    prompt: ImagePrompt
    seed: int
    """The seed of its noise."""


def text_to_image(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora] = (),
    *,
    listener: Listener = ignore,
    model_hash: str | None = None,
) -> list[GeneratedImage]:
    """All images of :func:`paint` at once."""
    return list(paint(model, settings, loras, listener=listener, model_hash=model_hash))


def paint(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora] = (),
    *,
    listener: Listener = ignore,
    model_hash: str | None = None,
) -> Iterator[GeneratedImage]:
    """Images one after another, batch by batch; image i has seed + i (with variations: variation seed + i) and does
    not depend on its batch.

    The LoRAs of the prompt's tags are found in ``settings.lora_folders`` and used besides ``loras``; they are off the
    model again when the last image is out (no weight is ever written). Adapters that a caller has attached stay.
    Images whose prompts draw different LoRAs are not in one batch.
    Raises PromptError, FileError (styles, wildcards, embeddings), AdapterError, CheckpointError (an inpainting model;
    NaN), HardwareError (memory, NaN in half precision).
    """
    _refuse_inpainting(model)
    settings = with_seeds(settings)
    reader = PromptReader(settings)
    prompts = [reader.read(settings.seed + index) for index in range(settings.count)]
    if any(prompt.ignored_loras for prompt in prompts):
        listener(Notice("LoRA tags in the negative prompt do nothing: a LoRA works on the whole image", "warning"))
    for line in ignored_settings(settings):
        listener(Notice(line, "warning"))
    seeds = image_seeds(settings, settings.seed, settings.variation_seed)
    batch_size = 1 if plan_of(settings).entry.one_at_a_time else settings.batch_size
    width, height = image_size(model, settings)
    extra_tags = "".join(f"<lora:{lora.name}:{lora.text_encoder:g}:{lora.unet:g}>" for lora in loras)

    @cache
    def found(tag: LoraTag) -> AppliedLora:
        return load_lora(tag, settings.lora_folders, model)

    done = 0
    try:
        for tags, group in groupby(zip(prompts, seeds, strict=True), key=lambda pair: pair[0].loras):
            used = [*loras, *(found(tag) for tag in tags)]
            alike = list(group)
            with torch.no_grad(), attached(model, used):
                planned = _plan(model, settings, [prompt for prompt, _ in alike], (width, height), listener)
                for start in range(0, len(alike), batch_size):
                    batch = alike[start : start + batch_size]
                    report = _progress(listener, settings, done)
                    latents = _sample(model, settings, planned, batch, (width, height), report)
                    for (prompt, seed), latent in zip(batch, latents, strict=True):
                        fields = {"Model hash": model_hash, **planned.infotext}
                        infotext = _infotext(model, settings, used, prompt, seed, (width, height), fields, extra_tags)
                        yield GeneratedImage(_decode(model, latent), latent.cpu(), infotext, prompt, seed.seed)
                    done += len(batch)
    except torch.OutOfMemoryError as error:
        raise HardwareError(
            f"out of memory on {model.device} at {width} x {height} pixels",
            "set low_memory=true, keep_file_precision=true, batch_size=1 or a smaller size",
        ) from error


def with_seeds(settings: GenerateSettings) -> GenerateSettings:
    """The settings with seeds: random ones where -1 asks for them."""
    names = ["seed", *(["variation_seed"] if settings.variation_strength > 0 else [])]
    update = {name: random.SystemRandom().randrange(2**32) for name in names if getattr(settings, name) < 0}
    return settings.model_copy(update=update)


def image_size(model: LoadedModel, settings: GenerateSettings) -> tuple[int, int]:
    """(width, height) in pixels: as set, else the resolution the family was trained at."""
    usual = model.family.default_resolution_for(model.prediction)
    return settings.width or usual, settings.height or usual


@dataclass(frozen=True)
class _Planned:
    """What images with the same LoRAs share: plans of their prompts, encoded texts, embeddings in use."""

    plans: Callable[[ImagePrompt], ImagePlans]
    texts: TextCache
    infotext: dict[str, str | None]


def _plan(
    model: LoadedModel,
    settings: GenerateSettings,
    prompts: Sequence[ImagePrompt],
    size: tuple[int, int],
    listener: Listener,
) -> _Planned:
    sampler = plan_of(settings).sampler
    calls = calls_per_step(sampler, settings.prompt_compatibility)

    @cache
    def planned(text: str, is_negative: bool) -> PromptPlan:
        return plan_prompt(
            text,
            settings.steps,
            calls_per_step=calls,
            is_negative=is_negative,
            compatibility=settings.prompt_compatibility,
        )

    def plans(prompt: ImagePrompt) -> ImagePlans:
        return ImagePlans(planned(prompt.text, False), planned(prompt.negative_text, True))

    both = [plan for prompt in prompts for plan in (plans(prompt).positive, plans(prompt).negative)]
    texts = list(dict.fromkeys(text for plan in both for text in plan.texts))
    embeddings, paths = load_embeddings(
        texts, settings.embedding_folders, model.tokenizer, encoder_widths(model), listener
    )
    hashes = ", ".join(f"{name}: {_file_hash(path)}" for name, path in paths.items())
    return _Planned(plans, TextCache(model, settings, embeddings, size), {"TI hashes": hashes or None})


def _file_hash(path: Path) -> str:
    """What the web UI shows as an embedding's hash."""
    return sha256_of(path)[:12]


def _sample(
    model: LoadedModel,
    settings: GenerateSettings,
    planned: _Planned,
    batch: Sequence[tuple[ImagePrompt, ImageSeed]],
    size: tuple[int, int],
    report: Callable[[int], None],
) -> Tensor:
    """Finished latents (B, 4, h, w), float32."""
    plan = plan_of(settings)
    sigmas = sampler_sigmas(
        model.schedule,
        plan,
        settings.steps,
        level_options(settings, model.family.aligned_sigmas),
        discard_penultimate=settings.discard_penultimate_sigma,
    )
    start, end = sigmas[0].item(), sigmas[-1].item()
    noise = BatchNoise([seed for _, seed in batch], size, model.device)
    starts_pure = plan.entry.pure_noise or settings.sgm_noise_multiplier
    guidance = Guidance(
        model,
        planned.texts,
        [planned.plans(prompt) for prompt, _ in batch],
        strength_of(settings, plan),
        one_pass=not settings.low_memory,
        needs_unguided=plan.entry.needs_unguided,
    )
    both = guidance.denoiser(
        StepCounter(sigmas, settings.prompt_compatibility), calls=settings.steps * plan.entry.calls
    )
    with model.using("unet"):
        x = SAMPLERS.load(plan.sampler)(
            both if plan.entry.needs_unguided else lambda x, sigma: both(x, sigma)[0],
            noise.first() * ((1 + start**2) ** 0.5 if starts_pure else start),
            sigmas,
            noise=noise,
            callback=lambda step, x, clean: report(step),
            **sampler_options(settings, plan),
        )
    if plan.entry.ends_at_first:
        x = x / (1 + end**2) ** 0.5  # DDIM ends at the first training timestep, in the other picture
    latents: Tensor = x
    if not bool(torch.isfinite(latents).all()):
        raise _not_finite(model, "the latents")
    return latents


def _decode(model: LoadedModel, latent: Tensor) -> Image.Image:
    with model.using("vae"):
        pixels = model.decode_latents(latent[None])[0]
    if not bool(torch.isfinite(pixels).all()):
        raise _not_finite(model, "the decoded image")
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())


def _progress(listener: Listener, settings: GenerateSettings, first: int) -> Callable[[int], None]:
    return lambda step: listener(
        SamplerStepped(min(step + 1, settings.steps), settings.steps, first + 1, settings.count)
    )


def _infotext(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora],
    prompt: ImagePrompt,
    seed: ImageSeed,
    size: tuple[int, int],
    more: dict[str, str | None],
    extra_tags: str,
) -> str:
    plan = plan_of(settings)
    hashes = ", ".join(f"{lora.name}: {lora.hash}" for lora in loras if lora.hash)
    fields = {
        "Steps": settings.steps,
        "Sampler": plan.sampler,
        "Schedule type": _schedule_title(plan),
        "CFG scale": f"{settings.cfg_scale:g}",
        "Seed": seed.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": more["Model hash"],
        "Model": model.checkpoint.path.stem,
        "Clip skip": settings.clip_skip if (settings.clip_skip or 1) > 1 else None,
        "RNG": "CPU",
        **sampling_fields(settings, seed),
        "Lora hashes": hashes or None,
        "TI hashes": more["TI hashes"],
        "Emphasis": _EMPHASIS[settings.emphasis],
        "Old prompt editing timelines": "True" if settings.prompt_compatibility == "a1111-1.5" else None,
        "Version": f"loraloom-{loraloom.__version__}",
    }
    return format_parameters(prompt.prompt + extra_tags, prompt.negative_prompt, fields)


_EMPHASIS = {"original": None, "no_norm": "No norm", "comfy": "Comfy", "ignore": "Ignore", "none": "None"}
"""The web UI's names (it has none for ComfyUI's way)."""


def _schedule_title(plan: SamplerPlan) -> str:
    """Levels that come with a sampler (DDIM's, UniPC's, LCM's) have no name of their own in the web UI."""
    entry = plan.entry
    own = entry.ends_at_first or entry.own_levels or plan.schedule == "LCM"
    return "Automatic" if own and plan.is_usual else plan.schedule


def _refuse_inpainting(model: LoadedModel) -> None:
    channels = model.unet.in_channels
    if channels != LATENT_CHANNELS:
        raise CheckpointError(
            f"{model.checkpoint.path} is an inpainting or editing model (its U-Net takes {channels} channels)",
            f"text to image needs a checkpoint whose U-Net takes {LATENT_CHANNELS}",
        )


def _not_finite(model: LoadedModel, what: str) -> LoraloomError:
    if model.compute != torch.float32:
        name = str(model.compute).removeprefix("torch.")
        return HardwareError(
            f"{what} became NaN or infinite in {name}", "set precision=no (fp32), or bf16 if it was fp16"
        )
    return CheckpointError(
        f"{model.checkpoint.path}: {what} became NaN or infinite",
        "the checkpoint is damaged, is not of the prediction that was assumed, or a LoRA weight is far too large",
    )
