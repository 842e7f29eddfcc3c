"""sd-scripts' previews: how often, by which sampler, and their prompts in a file or in the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraloom.errors import FileError, UnknownNameError
from loraloom.plain_data import finite
from loraloom.reading import read_text
from loraloom.recipes.names import KOHYA_SAMPLERS
from loraloom.recipes.parsing import read_document
from loraloom.recipes.recipe import Item, Recipe, exists, is_nothing, resolved
from loraloom.recipes.rows import Reading, Row

__all__ = ["PREVIEWS"]

_PROMPT_OPTIONS = {
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "sample_steps": "s",
    "scale": "l",
    "sample_sampler": "ss",
}
_SIDE = 8
"""Sides of previews are multiples of it; sd-scripts rounds down to them."""
_NEAREST_SAMPLERS = {"dpmsolver": "DPM++ 2M", "dpmsingle": "DPM++ 2S a"}


def _take_sampler(row: Row, file: Reading) -> None:
    item = file.left.pop(row.key)
    name, note = _sampler(str(item.value))
    file.recipe.set(row.ours, name, item.key, note=note)


def _how_often(row: Row, file: Reading) -> None:
    """Epochs decide where both are given. The keys themselves are taken by their marks."""
    for name in ("sample_every_n_epochs", "sample_every_n_steps"):
        if name in file.left and finite(file.left[name].value) == 0:
            file.rest(name)
    epochs = file.left.get("sample_every_n_epochs")
    if epochs is not None:
        file.change("sample_every_n_steps", f"left out: {epochs.key} decides, as in sd-scripts")
    elif "sample_every_n_steps" in file.left:
        file.recipe.settings.setdefault("preview", {})["every_epochs"] = 0


def _prompts(row: Row, file: Reading) -> None:
    item, recipe = file.left.pop(row.key), file.recipe
    before = len(recipe.keys) + len(recipe.problems)
    found = _prompt_lines(item, recipe)
    lines = [_usable_prompt(line, item.key, recipe) for line in found or []]
    if lines:
        recipe.set("preview.prompts", lines, item.key)
        preview = recipe.settings["preview"]
        preview.setdefault("steps", 30)
        preview.setdefault("cfg_scale", 7.5)
        if "sample_at_first" not in file.left:
            preview.setdefault("at_start", False)
    elif len(recipe.keys) + len(recipe.problems) == before:
        recipe.rest(item.key)


def _prompt_lines(prompts: Item, recipe: Recipe) -> list[str] | None:
    """Prompts with options behind them, from a file or from the recipe itself. None: they were dealt with."""
    if isinstance(prompts.value, (list, tuple)):
        return [line for line in map(str, prompts.value) if line.strip()]
    text = str(prompts.value)
    suffix = Path(text.strip()).suffix.lower() if "\n" not in text else ""
    if suffix not in (".txt", ".toml", ".json"):
        return _lines_of(text)
    path = Path(resolved(text, recipe.folders))
    if exists(path) and path.is_file():
        return _lines_of_text_file(path, prompts, recipe) if suffix == ".txt" else _lines_of_data(path, prompts, recipe)
    if suffix == ".txt":
        recipe.set("preview.file", str(path), prompts.key)
    else:
        recipe.problem("preview.prompts", f"{prompts.key}: {path} does not exist")
    return None


def _lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _lines_of_text_file(path: Path, prompts: Item, recipe: Recipe) -> list[str] | None:
    try:
        return _lines_of(read_text(path))
    except FileError as error:
        recipe.problem("preview.prompts", f"{prompts.key}: {error.problem}")
        return None


def _lines_of_data(path: Path, prompts: Item, recipe: Recipe) -> list[str]:
    """A list of prompts, or a table of what is common to all with subsets of what is not."""
    data = read_document(path).data

    if isinstance(data, Mapping):
        common = data.get("prompt")
        common = common if isinstance(common, Mapping) else {}
        subsets = common.get("subset", [common])
        tables = subsets if isinstance(subsets, list) else []
        data = [{**common, **subset} for subset in tables if isinstance(subset, Mapping)]
    lines = data if isinstance(data, list) else []

    # A prompt that is silently missing would shift the seeds of all that follow.
    usable = [line for line in lines if isinstance(line, str) or (isinstance(line, Mapping) and line.get("prompt"))]
    if not usable or len(usable) < len(lines):
        recipe.problem("preview.prompts", f"{prompts.key}: {path} holds entries that are not prompts")
    return [line if isinstance(line, str) else _prompt_line(line) for line in usable]


def _prompt_line(entry: Mapping[str, Any]) -> str:
    options = [f"--{short} {entry[name]}" for name, short in _PROMPT_OPTIONS.items() if not is_nothing(entry.get(name))]
    return " ".join([str(entry.get("prompt", "")), *options])


def _usable_prompt(line: str, key: str, recipe: Recipe) -> str:
    """A line without the options that previews do not have, and with samplers by their names here."""
    prompt, *options = re.split(r"\s--(?=[A-Za-z]+(?:\s|$))", f" {line}")
    kept = [prompt.strip()]
    for option in options:
        name, _, value = option.partition(" ")
        name, value = name.lower(), value.strip()
        if name not in _PROMPT_OPTIONS.values():
            recipe.change(f"{key}: --{option.strip()}", "left out: previews have no such option")
            continue
        if name == "ss":
            value, note = _sampler(value)
            if note:
                recipe.change(f"{key}: --{option.strip()}", note)
        elif name in ("w", "h") and value.isdecimal() and len(value) < 10 and int(value) % _SIDE:
            value = str(max(_SIDE, int(value) // _SIDE * _SIDE))
        kept.append(f"--{name} {value}".strip())
    return " ".join(kept)


def _sampler(name: str) -> tuple[str, str]:
    """A sampler of previews by its name here, and a remark about it."""
    from loraloom.diffusion.samplers import resolve_sampler

    plain = name.strip().lower()
    if plain in KOHYA_SAMPLERS:
        return KOHYA_SAMPLERS[plain], ""
    if plain in _NEAREST_SAMPLERS:
        return _NEAREST_SAMPLERS[plain], f"{name} is not offered; {_NEAREST_SAMPLERS[plain]} is nearest"
    try:
        resolve_sampler(name)
    except UnknownNameError:
        return "DPM++ 2M", f"{name} is not offered; DPM++ 2M"
    return name, ""


PREVIEWS = (
    Row("sample_sampler", "preview.sampler", _take_sampler, "preview.sampler"),
    Row("sample_every_n_epochs", "preview.every_epochs", _how_often),
    Row("sample_every_n_steps", "preview.every_steps", _how_often),
    Row("sample_prompts", "preview.prompts", _prompts, "preview.prompts or preview.file"),
)
