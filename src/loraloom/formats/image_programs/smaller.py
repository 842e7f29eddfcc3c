"""Draw Things and Easy Diffusion: one object of names and values each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs.facts import fields_of, json_object, lora_tag, model_name, plain, without_tags

__all__ = ["is_draw_things", "is_easy_diffusion", "read_draw_things", "read_easy_diffusion"]

_DRAW_THINGS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
}
_DRAW_THINGS_APART = frozenset({"c", "uc", "model", "lora", "v2", "profile", "seed_mode", "batch_count", "batch_size"})
_EASY = {
    "num_inference_steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler_name": "Schedule type",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "prompt_strength": "Denoising strength",
    "use_vae_model": "VAE",
}
_EASY_SPOKEN = {
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Seed": "seed",
    "Stable Diffusion model": "use_stable_diffusion_model",
    "VAE model": "use_vae_model",
    "Sampler": "sampler_name",
    "Scheduler": "scheduler_name",
    "Width": "width",
    "Height": "height",
    "Steps": "num_inference_steps",
    "Guidance Scale": "guidance_scale",
    "Prompt Strength": "prompt_strength",
    "Clip Skip": "clip_skip",
    "LoRA model": "use_lora_model",
    "LoRA Strength": "lora_alpha",
}
"""Easy Diffusion's keys in files that are made to be read by people."""
_EASY_APART = frozenset(
    {
        *("prompt", "negative_prompt", "width", "height", "use_stable_diffusion_model", "use_lora_model"),
        *("lora_alpha", "clip_skip", "output_format", "output_quality", "num_outputs", "show_only_filtered_image"),
    }
)


def is_draw_things(data: Mapping[str, Any]) -> bool:
    """Whether JSON is Draw Things'."""
    return "c" in data and "uc" in data


def read_draw_things(text: str) -> Parameters:
    """Raises FileFormatError for damaged JSON."""
    data = json_object(text, program="Draw Things")
    fields = fields_of(data, _DRAW_THINGS, without=_DRAW_THINGS_APART)
    if data.get("model"):
        fields["Model"] = model_name(data["model"])
    mode = plain(data.get("seed_mode", ""))
    if mode.startswith("Torch CPU"):
        fields["RNG"] = "CPU"
    elif mode.startswith("NVIDIA"):
        fields["RNG"] = "NV"
    loras = data.get("lora")
    entries = [entry for entry in loras if isinstance(entry, dict)] if isinstance(loras, list) else []
    tags = "".join(lora_tag(entry.get("model", ""), [entry.get("weight", 1)]) for entry in entries)
    return _parameters(plain(data["c"]), plain(data.get("uc") or ""), fields, tags)


def is_easy_diffusion(data: Mapping[str, Any]) -> bool:
    """Whether names and values are Easy Diffusion's."""
    return "use_stable_diffusion_model" in data or "Stable Diffusion model" in data


def read_easy_diffusion(values: Mapping[str, Any]) -> Parameters:
    """From JSON, or from a PNG's text chunks, where every value is one."""
    data = {_EASY_SPOKEN.get(key, key): value for key, value in values.items()}
    fields = fields_of({key: value for key, value in data.items() if value != "None"}, _EASY, without=_EASY_APART)

    # Width and height are two fields there, and one (Size) in the web UI's text, which all programs are brought to.
    if "width" in data and "height" in data:
        fields["Size"] = f"{plain(data['width'])}x{plain(data['height'])}"
    fields["Model"] = model_name(data["use_stable_diffusion_model"])
    if "VAE" in fields:
        fields["VAE"] = model_name(fields["VAE"])

    if plain(data.get("clip_skip", False)).lower() == "true":
        fields["Clip skip"] = "2"

    loras, weights = _listed(data.get("use_lora_model")), _listed(data.get("lora_alpha"))
    tags = "".join(lora_tag(name, [weight]) for name, weight in zip(loras, weights, strict=False))
    return _parameters(plain(data.get("prompt") or ""), plain(data.get("negative_prompt") or ""), fields, tags)


def _parameters(prompt: str, negative: str, fields: Mapping[str, str], tags: str) -> Parameters:
    remarks: list[str] = []
    prompt, negative = without_tags(prompt, remarks), without_tags(negative, remarks)
    return Parameters(prompt + tags, negative, fields, remarks=tuple(remarks))


def _listed(value: object) -> list[str]:
    return [plain(item) for item in value] if isinstance(value, list) else [plain(value)] if value else []
