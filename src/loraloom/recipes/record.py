"""Take over the settings that a run of this program recorded in its LoRA files, before any other key of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loraloom.plain_data import shown
from loraloom.recipes.recipe import Recipe, exists, field_rows
from loraloom.training.record import NOT_RECORDED, RECORD, file_name

__all__ = ["take_record"]


def take_record(text: str, recipe: Recipe) -> bool:
    """Take such a record over. False where it cannot be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, Mapping):
        recipe.change(RECORD, "cannot be read, so the other keys count")
        return False

    # Names come before the arguments that go with them.
    for path, value in sorted(found.items(), key=lambda entry: entry[0].endswith(".args")):
        key = f"{RECORD}: {path}"
        row = field_rows().get(path)
        if path in NOT_RECORDED:
            recipe.skip(key, "belongs to a machine, not to a recipe")
        elif row is None or "[]" in path:
            recipe.skip(key, "not known; a later version may have written it")
            recipe.unknown.append(key)
        elif path == "dataset.concepts" and isinstance(value, list):
            folders = [entry.get("folder") for entry in value if isinstance(entry, Mapping)]
            recipe.skip(key, f"list your own folders; theirs were {shown(folders)}")
        elif path == "adapter.base_loras" or _is_path(path):
            _take_files(path, value, key, recipe)
        else:
            recipe.set(path, value, key)
    return True


def _is_path(path: str) -> bool:
    return field_rows()[path].kinds[0] == "path"


def _take_files(path: str, value: Any, key: str, recipe: Recipe) -> None:
    """Files are beside the LoRA, in the current folder, or cannot be found."""
    from loraloom.adapters.settings import parse_base_lora

    names = [file_name(entry) for entry in (value if isinstance(value, list) else [value])]
    places = []
    # A LoRA with a weight is written name:weight; the file is what is looked for.
    for name in names:
        try:
            file = parse_base_lora(name)[0].name if path == "adapter.base_loras" else name
        except ValueError:
            file = name
        folder = next((folder for folder in recipe.folders if file and exists(folder / file)), None)
        if folder is not None:
            places.append(str(folder / name))

    # A list of which some are missing would be another recipe: all are there, or none is taken.
    if len(places) == len(names):
        recipe.set(path, places if isinstance(value, list) else places[0], key)
    else:
        recipe.skip(key, f"it was {', '.join(names)}, which is not here: give {path}=...")
