"""Text to image: noise of the image's own seed, a sampler guided by the prompt, the VAE."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

import loraloom
from loraloom.diffusion import objectives
from loraloom.diffusion.samplers import SAMPLERS, SamplerPlan
from loraloom.diffusion.schedules import sampler_sigmas
from loraloom.errors import CheckpointError, HardwareError, LoraloomError
from loraloom.events import Listener, Notice, SamplerStepped, ignore
from loraloom.formats.image_info import format_parameters
from loraloom.generation.guidance import Guidance, guidance_of
from loraloom.generation.loras import AppliedLora, attached, load_lora
from loraloom.generation.noise import LATENT_CHANNELS, BatchNoise, ImageSeed
from loraloom.generation.prompts import extract_loras, parse_attention
from loraloom.generation.sampling import (
    ignored_settings,
    image_seeds,
    level_options,
    plan_of,
    sampler_options,
    sampling_fields,
)
from loraloom.generation.settings import GenerateSettings
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel

__all__ = ["GeneratedImage", "image_size", "paint", "text_to_image"]


@dataclass(frozen=True)
class GeneratedImage:
    """One image: its pixels, its latents (4, h, w) in float32 on the CPU, its parameters as text, its seed."""

    image: Image.Image
    latent: Tensor
    infotext: str
    seed: int


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
    Raises PromptError, AdapterError, CheckpointError (an inpainting model; NaN), HardwareError (memory, NaN in half
    precision).
    """
    _refuse_inpainting(model)
    _, tags = extract_loras(settings.prompt)
    _, ignored = extract_loras(settings.negative_prompt)
    if ignored:
        listener(Notice("LoRA tags in the negative prompt do nothing: a LoRA works on the whole image", "warning"))
    used = [*loras, *(load_lora(tag, settings.lora_folders, model) for tag in tags)]
    for line in ignored_settings(settings):
        listener(Notice(line, "warning"))
    seeds = image_seeds(settings, *(_chosen(seed) for seed in (settings.seed, settings.variation_seed)))
    batch_size = 1 if plan_of(settings).entry.one_at_a_time else settings.batch_size
    width, height = image_size(model, settings)
    extra_tags = "".join(f"<lora:{lora.name}:{lora.text_encoder:g}:{lora.unet:g}>" for lora in loras)
    try:
        with torch.no_grad(), attached(model, used):
            prompts = _encode(model, settings, width, height)
            for start in range(0, len(seeds), batch_size):
                batch = seeds[start : start + batch_size]
                report = _progress(listener, settings, start)
                latents = _sample(model, settings, prompts, batch, (width, height), report)
                for seed, latent in zip(batch, latents, strict=True):
                    infotext = _infotext(model, settings, used, seed, (width, height), model_hash, extra_tags)
                    yield GeneratedImage(_decode(model, latent), latent.cpu(), infotext, seed.seed)
    except torch.OutOfMemoryError as error:
        raise HardwareError(
            f"out of memory on {model.device} at {width} x {height} pixels",
            "set low_memory=true, keep_file_precision=true, batch_size=1 or a smaller size",
        ) from error


def image_size(model: LoadedModel, settings: GenerateSettings) -> tuple[int, int]:
    """(width, height) in pixels: as set, else the resolution the family was trained at."""
    usual = model.family.default_resolution_for(model.prediction)
    return settings.width or usual, settings.height or usual


def _chosen(seed: int) -> int:
    return seed if seed >= 0 else random.SystemRandom().randrange(2**32)


@dataclass(frozen=True)
class _Prompts:
    """Encoded prompt, and the negative one unless guidance does not need it; each a batch of one."""

    positive: Conditioning
    negative: Conditioning | None


def _encode(model: LoadedModel, settings: GenerateSettings, width: int, height: int) -> _Prompts:
    # Original size, crop and target size as SDXL was told in training: the whole picture, uncropped.
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=model.device)

    def encode(text: str) -> Conditioning:
        encoded = model.encode_text([parse_attention(text)], clip_skip=settings.clip_skip)
        return encoded.with_sizes(sizes) if model.family.uses_sizes else encoded

    prompt, negative = (extract_loras(text)[0] for text in (settings.prompt, settings.negative_prompt))
    with model.using(*(part for part in model.parts if part.startswith("text_encoder"))):
        positive = encode(prompt)
        if guidance_of(settings, plan_of(settings)) is None:
            return _Prompts(positive, None)
        unwanted = positive if negative == prompt else encode(negative)
    if model.family.uses_sizes and not negative.strip() and unwanted.pooled is not None:
        # Captions were dropped as zeros in SDXL's training, not as the encoding of an empty text.
        zeros = torch.zeros_like(unwanted.context), torch.zeros_like(unwanted.pooled)
        unwanted = Conditioning(*zeros, sizes=unwanted.sizes)
    return _Prompts(positive, unwanted)


def _sample(
    model: LoadedModel,
    settings: GenerateSettings,
    prompts: _Prompts,
    seeds: Sequence[ImageSeed],
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
    noise = BatchNoise(seeds, size, model.device)
    starts_pure = plan.entry.pure_noise or settings.sgm_noise_multiplier
    both = _denoiser(model, settings, prompts, guidance_of(settings, plan), len(seeds))
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


def _denoiser(
    model: LoadedModel, settings: GenerateSettings, prompts: _Prompts, guidance: Guidance | None, count: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The function that samplers call: x (B, 4, h, w) at sigma (B,) to clean latents, with guidance and without."""
    positive = Conditioning.stack([prompts.positive] * count)
    negative = None if prompts.negative is None else Conditioning.stack([prompts.negative] * count)
    both: Conditioning | None = None
    if negative is not None and not settings.low_memory:
        short, long = sorted((positive.context.shape[1], negative.context.shape[1]))
        if long % short == 0:  # else both would have to grow to share a batch
            both = Conditioning.stack([negative, positive])
    calls = itertools.count()
    total = settings.steps * plan_of(settings).entry.calls

    def denoise(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = model.schedule.sigma_to_timestep(sigma)
        scaled = x / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        call = next(calls)
        if guidance is None or negative is None or not guidance.needs_negative(call, total, float(sigma[0])):
            output = unwanted = model.denoise(scaled, timesteps, positive)
        elif both is not None:
            unwanted, output = model.denoise(scaled.repeat(2, 1, 1, 1), timesteps.repeat(2), both).chunk(2)
            output = guidance.combine(output, unwanted)
        else:
            unwanted = model.denoise(scaled, timesteps, negative)
            output = guidance.combine(model.denoise(scaled, timesteps, positive), unwanted)
        clean = objectives.denoised(model.prediction, output, x, sigma)
        return clean, clean if unwanted is output else objectives.denoised(model.prediction, unwanted, x, sigma)

    return denoise


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
    seed: ImageSeed,
    size: tuple[int, int],
    model_hash: str | None,
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
        "Model hash": model_hash,
        "Model": model.checkpoint.path.stem,
        "Clip skip": settings.clip_skip if (settings.clip_skip or 1) > 1 else None,
        "RNG": "CPU",
        **sampling_fields(settings, seed),
        "Lora hashes": hashes or None,
        "Version": f"loraloom-{loraloom.__version__}",
    }
    return format_parameters(settings.prompt + extra_tags, settings.negative_prompt, fields)


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
