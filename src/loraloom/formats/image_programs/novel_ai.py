"""NovelAI: the prompt in ``Description``, settings as JSON in ``Comment``, weights as braces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs.facts import json_object, plain, without_tags

__all__ = ["read_novel_ai", "translate_emphasis"]

STRONGER = 1.05
"""What a pair of braces multiplies by; a pair of square brackets divides by it."""

MAX_PAIRS = 100
_TOKEN = re.compile(r"[{}\[\]]|::|[^{}\[\]:]+|:")
_NUMBER_AT_END = re.compile(r"-?(?:\d{1,4}(?:\.\d{0,4})?|\.\d{1,4})$")
_NUMBERS = {
    "steps": "Steps",
    "scale": "CFG scale",
    "seed": "Seed",
    "cfg_rescale": "CFG rescale",
    "strength": "Denoising strength",
}
_SAMPLERS = {"ddim_v3": "ddim", "nai_smea": "k_euler_ancestral", "nai_smea_dyn": "k_euler_ancestral"}
_SCHEDULES = {"native": "Uniform"}
_SAID = {
    "sm": ("SMEA was on, which paints in several sizes at once: that is not done here", True),
    "sm_dyn": ("SMEA DYN was on: that is not done here", True),
    "dynamic_thresholding": ("dynamic thresholding (decrisper) was on: that is not done here", True),
    "skip_cfg_above_sigma": ("guidance was left out above a noise level (variety+): that is not done here", None),
    "noise": ("noise was added to the picture it began with: that is not done here", None),
}
"""Settings that have no counterpart; the value that counts, or None for any number but 0."""


def read_novel_ai(texts: Mapping[str, str]) -> Parameters:
    """Raises FileFormatError for a comment that is damaged."""
    data = json_object(texts.get("Comment", ""), program="NovelAI")
    prompt = plain(texts.get("Description") or data.get("prompt") or "")
    negative = plain(data.get("uc") or "")
    tags: list[str] = []
    prompt, negative = without_tags(prompt, tags), without_tags(negative, tags)
    remarks = tags + [text for key, (text, value) in _SAID.items() if _counts(data.get(key), value)]
    remarks += _of_characters(data.get("v4_prompt"))
    if plain(data.get("uncond_scale", 1)) not in ("1", "0"):
        remarks.append(f"the negative prompt had a scale of {plain(data['uncond_scale'])}: that is not done here")
    translated, weighed = translate_emphasis(prompt), translate_emphasis(negative)
    if (translated, weighed) != (_escaped(prompt), _escaped(negative)):
        remarks.append("NovelAI's {} and [] are written as weights, 1.05 for each pair")
    return Parameters(translated, weighed, _fields(data, texts), remarks=tuple(remarks))


def _of_characters(described: object) -> list[str]:
    """A sentence for each prompt of a character, which version 4 keeps apart with its place in the picture."""
    whole = described.get("caption") if isinstance(described, dict) else None
    listed = whole.get("char_captions") if isinstance(whole, dict) else None
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    texts = [plain(entry["char_caption"]) for entry in entries if entry.get("char_caption")]
    return [f"a character has a prompt of its own, which is not taken over: {text!r}" for text in texts]


def translate_emphasis(prompt: str) -> str:
    """Braces (1.05 each), square brackets (1 / 1.05 each) and ``1.5::text::`` as ``(text:weight)``.

    Round brackets and backslashes are text there. A bracket that is never closed weighs to the end.
    """
    return "".join(
        _escaped(text) if abs(weight - 1) < 1e-9 or not text.strip() else f"({_escaped(text)}:{weight:.4g})"
        for text, weight in _weighed(prompt)
    )


def _weighed(prompt: str) -> list[tuple[str, float]]:
    """Stretches of equal weight."""
    opened = {"{": 0, "[": 0}
    pieces: list[tuple[str, float]] = []
    number = 1.0
    for token in _TOKEN.findall(prompt):
        if token in opened:
            opened[token] += 1
        elif token in "}]":
            partner = "{" if token == "}" else "["
            opened[partner] = max(0, opened[partner] - 1)
        elif token == "::":
            before, weight = pieces[-1] if pieces else ("", 1.0)
            found = _NUMBER_AT_END.search(before[-10:])
            number = float(found[0]) if found else 1.0
            if found:
                pieces[-1] = (before.removesuffix(found[0]), weight)
        else:
            depth = max(-MAX_PAIRS, min(MAX_PAIRS, opened["{"] - opened["["]))
            pieces.append((token, number * STRONGER**depth))
    return _joined(pieces)


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined


def _escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def _counts(value: object, wanted: object) -> bool:
    return value is wanted if wanted is not None else isinstance(value, (int, float)) and bool(value)


def _fields(data: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, str]:
    fields = {title: plain(data[key]) for key, title in _NUMBERS.items() if data.get(key) is not None}
    if "sampler" in data:
        fields["Sampler"] = _SAMPLERS.get(plain(data["sampler"]), plain(data["sampler"]))
    if "noise_schedule" in data:
        fields["Schedule type"] = _SCHEDULES.get(plain(data["noise_schedule"]), plain(data["noise_schedule"]))
    if "width" in data and "height" in data:
        fields["Size"] = f"{plain(data['width'])}x{plain(data['height'])}"
    if texts.get("Source"):
        fields["Model"] = texts["Source"]
    return {**fields, "Clip skip": "2", "ENSD": "31337"}
