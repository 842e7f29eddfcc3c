"""All settings of a run as its LoRA files record them: ``ss_loraloom_settings``.

sd-scripts' keys have no words for much of what can be set here. Reading it back is
:mod:`loraloom.recipes.record`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from loraloom.settings import Settings
from loraloom.training.settings import TrainSettings

__all__ = ["NOT_RECORDED", "RECORD", "file_name", "recorded_settings"]

RECORD = "ss_loraloom_settings"
NOT_RECORDED = frozenset(
    {"checkpoint", "output", "device", "dataset.folder", "dataset.cache_folder", "notify.url", "branched_from"}
)
"""Of one machine or private: never written, and not taken from a file that somebody else has made."""


def recorded_settings(settings: TrainSettings) -> str:
    """Every setting that differs from its default, by its path. Of files and folders the name, without the place."""
    return json.dumps(dict(_differing(settings)), ensure_ascii=False)


def file_name(path: Any) -> str:
    """The name of a file without the place, whichever system wrote it."""
    return PureWindowsPath(str(path)).name


def _differing(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in type(settings).model_fields.items():
        path, value = f"{prefix}{name}", getattr(settings, name)
        if path in NOT_RECORDED:
            continue
        if isinstance(value, Settings):
            yield from _differing(value, f"{path}.")
        elif value != field.get_default(call_default_factory=True):
            plain = _bare(value)
            yield path, [file_name(text) for text in plain] if path == "adapter.base_loras" else plain


def _bare(value: Any) -> Any:
    """As JSON has it, with the names of files instead of their paths."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Settings):
        return {key: _bare(getattr(value, key)) for key in value.chosen()}
    if isinstance(value, Mapping):
        return {key: _bare(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bare(entry) for entry in value]
    return value
