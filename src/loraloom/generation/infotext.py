"""What is written into an image: its settings in the web UI's words."""

from __future__ import annotations

from collections.abc import Sequence

import loraloom
from loraloom.diffusion.samplers import SamplerPlan
from loraloom.formats.files import sha256_of
from loraloom.formats.image_info import format_parameters
from loraloom.generation.loras import AppliedLora
from loraloom.generation.noise import ImageSeed
from loraloom.generation.prompts import ImagePrompt
from loraloom.generation.sampling import plan_of, sampling_fields
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel

__all__ = ["EMPHASIS", "MASKED_CONTENT", "infotext_of"]

EMPHASIS = {"original": "Original", "no_norm": "No norm", "comfy": "Comfy", "ignore": "Ignore", "none": "None"}
"""The setting emphasis in the web UI's words (it has none for ComfyUI's way)."""
MASKED_CONTENT = {"original": "original", "fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}
"""The setting mask_content in the web UI's words."""


def infotext_of(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora],
    beside: Sequence[AppliedLora],
    prompt: ImagePrompt,
    seed: ImageSeed,
    size: tuple[int, int],
    *,
    model_hash: str | None,
    embedding_hashes: str | None,
) -> str:
    """The infotext of one image. ``beside``: those of the LoRAs that its prompt does not name; they get tags."""
    plan = plan_of(settings)
    hashes = ", ".join(f"{lora.name}: {lora.hash}" for lora in loras if lora.hash)
    tags = "".join(f"<lora:{lora.name}:{lora.strength.text_encoder:g}:{lora.strength.unet:g}>" for lora in beside)
    fields = {
        "Steps": settings.steps,
        "Sampler": plan.sampler,
        "Schedule type": _schedule_title(plan),
        "CFG scale": f"{settings.cfg_scale:g}",
        "Seed": seed.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_hash,
        "Model": model.checkpoint.path.stem,
        **_vae_fields(settings),
        **_strength_fields(settings),
        "Clip skip": settings.clip_skip if (settings.clip_skip or 1) > 1 else None,
        "RNG": "CPU",
        **sampling_fields(settings, seed),
        **_mask_fields(settings),
        **_hires_fields(settings),
        "Lora hashes": hashes or None,
        "TI hashes": embedding_hashes,
        "Emphasis": None if settings.emphasis == "original" else EMPHASIS[settings.emphasis],
        "Old prompt editing timelines": "True" if settings.prompt_compatibility == "a1111-1.5" else None,
        "Version": f"loraloom-{loraloom.__version__}",
    }
    return format_parameters(prompt.prompt + tags, prompt.negative_prompt, fields)


def _vae_fields(settings: GenerateSettings) -> dict[str, object]:
    if settings.vae is None:
        return {}
    return {"VAE hash": sha256_of(settings.vae)[:10] if settings.vae.is_file() else None, "VAE": settings.vae.name}


def _strength_fields(settings: GenerateSettings) -> dict[str, object]:
    used = settings.init_image is not None or settings.has_hires
    return {"Denoising strength": f"{settings.denoising_strength:g}" if used else None}


def _mask_fields(settings: GenerateSettings) -> dict[str, object]:
    if settings.mask is None:
        return {}
    only = settings.inpaint_area == "mask"
    return {
        "Mask blur": f"{settings.mask_blur:g}",
        "Mask mode": "Inpaint not masked" if settings.mask_invert else None,
        "Masked content": MASKED_CONTENT[settings.mask_content],
        "Inpaint area": "Only masked" if only else None,
        "Masked area padding": settings.inpaint_padding if only else None,
    }


def _hires_fields(settings: GenerateSettings) -> dict[str, object]:
    if not settings.has_hires:
        return {}
    scaled = settings.hires_scale is not None
    schedule = settings.hires_schedule
    return {
        "Hires upscale": f"{settings.hires_scale:g}" if scaled else None,
        "Hires resize": None if scaled else f"{settings.hires_width or 0}x{settings.hires_height or 0}",
        "Hires steps": settings.hires_steps or None,
        "Hires upscaler": settings.hires_upscaler,
        "Hires sampler": settings.hires_sampler,
        "Hires schedule type": schedule,
        "Hires CFG Scale": None if settings.hires_cfg_scale is None else f"{settings.hires_cfg_scale:g}",
        "Hires prompt": settings.hires_prompt,
        "Hires negative prompt": settings.hires_negative_prompt,
    }


def _schedule_title(plan: SamplerPlan) -> str:
    """Levels that come with a sampler (DDIM's, UniPC's, LCM's) have no name of their own in the web UI."""
    entry = plan.entry
    own = entry.ends_at_first or entry.own_levels or plan.levels.is_of_sampler
    return "Automatic" if own and plan.is_usual else plan.schedule
