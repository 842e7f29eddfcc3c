"""``--like``: the settings of an image that exists already, from the text inside it or from a text file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraloom.errors import FileFormatError, LoraloomError, PromptError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import content_hash
from loraloom.formats.image_info import parse_parameters, read_parameters
from loraloom.formats.tensors import open_tensors
from loraloom.generation.loras import find_lora, lora_files
from loraloom.generation.prompts import extract_loras
from loraloom.generation.recall import Recalled, recall
from loraloom.reading import read_text

__all__ = ["settings_like"]

_LARGEST_TEXT = 1 << 20


def settings_like(path: Path, lora_folders: Sequence[Path], *, listener: Listener = ignore) -> Recalled:
    """Settings that make the image again. What is not as it was is told as a warning.

    A LoRA that is not there under its name is looked for by its hash in ``lora_folders``. Raises MissingFileError, and
    FileFormatError for a file that says nothing of how it was made.
    """
    recalled = recall(parse_parameters(_text(path)))
    for remark in recalled.remarks:
        listener(Notice(f"{path.name}: {remark}", "warning"))
    settings: dict[str, Any] = dict(recalled.settings)
    for name in ("prompt", "negative_prompt", "hires_prompt"):
        if settings.get(name):
            settings[name] = _with_found_loras(settings[name], recalled, lora_folders, listener)
    return Recalled(settings, recalled.remarks, recalled.model_hash, recalled.model, recalled.lora_hashes)


def _text(path: Path) -> str:
    if path.suffix.lower() == ".txt":
        return read_text(path, limit=_LARGEST_TEXT)
    text = read_parameters(path)
    if text is None:
        raise FileFormatError(
            f"{path} says nothing of how it was made",
            "only images with their parameters inside (PNG, JPEG, WebP of Loraloom or the web UI) can be repeated",
        )
    if not parse_parameters(text).fields:
        raise FileFormatError(
            f"{path}: the text inside is no list of parameters: {text[:60]!r}",
            "give the prompt and the settings yourself",
        )
    return text


def _with_found_loras(prompt: str, recalled: Recalled, folders: Sequence[Path], listener: Listener) -> str:
    """The prompt with every LoRA tag naming a file that is there, where its hash finds one."""
    for tag in extract_loras(prompt)[1]:
        try:
            find_lora(tag.name, folders)
            continue
        except PromptError:
            digits = recalled.lora_hashes.get(tag.name)
        found = _by_hash(digits, folders) if digits else None
        if found is not None:
            listener(Notice(f"the LoRA {tag.name} is {found} here, known by its hash"))
            tagged = re.compile(r"(<(?:lora|lyco):\s*)" + re.escape(tag.name) + r"(\s*[:>])")
            prompt = tagged.sub(lambda match, path=found: f"{match[1]}{path}{match[2]}", prompt)  # type: ignore[misc]
    return prompt


def _by_hash(digits: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        for path in lora_files(folder):
            try:
                with open_tensors(path) as tensors:
                    stored = tensors.metadata.get("sshs_model_hash", "")
                known = stored if len(stored) == 64 else content_hash(path)
            except LoraloomError:
                continue  # a broken file is not the one that is looked for
            if known.startswith(digits):
                return path
    return None
