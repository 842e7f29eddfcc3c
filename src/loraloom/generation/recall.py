"""An infotext of any program read back into settings, with remarks about what could not be taken over."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.diffusion.samplers import resolve_sampler, resolve_sigma_schedule
from loraloom.errors import SettingsError, UnknownNameError
from loraloom.formats.image_info import Parameters, size_of
from loraloom.generation.infotext import EMPHASIS, MASKED_CONTENT
from loraloom.generation.prompts.tags import without_broken_loras
from loraloom.generation.sampling import SAMPLING_FIELDS
from loraloom.generation.settings import HIRES_UPSCALERS, GenerateSettings

__all__ = ["Recalled", "recall"]

_ADDNET = re.compile(r"AddNet (Enabled|Module|Model|Weight [AB])(?: (\d+))?")
_HASH_IN_BRACKETS = re.compile(r"\(([0-9a-fA-F]{8,12})\)$")
_MODULE = re.compile(r"(?:Hires )?Module \d+")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_LONGEST = 100
_FIRST_PASS_AREA = 512 * 512
_PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
_USUAL_OPERATIONS = ("", "none", "txt2img")
_READ_TOGETHER = (
    *("Size", "First pass size", "Hires resize", "Inpaint area", "Mask mode", "RNG", "VAE", "Operations"),
)
"""Fields that are read with others, or with a rule of their own."""
_OF_NO_EFFECT = frozenset(
    {
        "Version", "User", "Model hash", "Model", "VAE hash", "Lora hashes",
        "TI hashes", "Hashes", "Init image hash", "Init image size", "FP8 weight", "Cache FP16 weight for LoRA",
        "Template", "Negative Template", "Batch size", "Batch", "Index", "Batch pos", "AddNet Enabled",
        "Hires resize-1", "Hires resize-2", "Size-1", "Size-2", "First pass size-1", "First pass size-2",
        "Backend", "Pipeline", "App",
        "Time taken", "Hires options", "Hires size", "Second pass", "Comment", "Old prompt editing timelines",
        "Raw prompt", "Raw negative prompt", "Performance", "Civitai resources", "Civitai metadata", "Created Date",
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
    "Parser": {"A1111 parser", "Full parser", "native"},
    "Hires force": {"False"},
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
    """The settings that an infotext describes. Never fails: what is not understood becomes a remark."""
    fields = _known_spellings(parameters.fields)
    known = dict(fields)
    found: dict[str, Any] = {"prompt": parameters.prompt, "negative_prompt": parameters.negative_prompt}
    remarks: list[str] = list(parameters.remarks)
    if parameters.program and "#" in parameters.prompt + parameters.negative_prompt:
        remarks.append("what follows a # in its prompts is a comment here")
    if parameters.rest:
        remarks.append(f"the text after the settings is not understood: {_short(parameters.rest)!r}")
    _plain_settings(found, fields, remarks)
    found["prompt"] += _addnet_tags(fields, remarks)
    _sampler(found, remarks)
    _size(found, fields, remarks)
    _hires(found, fields, remarks)
    _inpainting(found, fields, remarks)
    _noise(known, fields, remarks)
    _other_models(fields, remarks)
    _operations(fields, remarks)
    found |= _rules(known) if not parameters.program else {"dynamic_prompts": False}
    remarks += [
        f"{name}: {_short(value)} is not known here" for name, value in fields.items() if not _is_harmless(name, value)
    ]
    return Recalled(
        _sound(found, remarks),
        tuple(remarks),
        model_hash=known.get("Model hash"),
        model=known.get("Model"),
        lora_hashes=_lora_hashes(known),
        vae_hash=known.get("VAE hash"),
        embedding_hashes=_pairs(known.get("TI hashes", "")),
    )


def _known_spellings(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields under the names that are known here, whatever their capitals are."""
    names = [*_FIELDS, *_OF_NO_EFFECT, *_NEUTRAL, *_READ_TOGETHER]
    spelt = {name.casefold(): name for name in names}
    return {spelt.get(name.strip().casefold(), name): value for name, value in fields.items()}


def _plain_settings(found: dict[str, Any], fields: dict[str, str], remarks: list[str]) -> None:
    """Fields that are one setting each."""
    for name, (setting, read) in _FIELDS.items():
        if name not in fields:
            continue
        text = fields.pop(name)
        try:
            value = read(text)
        except (ValueError, OverflowError, UnknownNameError):
            remarks.append(f"{name}: {_short(text)} is not understood")
            continue
        if setting in ("seed", "variation_seed") and value < 0:
            remarks.append(f"{name}: {text} is not a seed of a finished picture; a random one is drawn")
        elif setting == "clip_skip" and value < 0:
            remarks.append(f"{name}: {text} counts layers as ComfyUI does, here {-value}")
            found[setting] = -value
        elif value is not None:
            found[setting] = value


