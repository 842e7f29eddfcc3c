"""All settings of a run in the metadata of its LoRA files, and back: ``ss_loraloom_settings``.

sd-scripts' keys have no words for much of what can be set here, so ``--like`` reads this one first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from loraloom.plain_data import shown
from loraloom.settings import Settings
from loraloom.training.recipes.recipe import Recipe, exists, field_rows
from loraloom.training.settings import TrainSettings

__all__ = ["RECORD", "recorded_settings", "take_record"]

RECORD = "ss_loraloom_settings"
_NOT_OF_THE_RECIPE = frozenset(
    {"checkpoint", "output", "device", "dataset.folder", "dataset.cache_folder", "notify.url", "branched_from"}
)
"""Of one machine or private: never written, and not taken from a file that somebody else has made."""


def recorded_settings(settings: TrainSettings) -> str:
    """Every setting that differs from its default, by its path. Of files and folders only the name, without the place.

    optimizer.lr is always there: its default depends on the optimizer.
    """
    found = dict(_differing(settings))
    found["optimizer.lr"] = settings.optimizer.lr
    return json.dumps(found, ensure_ascii=False)


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
        if path in _NOT_OF_THE_RECIPE:
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


def _differing(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in type(settings).model_fields.items():
        path, value = f"{prefix}{name}", getattr(settings, name)
        if path in _NOT_OF_THE_RECIPE:
            continue
        if isinstance(value, Settings):
            yield from _differing(value, f"{path}.")
        elif value != field.get_default(call_default_factory=True):
            plain = _bare(value)
            yield path, [_name(text) for text in plain] if path == "adapter.base_loras" else plain


def _bare(value: Any) -> Any:
    """As JSON has it, with the names of files instead of their paths."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Settings):
        return {key: _bare(getattr(value, key)) for key in value.model_fields_set}
    if isinstance(value, Mapping):
        return {key: _bare(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bare(entry) for entry in value]
    return value


def _name(path: Any) -> str:
    return PureWindowsPath(str(path)).name


def _is_path(path: str) -> bool:
    return field_rows()[path].type.split(" | ")[0] == "path"


def _take_files(path: str, value: Any, key: str, recipe: Recipe) -> None:
    """Files lie beside the LoRA, in the current folder, or nobody knows where."""
    from loraloom.adapters.settings import parse_base_lora

    names = [_name(entry) for entry in (value if isinstance(value, list) else [value])]
    places = []
    for name in names:
        try:
            file = parse_base_lora(name)[0].name if path == "adapter.base_loras" else name
        except ValueError:
            file = name
        folder = next((folder for folder in recipe.folders if file and exists(folder / file)), None)
        if folder is not None:
            places.append(str(folder / name))
    if len(places) == len(names):
        recipe.set(path, places if isinstance(value, list) else places[0], key)
    else:
        recipe.skip(key, f"it was {', '.join(names)}, which is not here: give {path}=...")
