"""InvokeAI: ``invokeai_metadata`` (since version 3), ``sd-metadata`` (version 2), ``Dream`` (the command line of 1)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs.facts import fields_of, json_object, lora_tag, model_name, plain, without_tags

__all__ = ["read_dream", "read_invoke_ai", "read_sd_metadata"]

_NAMES = {
    "steps": "Steps",
    "scheduler": "Sampler",
    "sampler": "Sampler",
    "sampler_name": "Sampler",
    "cfg_scale": "CFG scale",
    "cfg_rescale_multiplier": "CFG rescale",
    "seed": "Seed",
    "strength": "Denoising strength",
}
_READ_APART = frozenset(
    {
        *("prompt", "positive_prompt", "negative_prompt", "width", "height", "model", "vae", "loras", "clip_skip"),
        *("rand_device", "init_image"),
    }
)
_OF_NO_EFFECT = frozenset(
    {
        *("app_version", "generation_mode", "type", "rfc266_version", "canvas_v2_metadata", "ref_images", "regions"),
        *("positive_style_prompt", "negative_style_prompt", "seamless", "hires_fix", "threshold", "perlin", "grid"),
        *("cfg_rescale_multiplier_default", "orig_hash", "image_name", "_canvas_objects"),
    }
)
_SYNTAX = re.compile(r"[\w)\"']\s?(?:\++|--+)(?:\s|,|$)|\)\s?[\d.]+(?![\w.])|\.(?:swap|blend|and)\(")
_DREAM = {"s": "Steps", "S": "Seed", "C": "CFG scale", "A": "Sampler", "f": "Denoising strength"}


def read_invoke_ai(text: str) -> Parameters:
    """``invokeai_metadata``; FileFormatError for damaged JSON."""
    data = json_object(text, program="InvokeAI")
    fields = _fields(data)
    if plain(data.get("rand_device", "")) == "cpu":
        fields["RNG"] = "CPU"
    if data.get("clip_skip"):
        # It counts the layers that are left out; the web UI the layer that is taken, from the end.
        fields["Clip skip"] = plain(data["clip_skip"] + 1 if isinstance(data["clip_skip"], int) else data["clip_skip"])
    loras = data.get("loras")
    tags = "".join(map(_tag, loras if isinstance(loras, list) else []))
    prompt, negative = plain(data.get("positive_prompt") or ""), plain(data.get("negative_prompt") or "")
    return _parameters(prompt, negative, fields, tags)


def read_sd_metadata(text: str) -> Parameters:
    """``sd-metadata``: the prompt holds the negative one in square brackets; FileFormatError for damaged JSON."""
    whole = json_object(text, program="InvokeAI")
    image = whole.get("image")
    data: Mapping[str, Any] = image if isinstance(image, dict) else {}

    # A prompt is a text or a list of weighted ones; a second one has no place in our settings.
    prompts = data.get("prompt")
    parts = prompts if isinstance(prompts, list) else [prompts]
    said, *others = [plain((part.get("prompt") if isinstance(part, dict) else part) or "") for part in parts] or [""]

    fields = _fields({key: value for key, value in data.items() if key not in ("variations", "postprocessing")})
    if whole.get("model_weights"):
        fields["Model"] = model_name(whole["model_weights"])
    found = _parameters(*_parted(said), fields, "")

    blended = tuple(
        f"it was blended with a second prompt, which is not taken over: {text!r}" for text in others if text
    )
    return replace(found, remarks=(*found.remarks, *blended))


def read_dream(text: str) -> Parameters:
    """``"a cat [dog]" -s 50 -S 1 -W 512 -H 704 -C 7.5 -A k_lms``."""
    match = re.match(r'\s*"((?:\\.|[^"\\])*)"(.*)', text, re.DOTALL)
    said, options = (match[1], match[2]) if match else (text, "")
    try:
        words = shlex.split(options)
    except ValueError:
        words = options.split()
    values = _options(words)
    fields = {title: values[flag] for flag, title in _DREAM.items() if flag in values}
    if "W" in values and "H" in values:
        fields["Size"] = f"{values['W']}x{values['H']}"
    return _parameters(*_parted(said), fields, "")


def _options(words: list[str]) -> dict[str, str]:
    """``-s 50`` and ``-s50``."""
    values: dict[str, str] = {}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if re.fullmatch(r"-[A-Za-z]", word):
            values[word[1]] = following
        elif re.fullmatch(r"-[A-Za-z]\S+", word):
            values[word[1]] = word[2:]
    return values


def _fields(data: Mapping[str, Any]) -> dict[str, str]:
    fields = fields_of(data, _NAMES, without=_READ_APART | _OF_NO_EFFECT)
    if "width" in data and "height" in data:
        fields["Size"] = f"{plain(data['width'])}x{plain(data['height'])}"
    for key, title in (("model", "Model"), ("vae", "VAE")):
        if name := _named(data.get(key)):
            fields[title] = name
    if fields.get("Sampler", "").endswith("_k"):
        fields |= {"Sampler": fields["Sampler"].removesuffix("_k"), "Schedule type": "Karras"}
    return fields


def _named(value: object) -> str:
    """A model is a table with its name, which two generations spell differently, or the name alone."""
    if isinstance(value, dict):
        value = value.get("name", value.get("model_name"))
    return model_name(value) if value else ""


def _tag(value: object) -> str:
    entry = value if isinstance(value, dict) else {}
    return lora_tag(_named(entry.get("model", entry.get("lora"))) or "None", [entry.get("weight", 1)])


def _parted(said: str) -> tuple[str, str]:
    """Prompt and negative prompt: what stands in square brackets is not wanted."""
    negative = ", ".join(re.findall(r"\[([^\[\]]*)\]", said))
    return re.sub(r"\[[^\[\]]*\]", "", said).strip(), negative


def _parameters(prompt: str, negative: str, fields: Mapping[str, str], tags: str) -> Parameters:
    remarks: list[str] = []
    prompt, negative = without_tags(prompt, remarks), without_tags(negative, remarks)
    if any(_SYNTAX.search(text) for text in (prompt, negative)):
        remarks.append("its weights are in InvokeAI's own language (word++, (words)1.3), which is text here")
    return Parameters(prompt + tags, negative, fields, remarks=tuple(remarks))
