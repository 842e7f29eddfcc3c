"""SwarmUI (StableSwarmUI): JSON with ``sui_image_params``, where the web UI has its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs.facts import fields_of, json_object, lora_tag, model_name, plain

__all__ = ["read_swarm_ui"]

_NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "comfyuisampler": "Sampler",
    "autowebuisampler": "Sampler",
    "scheduler": "Schedule type",
    "comfyuischeduler": "Schedule type",
    "cfgscale": "CFG scale",
    "seed": "Seed",
    "vae": "VAE",
    "variationseed": "Variation seed",
    "variationseedstrength": "Variation seed strength",
    "initimagecreativity": "Denoising strength",
}
_READ_APART = frozenset({"prompt", "negativeprompt", "model", "width", "height", "loras", "loraweights"})
_OF_NO_EFFECT = frozenset(
    {"swarm_version", "aspectratio", "sidelength", "automaticvae", "images", "batchsize", "clipstopatlayer"}
)


def read_swarm_ui(text: str) -> Parameters:
    """Raises FileFormatError for JSON that is damaged."""
    whole = json_object(text, program="SwarmUI")
    data = whole.get("sui_image_params")
    values: Mapping[str, Any] = data if isinstance(data, dict) else {}
    fields = fields_of(values, _NAMES, without=_READ_APART | _OF_NO_EFFECT)
    if "width" in values and "height" in values:
        fields["Size"] = f"{plain(values['width'])}x{plain(values['height'])}"
    if values.get("model"):
        fields["Model"] = model_name(values["model"])
    if "clipstopatlayer" in values:
        fields["Clip skip"] = plain(values["clipstopatlayer"])
    if fields.get("VAE") in ("Automatic", "None"):
        del fields["VAE"]
    prompt = plain(values.get("prompt", ""))
    # It paints with ComfyUI: noise of the CPU, and ComfyUI's weights.
    return Parameters(
        prompt + _lora_tags(values, prompt),
        plain(values.get("negativeprompt", "")),
        {**fields, "Emphasis": "Comfy", "RNG": "CPU"},
    )


def _lora_tags(values: Mapping[str, Any], prompt: str) -> str:
    """Tags of the listed LoRAs; one whose tag stands in the prompt is listed because of it, and counts once."""
    names, weights = _listed(values.get("loras")), _listed(values.get("loraweights"))
    pairs = zip_longest(names, weights[: len(names)], fillvalue="1")
    tags = ((model_name(name), lora_tag(name, [weight])) for name, weight in pairs)
    return "".join(tag for name, tag in tags if not re.search(rf"<lora:[^<>]*{re.escape(name)}\s*[:>]", prompt))


def _listed(value: object) -> list[str]:
    """Lists are JSON lists, or texts with commas."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return [item.strip() for item in plain(value).split(",")] if value else []
