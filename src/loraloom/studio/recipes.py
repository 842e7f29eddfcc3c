"""Other programs' recipes, as a person brings them: read, account for every key, write our settings or train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraloom.errors import OutputError
from loraloom.formats.files import write_text
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe

__all__ = ["Recipe", "read_recipe", "write_settings"]


def write_settings(recipe: Recipe, path: Path, overrides: Sequence[str] = ()) -> None:
    """Write a recipe as a settings file of ours. Raises OutputError where a file of that name exists."""
    if path.exists():
        raise OutputError(f"{path} exists already", "choose another name, or remove it first")
    write_text(path, recipe.to_toml(overrides))
