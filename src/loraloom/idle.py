"""Settings that were set and change nothing: rows of a table, so that none is passed over in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loraloom.settings import Settings

__all__ = ["Row", "is_set", "told"]

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Row(Generic[Facts]):
    """When ``holds``, each of the ``paths`` that is set is named, with ``why`` behind it.

    A ``sentence`` takes the place of these, once; without ``paths`` it is given no matter what was set.
    """

    paths: tuple[str, ...]
    holds: Callable[[Facts], bool]
    why: str | Callable[[Facts], str] = ""
    sentence: str | Callable[[Facts], str] = ""
    settles: bool = False
    """Nothing more is reported about these paths."""


def told(rows: Iterable[Row[Facts]], settings: Settings, facts: Facts) -> list[str]:
    """One sentence for each setting that was set to no effect; ``facts``: what the rows are judged by."""
    said: list[str] = []
    settled: set[str] = set()
    for row in rows:
        paths = [path for path in row.paths if path not in settled and is_set(settings, path)]
        # A row without paths is about a combination, for which nothing need be set.
        if (row.paths and not paths) or not row.holds(facts):
            continue
        if row.sentence:
            said.append(_words(row.sentence, facts))
        else:
            said += [f"{path} {_words(row.why, facts)}" for path in paths]
        if row.settles:
            settled.update(row.paths)

    return list(dict.fromkeys(said))


def is_set(settings: Settings, path: str) -> bool:
    """Whether a setting differs from its default."""
    group: Any = settings
    *groups, name = path.split(".")
    for part in groups:
        group = getattr(group, part)
    default = type(group).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(group, name) != default)


def _words(words: str | Callable[[Facts], str], facts: Facts) -> str:
    return words if isinstance(words, str) else words(facts)
