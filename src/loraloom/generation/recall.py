"""An infotext of any program read back into settings, with what could not be taken over said."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.diffusion.samplers import resolve_sampler, resolve_sigma_schedule
from loraloom.errors import UnknownNameError
from loraloom.formats.image_info import Parameters
from loraloom.generation.infotext import EMPHASIS, MASKED_CONTENT
from loraloom.generation.sampling import SAMPLING_FIELDS
from loraloom.generation.settings import HIRES_UPSCALERS

__all__ = ["Recalled", "recall"]

_ADDNET = re.compile(r"AddNet (Enabled|Module|Model|Weight [AB])(?: (\d+))?")
_HASH_IN_BRACKETS = re.compile(r"\(([0-9a-fA-F]{8,12})\)$")
_OF_NO_EFFECT = frozenset(
    {
        "Version", "User", "Model hash", "Model", "VAE hash", "Lora hashes",
        "TI hashes", "Hashes", "Init image hash", "FP8 weight", "Cache FP16 weight for LoRA", "Template",
        "Negative Template", "Batch size",
        "Batch pos", "Module 1", "AddNet Enabled", "Hires resize-1", "Hires resize-2", "Size-1", "Size-2",
        "Parser", "Backend", "Operations", "App", "Time taken", "Hires options", 
        "Old prompt editing timelines", "Mask mode", "Inpaint area",
    }
)  # fmt: skip
"""Fields that say how the image came about and set nothing here, or that are read together with another field."""
_NEUTRAL = {
    "Face restoration": {"None"},
    "Tiling": {"False"},
    "Image CFG scale": {"1.5"},
    "Conditional mask weight": {"1.0", "1"},
    "Token merging ratio": {"0"},
    "Token merging ratio hr": {"0"},
    "Noise multiplier": {"1.0", "1"},
    "Refiner switch at": {"0"},
    "Hires resize": {"0", "0x0"},
    "VAE Encoder": {"Full"},
    "VAE Decoder": {"Full"},
    "Downcast alphas_cumprod": {"False"},
    "Pad conds": {"False", "True"},
}
"""Values of fields that mean what is done here anyway."""


@dataclass(frozen=True)
class Recalled:
    """``settings`` by name, ready for GenerateSettings.parse; ``remarks``: what is not as it was."""

    settings: Mapping[str, Any]
    remarks: tuple[str, ...] = ()
    model_hash: str | None = None
    model: str | None = None
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    """Name of each LoRA in the prompt and the first digits of its hash."""
    vae_hash: str | None = None
    embedding_hashes: Mapping[str, str] = field(default_factory=dict)
    """Name of each embedding in the prompts and the first digits of its hash."""


def recall(parameters: Parameters) -> Recalled:
    """The settings that an infotext tells of. Never fails: what is not understood becomes a remark."""
    fields = dict(parameters.fields)
    found: dict[str, Any] = {"prompt": parameters.prompt, "negative_prompt": parameters.negative_prompt}
    remarks: list[str] = []
    for name, (setting, read) in _FIELDS.items():
        if name not in fields:
            continue
        text = fields.pop(name)
        try:
            value = read(text)
        except (ValueError, UnknownNameError):
            remarks.append(f"{name}: {text} is not understood")
            continue
        if value is not None:
            found[setting] = value
    found["prompt"] += _addnet_tags(fields, remarks)
    _sampler(found, remarks)
    if parameters.size is not None:
        found["width"], found["height"] = (side // 8 * 8 or 8 for side in parameters.size)
        if (found["width"], found["height"]) != parameters.size:
            remarks.append(f"Size {fields['Size']} is not in steps of 8 pixels")
    fields.pop("Size", None)
    _hires(found, fields, remarks)
    _inpainting(found, fields)
    _noise(fields, remarks)
    if (vae := fields.pop("VAE", "None")) not in ("None", "Automatic"):
        remarks.append(f"its autoencoder was {vae}: give vae, unless the checkpoint has the same in it")
    found |= _rules(fields)
    remarks += [f"{name}: {value} is not known here" for name, value in fields.items() if not _is_harmless(name, value)]
    return Recalled(
        found,
        tuple(remarks),
        model_hash=parameters.fields.get("Model hash"),
        model=parameters.fields.get("Model"),
        lora_hashes=_pairs(parameters.fields.get("Lora hashes", "")),
        vae_hash=parameters.fields.get("VAE hash"),
        embedding_hashes=_pairs(parameters.fields.get("TI hashes", "")),
    )


def _whole(text: str) -> int:
    return int(float(text))


def _flag(text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ValueError(text)
    return text.strip().lower() == "true"


def _schedule(text: str) -> str:
    return "automatic" if text.strip().casefold() == "automatic" else resolve_sigma_schedule(text)


def _emphasis(text: str) -> str:
    names = {title.casefold(): name for name, title in EMPHASIS.items()}
    if text.strip().casefold() not in names:
        raise ValueError(text)
    return names[text.strip().casefold()]


def _content(text: str) -> str:
    return next(name for name, title in MASKED_CONTENT.items() if title == text.strip())


def _upscaler(text: str) -> str:
    for name in HIRES_UPSCALERS:
        if name.casefold() == text.strip().casefold():
            return name
    raise ValueError(text)


def _size(text: str) -> str | None:
    match = re.fullmatch(r"\s*(-?\d+)x(-?\d+)\s*", text)
    if match is None:
        raise ValueError(text)
    return f"{match[1]}x{match[2]}" if int(match[1]) > 0 and int(match[2]) > 0 else None


_READ_SAMPLING: Mapping[str, Callable[[str], Any]] = {
    "discard_penultimate_sigma": _flag,
    "sgm_noise_multiplier": _flag,
    "s_min_uncond_all": _flag,
    "unipc_order": _whole,
    "unipc_variant": str,
    "eta_noise_seed_delta": _whole,
    "seed_resize_from": _size,
}
_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", _whole),
    "Sampler": ("sampler", str),
    "Schedule type": ("schedule", _schedule),
    "CFG scale": ("cfg_scale", float),
    "Seed": ("seed", _whole),
    "Clip skip": ("clip_skip", _whole),
    "Denoising strength": ("denoising_strength", float),
    "Variation seed": ("variation_seed", _whole),
    "Emphasis": ("emphasis", _emphasis),
    "Mask blur": ("mask_blur", float),
    "Masked content": ("mask_content", _content),
    "Masked area padding": ("inpaint_padding", _whole),
    "Hires upscale": ("hires_scale", float),
    "Hires steps": ("hires_steps", _whole),
    "Hires upscaler": ("hires_upscaler", _upscaler),
    "Hires sampler": ("hires_sampler", lambda text: None if text == "Use same sampler" else text),
    "Hires schedule type": ("hires_schedule", lambda text: None if text == "Use same scheduler" else _schedule(text)),
    "Hires CFG Scale": ("hires_cfg_scale", float),
    "Hires prompt": ("hires_prompt", lambda text: text or None),
    "Hires negative prompt": ("hires_negative_prompt", lambda text: text or None),
    **{name: (setting, _READ_SAMPLING.get(setting, float)) for name, setting in SAMPLING_FIELDS.items()},
}
"""Fields that are settings, and how their values are read."""


def _sampler(found: dict[str, Any], remarks: list[str]) -> None:
    for name in ("sampler", "hires_sampler"):
        try:
            resolve_sampler(found.get(name) or "Euler")
        except UnknownNameError:
            remarks.append(f"the sampler {found.pop(name)!r} is not known here; the usual one is taken")


def _hires(found: dict[str, Any], fields: dict[str, str], remarks: list[str]) -> None:
    match = re.fullmatch(r"(\d+)x(\d+)", fields.pop("Hires resize", ""))
    if match and (int(match[1]) or int(match[2])):
        found.pop("hires_scale", None)
        for name, text in zip(("hires_width", "hires_height"), match.groups(), strict=True):
            if int(text):
                found[name] = int(text) // 8 * 8 or 8
    if found.get("hires_scale", 2) <= 1:
        del found["hires_scale"]
    asked = any(name in found for name in ("hires_scale", "hires_width", "hires_height"))
    if not asked and any(name in found for name in ("hires_upscaler", "hires_steps")):
        remarks.append("a high-resolution pass is told of, but not its size")
    if not asked and "denoising_strength" in found:
        remarks.append("the image was made from another: give init_image")


def _inpainting(found: dict[str, Any], fields: Mapping[str, str]) -> None:
    if fields.get("Inpaint area") == "Only masked" or "inpaint_padding" in found:
        found["inpaint_area"] = "mask"
    if fields.get("Mask mode") == "Inpaint not masked":
        found["mask_invert"] = True


def _noise(fields: dict[str, str], remarks: list[str]) -> None:
    """Noise that a GPU drew cannot be drawn again on a CPU."""
    source = fields.pop("RNG", None)
    foreign = not fields.get("Version", "").startswith("loraloom")
    if foreign and source != "CPU":
        by = "an NVIDIA GPU's generator" if source == "NV" else "the GPU"
        remarks.append(f"its noise was drawn by {by}, here the CPU draws it: another image of the same kind")


def _rules(fields: Mapping[str, str]) -> dict[str, Any]:
    """By which rules the prompt is to be read: our own images by ours, others as the web UI of their time did."""
    version = fields.get("Version", "")
    if version.startswith("loraloom"):
        return {"prompt_compatibility": "a1111-1.5"} if fields.get("Old prompt editing timelines") == "True" else {}
    match = re.match(r"v?(\d+)\.(\d+)", version)
    old = match is not None and (int(match[1]), int(match[2])) < (1, 6)
    old = old or fields.get("Old prompt editing timelines") == "True"
    return {"prompt_compatibility": "a1111-1.5" if old else "a1111"}


def _addnet_tags(fields: dict[str, str], remarks: list[str]) -> str:
    """Tags for what sd-webui-additional-networks notes: ``AddNet Model 1: name(hash)``, weight A (U-Net), B (text)."""
    slots: dict[str, dict[str, str]] = {}
    for name in [name for name in fields if name.startswith("AddNet ")]:
        match = _ADDNET.fullmatch(name)
        value = fields.pop(name)
        if match and match[2]:
            slots.setdefault(match[2], {})[match[1]] = value
    tags = ""
    for slot in sorted(slots, key=int):
        model = slots[slot].get("Model", "None")
        name = _HASH_IN_BRACKETS.sub("", model)
        weights = [slots[slot].get(f"Weight {letter}", "1") for letter in "BA"]
        if name == "None":
            continue
        if slots[slot].get("Module", "LoRA") != "LoRA":
            remarks.append(f"AddNet Model {slot}: {model} is no LoRA")
            continue
        tags += f"<lora:{name}:{weights[0]}:{weights[1]}>"
    return tags


def _is_harmless(name: str, value: str) -> bool:
    return name in _OF_NO_EFFECT or value in _NEUTRAL.get(name, ())


def _pairs(text: str) -> dict[str, str]:
    """``a: 0123456789ab, b: ba98...`` taken apart."""
    pairs = (part.rsplit(":", 1) for part in text.split(",") if ":" in part)
    return {name.strip(): digits.strip() for name, digits in pairs}
