"""Fooocus and its relatives: JSON in its own scheme. (Its other scheme is the web UI's text.)"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs.facts import fields_of, json_object, lora_tag, model_name, plain

__all__ = ["is_fooocus", "read_fooocus"]

_NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "guidance_scale": "CFG scale",
    "cfg": "CFG scale",
    "seed": "Seed",
    "clip_skip": "Clip skip",
    "base_model_hash": "Model hash",
    "vae": "VAE",
}
_READ_APART = frozenset(
    {
        *("prompt", "negative_prompt", "full_prompt", "full_negative_prompt", "resolution", "width", "height"),
        *("base_model", "loras"),
    }
)
_OF_NO_EFFECT = frozenset(
    {"version", "metadata_scheme", "created_by", "performance", "styles", "refiner_switch", "image_number"}
)
_NEUTRAL = {"VAE": "Default (model)", "refiner_model": "None"}
_LORA = re.compile(r"lora_combined_\d+")


def is_fooocus(data: Mapping[str, Any]) -> bool:
    """Whether JSON is of Fooocus' own scheme, or of its first versions."""
    is_named = data.get("metadata_scheme") == "fooocus" or str(data.get("version", "")).startswith("Fooocus")
    return "prompt" in data and (is_named or ("base_model" in data and "sampler" in data))


def read_fooocus(text: str) -> Parameters:
    """Its styles and its expansion are in the full prompts, which are taken. FileFormatError for damaged JSON."""
    data = json_object(text, program="Fooocus")
    loras = {key for key in data if _LORA.fullmatch(key)}
    fields = fields_of(data, _NAMES, without=_READ_APART | _OF_NO_EFFECT | loras)
    fields = {key: value for key, value in fields.items() if _NEUTRAL.get(key) != value}
    if size := _size(data):
        fields["Size"] = size
    if data.get("base_model"):
        fields["Model"] = model_name(data["base_model"])
    tags = "".join(_tag(data[key]) for key in sorted(loras)) + _listed_tags(data.get("loras"))
    return Parameters(
        _joined(data.get("full_prompt"), data.get("prompt")) + tags,
        _joined(data.get("full_negative_prompt"), data.get("negative_prompt")),
        {**fields, "RNG": "CPU"},  # it draws noise as ComfyUI does
    )


def _joined(full: object, typed: object) -> str:
    parts = full if isinstance(full, list) and full else [full or typed or ""]
    return ", ".join(text for part in parts if (text := plain(part).strip()))


def _size(data: Mapping[str, Any]) -> str:
    """``resolution`` is the text of a Python pair: ``(1152, 896)``."""
    sides = re.findall(r"\d+", plain(data.get("resolution", "")))
    if len(sides) != 2:
        sides = [plain(data[key]) for key in ("width", "height") if key in data]
    return "x".join(sides) if len(sides) == 2 else ""


def _tag(value: object) -> str:
    """``name : weight``, or ``True : name : weight``."""
    name, _, weight = plain(value).rpartition(" : ")
    enabled, _, bare = name.rpartition(" : ")
    return "" if enabled == "False" else lora_tag(bare if enabled == "True" else name, [weight])


def _listed_tags(value: object) -> str:
    pairs = value if isinstance(value, list) else []
    return "".join(lora_tag(pair[0], [pair[1]]) for pair in pairs if isinstance(pair, list) and len(pair) >= 2)