def _sound(found: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """The settings that are valid, each with those before it: what is not becomes a remark."""
    sound: dict[str, Any] = {}
    for name, value in found.items():
        text, problems = without_broken_loras(value) if name in _PROMPTS and value else (value, [])
        remarks += problems
        try:
            GenerateSettings.parse({**sound, name: text})
        except SettingsError as error:
            said = error.problems[0].removeprefix("settings: ")
            remarks.append(f"{name} = {_short(str(value))} is not taken over: {said}")
        else:
            sound[name] = text
    return sound


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _number(text: str) -> float:
    """A number with a point or a comma; ValueError for nan, infinity and words."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(text)
    return float(text.strip().replace(",", "."))


def _whole(text: str) -> int:
    """A whole number, also where it is written with a point; exact however many digits it has."""
    if _WHOLE.fullmatch(text.strip()):
        return int(text)
    value = _number(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


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
    names = {title: name for name, title in MASKED_CONTENT.items()}
    if text.strip().casefold() not in names:
        raise ValueError(text)
    return names[text.strip().casefold()]


def _upscaler(text: str) -> str:
    for name in HIRES_UPSCALERS:
        if name.casefold() == text.strip().casefold():
            return name
    raise ValueError(text)


def _resize_from(text: str) -> str | None:
    """``Seed resize from``: the web UI writes -1x-1 where there is none."""
    if re.fullmatch(r"\s*-?\d+\s*x\s*-?\d+\s*", text) and size_of(text) is None:
        return None
    size = size_of(text)
    if size is None:
        raise ValueError(text)
    return f"{size[0]}x{size[1]}" if min(size) > 0 else None


_READ_SAMPLING: Mapping[str, Callable[[str], Any]] = {
    "discard_penultimate_sigma": _flag,
    "sgm_noise_multiplier": _flag,
    "s_min_uncond_all": _flag,
    "unipc_order": _whole,
    "unipc_variant": str,
    "eta_noise_seed_delta": _whole,
    "seed_resize_from": _resize_from,
}
_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", _whole),
    "Sampler": ("sampler", str),
    "Schedule type": ("schedule", _schedule),
    "CFG scale": ("cfg_scale", _number),
    "Seed": ("seed", _whole),
    "Clip skip": ("clip_skip", _whole),
    "Denoising strength": ("denoising_strength", _number),
    "Variation seed": ("variation_seed", _whole),
    "Emphasis": ("emphasis", _emphasis),
    "Mask blur": ("mask_blur", _number),
    "Masked content": ("mask_content", _content),
    "Masked area padding": ("inpaint_padding", _whole),
    "Hires scale": ("hires_scale", _number),
    "Hires upscale": ("hires_scale", _number),
    "Hires steps": ("hires_steps", _whole),
    "Hires upscaler": ("hires_upscaler", _upscaler),
    "Hires sampler": ("hires_sampler", lambda text: None if text == "Use same sampler" else text),
    "Hires schedule type": ("hires_schedule", lambda text: None if text == "Use same scheduler" else _schedule(text)),
    "Hires CFG Scale": ("hires_cfg_scale", _number),
    "Hires prompt": ("hires_prompt", lambda text: text or None),
    "Hires negative prompt": ("hires_negative_prompt", lambda text: text or None),
    "Variation strength": ("variation_strength", _number),
    "Sampler eta delta": ("eta_noise_seed_delta", _whole),
    **{name: (setting, _READ_SAMPLING.get(setting, _number)) for name, setting in SAMPLING_FIELDS.items()},
}
"""Fields that are settings, and how their values are read."""


def _sampler(found: dict[str, Any], remarks: list[str]) -> None:
    for name in ("sampler", "hires_sampler"):
        try:
            resolve_sampler(found.get(name) or "Euler")
        except UnknownNameError:
            remarks.append(f"the sampler {found.pop(name)!r} is not known here; the usual one is taken")


def _size(found: dict[str, Any], fields: dict[str, str], remarks: list[str]) -> None:
    text = fields.pop("Size", "")
    size = size_of(text)
    if size is not None and min(size) > 0:
        found["width"], found["height"] = _in_steps(size)
        if (found["width"], found["height"]) != size:
            remarks.append(f"Size {text} is not in steps of 8 pixels")
    elif text:
        remarks.append(f"Size: {_short(text)} is not understood")


def _in_steps(size: tuple[int, int]) -> tuple[int, int]:
    width, height = (side // 8 * 8 or 8 for side in size)
    return width, height


def _hires(found: dict[str, Any], fields: dict[str, str], remarks: list[str]) -> None:
    _first_pass(found, fields, remarks)

    text = fields.get("Hires resize", "")
    size = size_of(text)
    if size is not None:
        del fields["Hires resize"]
    if size is not None and any(size):
        found.pop("hires_scale", None)
        # The web UI writes 0 for a side that follows from the other.
        for name, side in zip(("hires_width", "hires_height"), size, strict=True):
            if side:
                found[name] = side // 8 * 8 or 8

    # A factor of 1 or less enlarges nothing.
    if found.get("hires_scale", 2) <= 1:
        del found["hires_scale"]

    asked = any(name in found for name in ("hires_scale", "hires_width", "hires_height"))
    if not asked and any(name in found for name in ("hires_upscaler", "hires_steps")):
        remarks.append("a high-resolution pass is mentioned, but not its size")
    if not asked and "denoising_strength" in found:
        remarks.append("the image was made from another: give init_image")


def _first_pass(found: dict[str, Any], fields: dict[str, str], remarks: list[str]) -> None:
    """The form of 2022: ``Size`` is that of the finished picture, ``First pass size`` that of the pass before it.

    0x0 stands for a size of the same shape that has about 512 x 512 pixels, in steps of 64, as in the web UI.
    """
    text = fields.pop("First pass size", "")
    first = size_of(text)
    if not text:
        return
    if first is None or "width" not in found:
        remarks.append(f"First pass size: {_short(text)} is not understood")
        return
    width, height = found["width"], found["height"]
    if 0 in first:
        scale = math.sqrt(_FIRST_PASS_AREA / (width * height))
        first = math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64
    found.pop("hires_scale", None)
    found |= {"hires_width": width, "hires_height": height}
    found["width"], found["height"] = _in_steps(first)


def _inpainting(found: dict[str, Any], fields: dict[str, str], remarks: list[str]) -> None:
    area, mode = fields.pop("Inpaint area", None), fields.pop("Mask mode", None)
    if area == "Only masked" or (area is None and "inpaint_padding" in found):
        found["inpaint_area"] = "mask"
    elif area not in (None, "Whole picture"):
        remarks.append(f"Inpaint area: {_short(area)} is not understood")
    if mode == "Inpaint not masked":
        found["mask_invert"] = True
    elif mode not in (None, "Inpaint masked"):
        remarks.append(f"Mask mode: {_short(mode)} is not understood")


def _noise(known: Mapping[str, str], fields: dict[str, str], remarks: list[str]) -> None:
    """Noise that a GPU drew cannot be drawn again on a CPU."""
    source = fields.pop("RNG", "").strip().upper()
    foreign = not known.get("Version", "").startswith("loraloom")
    if foreign and source != "CPU":
        by = "an NVIDIA GPU's generator" if source == "NV" else "the GPU"
        remarks.append(f"its noise was drawn by {by}, here the CPU draws it: the image will be similar, not the same")


def _other_models(fields: dict[str, str], remarks: list[str]) -> None:
    """Files beside the checkpoint: the autoencoder, and what Forge calls modules (autoencoder and text encoders)."""
    if (vae := fields.pop("VAE", "None")) not in ("None", "Automatic"):
        remarks.append(f"its autoencoder was {_short(vae)}: give vae, unless the checkpoint has the same in it")
    for name in [name for name in fields if _MODULE.fullmatch(name)]:
        value = fields.pop(name)
        if value not in ("", "None", "Built in"):
            remarks.append(
                f"{name}: {_short(value)} was loaded beside the checkpoint: give vae, if it is an autoencoder"
            )


def _operations(fields: dict[str, str], remarks: list[str]) -> None:
    """What SD.Next did to the picture, in turn: painting alone is nothing to say."""
    done = [part.strip() for part in fields.pop("Operations", "").split(";")]
    others = [part for part in done if part.casefold() not in _USUAL_OPERATIONS]
    if others:
        remarks.append(
            f"Operations: {_short(', '.join(others))} besides painting from text: done here only if they are set"
        )


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
            remarks.append(f"AddNet Model {slot}: {model} is not a LoRA")
            continue
        tags += f"<lora:{name}:{weights[0]}:{weights[1]}>"
    return tags


def _is_harmless(name: str, value: str) -> bool:
    return name in _OF_NO_EFFECT or value in _NEUTRAL.get(name, ())


def _lora_hashes(known: Mapping[str, str]) -> dict[str, str]:
    """By name: those of the prompt's tags, and those of the Additional Networks extension, in brackets there."""
    hashes = _pairs(known.get("Lora hashes", ""))
    for name, value in known.items():
        match = _HASH_IN_BRACKETS.search(value) if name.startswith("AddNet Model") else None
        if match is not None:
            hashes.setdefault(value[: match.start()], match[1])
    return hashes


def _pairs(text: str) -> dict[str, str]:
    """``a: 0123456789ab, b: ba98...`` taken apart."""
    pairs = (part.rsplit(":", 1) for part in text.split(",") if ":" in part)
    return {name.strip(): digits.strip() for name, digits in pairs}
