"""Text to image: noise of the image's own seed, a sampler guided by the prompt, the VAE."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

import loraloom
from loraloom.diffusion import objectives
from loraloom.diffusion.samplers import SAMPLERS, SamplerPlan, resolve_sampler
from loraloom.diffusion.schedules import sampling_sigmas
from loraloom.errors import CheckpointError, HardwareError, LoraloomError
from loraloom.events import Listener, Notice, SamplerStepped, ignore
from loraloom.formats.image_info import format_parameters
from loraloom.generation.loras import AppliedLora, attached, load_lora
from loraloom.generation.prompts import extract_loras, parse_attention
from loraloom.generation.settings import GenerateSettings
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel
from loraloom.randomness import normal

__all__ = ["GeneratedImage", "image_size", "initial_noise", "paint", "text_to_image"]

LATENT_CHANNELS = 4
LATENT_STEP = 8
"""Pixels per latent, each way."""


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
    """Images one after another, batch by batch; image i has seed + i and does not depend on its batch.

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
    first = settings.seed if settings.seed >= 0 else random.SystemRandom().randrange(2**32)
    seeds = [first + index for index in range(settings.count)]
    width, height = image_size(model, settings)
    extra_tags = "".join(f"<lora:{lora.name}:{lora.text_encoder:g}:{lora.unet:g}>" for lora in loras)
    try:
        with torch.no_grad(), attached(model, used):
            prompts = _encode(model, settings, width, height)
            for start in range(0, len(seeds), settings.batch_size):
                batch = seeds[start : start + settings.batch_size]
                report = _progress(listener, settings, start)
                latents = _sample(model, settings, prompts, batch, (width, height), report)
                for seed, latent in zip(batch, latents, strict=True):
                    infotext = _infotext(model, settings, used, seed, (width, height), model_hash, extra_tags)
                    yield GeneratedImage(_decode(model, latent), latent.cpu(), infotext, seed)
    except torch.OutOfMemoryError as error:
        raise HardwareError(
            f"out of memory on {model.device} at {width} x {height} pixels",
            "set low_memory=true, keep_file_precision=true, batch_size=1 or a smaller size",
        ) from error


def image_size(model: LoadedModel, settings: GenerateSettings) -> tuple[int, int]:
    """(width, height) in pixels: as set, else the resolution the family was trained at."""
    usual = model.family.default_resolution_for(model.prediction)
    return settings.width or usual, settings.height or usual


def initial_noise(seed: int, width: int, height: int) -> Tensor:
    """Standard normal (4, height / 8, width / 8), float32 on the CPU: a pure function of the seed and the size.

    The same numbers on every device, and those of the web UI with its random numbers set to the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(LATENT_CHANNELS, height // LATENT_STEP, width // LATENT_STEP, generator=generator)


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
        if settings.cfg_scale == 1:
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
    seeds: Sequence[int],
    size: tuple[int, int],
    report: Callable[[int], None],
) -> Tensor:
    """Finished latents (B, 4, h, w), float32."""
    plan = resolve_sampler(settings.sampler, settings.schedule)
    sigmas = sampling_sigmas(model.schedule, plan.schedule, settings.steps)
    start, end = sigmas[0].item(), sigmas[-1].item()
    noise = torch.stack([initial_noise(seed, *size) for seed in seeds]).to(model.device)

    def fresh_noise(x: Tensor, step: int) -> Tensor:
        return torch.stack([normal(x.shape[1:], seed, "sampler", step) for seed in seeds]).to(x.device)

    with model.using("unet"):
        x = SAMPLERS.load(plan.sampler)(
            _denoiser(model, prompts, settings.cfg_scale, len(seeds), one_pass=not settings.low_memory),
            noise * ((1 + start**2) ** 0.5 if plan.entry.pure_noise else start),
            sigmas,
            noise=fresh_noise,
            callback=lambda step, x, clean: report(step),
            eta=settings.eta,
        )
    latents: Tensor = x / (1 + end**2) ** 0.5  # DDIM ends at the first training timestep, in the other picture
    if not bool(torch.isfinite(latents).all()):
        raise _not_finite(model, "the latents")
    return latents


def _denoiser(
    model: LoadedModel, prompts: _Prompts, scale: float, count: int, *, one_pass: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that samplers call: x (B, 4, h, w) at sigma (B,) to clean latents, with guidance (2207.12598)."""
    positive = Conditioning.stack([prompts.positive] * count)
    negative = None if prompts.negative is None else Conditioning.stack([prompts.negative] * count)
    both: Conditioning | None = None
    if negative is not None and one_pass:
        short, long = sorted((positive.context.shape[1], negative.context.shape[1]))
        if long % short == 0:  # else both would have to grow to share a batch
            both = Conditioning.stack([negative, positive])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        timesteps = model.schedule.sigma_to_timestep(sigma)
        scaled = x / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        if both is not None:
            unwanted, output = model.denoise(scaled.repeat(2, 1, 1, 1), timesteps.repeat(2), both).chunk(2)
            output = unwanted + scale * (output - unwanted)
        else:
            output = model.denoise(scaled, timesteps, positive)
            if negative is not None:
                unwanted = model.denoise(scaled, timesteps, negative)
                output = unwanted + scale * (output - unwanted)
        return objectives.denoised(model.prediction, output, x, sigma)

    return denoise


def _decode(model: LoadedModel, latent: Tensor) -> Image.Image:
    with model.using("vae"):
        pixels = model.decode_latents(latent[None])[0]
    if not bool(torch.isfinite(pixels).all()):
        raise _not_finite(model, "the decoded image")
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())


def _progress(listener: Listener, settings: GenerateSettings, first: int) -> Callable[[int], None]:
    return lambda step: listener(SamplerStepped(step + 1, settings.steps, first + 1, settings.count))


def _infotext(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora],
    seed: int,
    size: tuple[int, int],
    model_hash: str | None,
    extra_tags: str,
) -> str:
    plan = resolve_sampler(settings.sampler, settings.schedule)
    hashes = ", ".join(f"{lora.name}: {lora.hash}" for lora in loras if lora.hash)
    fields = {
        "Steps": settings.steps,
        "Sampler": plan.sampler,
        "Schedule type": _schedule_title(plan),
        "CFG scale": f"{settings.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_hash,
        "Model": model.checkpoint.path.stem,
        "Clip skip": settings.clip_skip if (settings.clip_skip or 1) > 1 else None,
        "RNG": "CPU",
        "Eta": settings.eta,
        "Lora hashes": hashes or None,
        "Version": f"loraloom-{loraloom.__version__}",
    }
    return format_parameters(settings.prompt + extra_tags, settings.negative_prompt, fields)


def _schedule_title(plan: SamplerPlan) -> str:
    """DDIM's own levels have no name in the web UI: there they come with the sampler."""
    return "Automatic" if plan.sampler == "DDIM" and plan.schedule == "DDIM" else plan.schedule


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
