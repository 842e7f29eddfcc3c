"""Other programs' recipes, as a person brings them: read, account for every key, write our settings or train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraloom.errors import OutputError, SettingsError
from loraloom.formats.files import write_text
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe

__all__ = ["Recipe", "check_recipe", "choose_recipe", "read_recipe", "write_settings"]


def choose_recipe(settings: Path | None, recipe: Path | None, lora: Path | None) -> Recipe | None:
    """The recipe that a run is to be trained by: another program's, or that of a LoRA file.

    None where neither is given; then the settings are those of the file ``settings``, or the usual ones. Raises
    SettingsError where more than one of the three is given.
    """
    given = [str(file) for file in (settings, recipe, lora) if file is not None]
    chosen = recipe or lora
    if chosen is not None and len(given) > 1:
        raise SettingsError([f"settings come from one file; these were given: {', '.join(given)}"], "name one of them")
    return None if chosen is None else read_recipe(chosen, only_lora=lora is not None)


def check_recipe(recipe: Recipe, overrides: Sequence[str] = ()) -> list[str]:
    """Required settings that neither the recipe nor the overrides give. SettingsError where one of the others is wrong.

    A person fills in the required ones later, so that their absence must not hide other mistakes.
    """
    missing = recipe.missing(overrides)
    recipe.finished([*overrides, *(f"{path}='.'" for path in missing)])
    return missing


def write_settings(recipe: Recipe, path: Path, overrides: Sequence[str] = ()) -> None:
    """Write a recipe as a settings file of ours. Raises OutputError where a file of that name exists."""
    if path.exists():
        raise OutputError(f"{path} exists already", "choose another name, or remove it first")
    write_text(path, recipe.to_toml(overrides))
