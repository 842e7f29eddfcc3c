"""What is particular about a run's settings: where they differ from the defaults, or from another run's."""

from __future__ import annotations

from typing import Any

from loraloom.settings import Settings, setting_rows
from loraloom.studio.results import to_record

__all__ = ["chosen_settings", "different_settings"]


def chosen_settings(settings: Settings) -> dict[str, Any]:
    """By dotted name the settings that differ from their default or have none, as plain data."""
    return {
        row.path: to_record(value)
        for row in setting_rows(type(settings))
        if "[]" not in row.path and ((value := _value(settings, row.path)) != row.default or row.required)
    }


def different_settings(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """By dotted name the settings that two runs have different values of, as plain data: (``one``'s, ``other``'s)."""
    names = [row.path for row in setting_rows(type(one)) if "[]" not in row.path]
    values = {name: (_value(one, name), _value(other, name)) for name in names}
    return {name: (to_record(mine), to_record(its)) for name, (mine, its) in values.items() if mine != its}


def _value(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value
