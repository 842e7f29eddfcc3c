"""Which program wrote the texts: one row per program, and the first that fits counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loraloom.errors import FileFormatError
from loraloom.formats.image_info import Parameters, parse_parameters
from loraloom.formats.image_programs.comfy_ui import is_graph, read_comfy_ui
from loraloom.formats.image_programs.facts import json_object
from loraloom.formats.image_programs.fooocus import is_fooocus, read_fooocus
from loraloom.formats.image_programs.invoke_ai import read_dream, read_invoke_ai, read_sd_metadata
from loraloom.formats.image_programs.novel_ai import read_novel_ai
from loraloom.formats.image_programs.smaller import (
    is_draw_things,
    is_easy_diffusion,
    read_draw_things,
    read_easy_diffusion,
)
from loraloom.formats.image_programs.swarm_ui import read_swarm_ui
from loraloom.formats.image_texts import USER_COMMENT, image_texts

__all__ = ["PROGRAMS", "Program", "read_image", "read_text"]

Texts = Mapping[str, str]

_MAIN = ("parameters", USER_COMMENT, "comment", "Comment", "ImageDescription", "Model")
"""Texts in which programs keep what they write, the usual ones first. (``Model``: SwarmUI's first versions.)"""


@dataclass(frozen=True)
class Program:
    """``find``: the text that it wrote, or None; ``read`` gets that text and all the others."""

    title: str
    find: Callable[[Texts], str | None]
    read: Callable[[str, Texts], Parameters]


def _holding(mark: str) -> Callable[[Texts], str | None]:
    """The main text in which some words stand, also where it is damaged."""
    return lambda texts: next((texts[name] for name in _MAIN if mark in texts.get(name, "")), None)


def _with_json(is_its: Callable[[Mapping[str, object]], bool]) -> Callable[[Texts], str | None]:
    """The main text that is JSON of a kind."""
    return lambda texts: next((texts[name] for name in _MAIN if is_its(json_object(texts.get(name, "")))), None)


def _chunk(*names: str) -> Callable[[Texts], str | None]:
    return lambda texts: next((texts[name] for name in names if name in texts), None)


def _easy_diffusion(texts: Texts) -> str | None:
    return "its chunks" if is_easy_diffusion(texts) else _with_json(is_easy_diffusion)(texts)


def _web_ui(texts: Texts) -> str | None:
    return next((texts[name] for name in _MAIN if name in texts and parse_parameters(texts[name]).fields), None)


def _graph(texts: Texts) -> str | None:
    """The graph, also a damaged one; in WebP and JPEG it stands in a camera's fields, with its name in front."""
    bare = [text.removeprefix("prompt:").removeprefix("Prompt:") for text in texts.values()]
    whole = next((text for text in bare if is_graph(json_object(text))), None)
    damaged = next((text for text in bare if text.lstrip().startswith("{") and '"class_type"' in text), None)
    return whole or damaged or (texts.get("prompt") if "workflow" in texts else None)


PROGRAMS = (
    Program("SwarmUI", _holding('"sui_image_params"'), lambda text, _: read_swarm_ui(text)),
    Program("Fooocus", _with_json(is_fooocus), lambda text, _: read_fooocus(text)),
    Program(
        "NovelAI",
        lambda texts: texts.get("Comment", "{}") if texts.get("Software") == "NovelAI" else None,
        lambda _, texts: read_novel_ai(texts),
    ),
    Program("InvokeAI", _chunk("invokeai_metadata"), lambda text, _: read_invoke_ai(text)),
    Program("InvokeAI", _chunk("sd-metadata"), lambda text, _: read_sd_metadata(text)),
    Program("InvokeAI", _chunk("Dream", "dream"), lambda text, _: read_dream(text)),
    Program("Draw Things", _with_json(is_draw_things), lambda text, _: read_draw_things(text)),
    Program(
        "Easy Diffusion",
        _easy_diffusion,
        lambda text, texts: read_easy_diffusion(texts if is_easy_diffusion(texts) else json_object(text)),
    ),
    Program("", _web_ui, lambda text, _: parse_parameters(text)),
    Program("ComfyUI", _graph, lambda text, _: read_comfy_ui(text)),
)
"""The web UI's text comes before ComfyUI's graph: nodes that write it say more than the graph does."""

NAMED_ONLY = {
    "ComfyUI (its workflow without the graph that ran)": ("workflow", '"nodes"'),
    "Midjourney": ("Description", "Job ID:"),
    "DALL-E": ("Software", "DALL"),
    "Adobe Firefly": ("Software", "Firefly"),
    "Mochi Diffusion": ("ImageDescription", "Mochi Diffusion"),
}
"""Programs that are recognised by a word in a text, but say too little or in a form that is not read."""


def read_image(path: Path) -> Parameters | None:
    """How an image was made, whatever program wrote it; None where it says nothing (or is not an image).

    ``Parameters.program`` names those outside the web UI's family. A text that is not a list of parameters is a prompt.
    Raises MissingFileError, and FileFormatError for a program's text that is damaged or of a program that is known by
    name only.
    """
    texts = image_texts(path)
    try:
        return _read(texts)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error.problem}", error.hint) from error


def read_text(text: str) -> Parameters:
    """The same from the text alone, as people keep it in text files. FileFormatError as :func:`read_image`."""
    found = _read({"parameters": text})
    return Parameters() if found is None else found


def _read(texts: Texts) -> Parameters | None:
    for program in PROGRAMS:
        if (text := program.find(texts)) is not None:
            return replace(program.read(text, texts), program=program.title)
    for title, (name, mark) in NAMED_ONLY.items():
        if mark in texts.get(name, ""):
            raise FileFormatError(
                f"the image was made by {title}, whose settings are not read here", "give the settings yourself"
            )
    prompt = next((texts[name] for name in ("parameters", USER_COMMENT, "comment") if name in texts), None)
    if prompt is not None and json_object(prompt):
        raise FileFormatError(
            "the text inside is JSON of a program that is not known here", "give the settings yourself"
        )
    return None if prompt is None else parse_parameters(prompt)
