"""Settings that were set and change nothing: rows of a table, so that none is passed over in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loraloom.settings import Settings

__all__ = ["Remark", "Row", "is_set", "lifted", "remarks", "told"]

Facts = TypeVar("Facts")
Part = TypeVar("Part")


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
    about: tuple[str, ...] = ()
    """For a row without paths: the settings that its sentence is about, so that a form can show it beside them."""


@dataclass(frozen=True)
class Remark:
    """One sentence of a table, and the settings that it is about."""

    text: str
    paths: tuple[str, ...] = ()


def told(rows: Iterable[Row[Facts]], settings: Settings, facts: Facts) -> list[str]:
    """One sentence for each setting that was set to no effect; ``facts``: what the rows are judged by."""
    return list(dict.fromkeys(remark.text for remark in remarks(rows, settings, facts)))


def remarks(rows: Iterable[Row[Facts]], settings: Settings, facts: Facts, prefix: str = "") -> list[Remark]:
    """The same with the settings that each sentence is about; ``prefix``: the group that ``settings`` are in."""
    said: list[Remark] = []
    settled: set[str] = set()
    for row in rows:
        paths = [path for path in row.paths if path not in settled and is_set(settings, path)]
        # A row without paths is about a combination, for which nothing need be set.
        if (row.paths and not paths) or not row.holds(facts):
            continue
        if row.sentence:
            about = tuple(f"{prefix}{path}" for path in paths or row.about)
            said.append(Remark(_words(row.sentence, facts), about))
        else:
            said += [Remark(f"{path} {_words(row.why, facts)}", (f"{prefix}{path}",)) for path in paths]
        if row.settles:
            settled.update(row.paths)

    return list(dict.fromkeys(said))


def lifted(rows: Iterable[Row[Part]], part: Callable[[Facts], Part]) -> tuple[Row[Facts], ...]:
    """Rows that are judged by a part of the facts, as rows that are judged by all of them."""
    return tuple(_lifted(row, part) for row in rows)


def _lifted(row: Row[Part], part: Callable[[Facts], Part]) -> Row[Facts]:
    def of_part(words: str | Callable[[Part], str]) -> str | Callable[[Facts], str]:
        return words if isinstance(words, str) else lambda facts: words(part(facts))

    return Row(
        row.paths,
        lambda facts: row.holds(part(facts)),
        of_part(row.why),
        of_part(row.sentence),
        settles=row.settles,
        about=row.about,
    )


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
