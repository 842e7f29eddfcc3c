"""How a program's table is written: one row for each of its keys, and what reads a file by such rows.

A table is read from top to bottom, and so is a file: a row whose key the file does not have is passed over. Most rows
need no more than the words in them. Where a value has to be changed, or several keys make one setting, the row names
the function that does it. A function may take the keys of rows below it too, which then find nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.recipes.recipe import Item, Items, Recipe, is_nothing, listed

__all__ = [
    "Reading",
    "Row",
    "as_it_is",
    "by_key",
    "off",
    "says_nothing",
    "together",
    "unless",
    "without_setting",
]


@dataclass(frozen=True)
class Row:
    """What becomes of one key of another program."""

    key: str
    """As that program writes it."""
    ours: str = ""
    """The path of the setting that it is here; empty where there is none."""
    how: Callable[[Row, Any], None] = field(default=lambda row, reading: as_it_is(row, reading))
    """Takes the entry out of a :class:`Reading` and accounts for it in the recipe."""
    remark: str = ""
    """In words: why there is no setting, or what the value becomes where ``ours`` does not say it all."""
    always: bool = False
    """Whether the function has something to say even where the file lacks the key."""


@dataclass
class Reading:
    """A file while it is read: the recipe that it becomes, and the entries that nothing has accounted for yet."""

    recipe: Recipe
    left: Items

    def walk(self, rows: Iterable[Row]) -> None:
        """Let every row have its say, in the order of the table."""
        for row in rows:
            if row.always or row.key in self.left:
                row.how(row, self)

    def take(self, name: str) -> Item | None:
        """An entry, for which the caller accounts from here on; None where the file has none or it is taken already."""
        return self.left.pop(name, None)

    def value(self, name: str) -> Any:
        """What an entry that is still left says; None where it is not there or says nothing."""
        item = self.left.get(name)
        return None if item is None or is_nothing(item.value) else item.value

    def rest(self, *names: str) -> None:
        """Account for entries that have no effect."""
        for name in names:
            item = self.take(name)
            if item is not None:
                self.recipe.rest(item.key)

    def change(self, name: str, note: str) -> None:
        """Account for an entry that means something else here, or gives way to another one."""
        item = self.take(name)
        if item is not None:
            self.recipe.change(item.key, note)

    def skip(self, name: str, reason: str) -> None:
        """Account for an entry that is not carried over."""
        item = self.take(name)
        if item is not None:
            self.recipe.skip(item.key, reason)


def off(value: Any) -> bool:
    """Whether a value switches off what it belongs to: empty, false or zero, in whatever form a window saved it."""
    return is_nothing(value) or value is False or str(value).strip() in ("0", "0.0")


def by_key(rows: Iterable[Row]) -> Mapping[str, Row]:
    """A table as a dictionary."""
    return {row.key: row for row in rows}


# -- what most rows do ---------------------------------------------------------------------------------------------


def as_it_is(row: Row, reading: Reading) -> None:
    """The value is the setting's."""
    item = reading.left.pop(row.key)
    reading.recipe.set(row.ours, item.value, item.key)


def unless(*quiet: Any) -> Callable[[Row, Reading], None]:
    """The value is the setting's, except for these and empty ones, which say nothing."""

    def take(row: Row, reading: Reading) -> None:
        item = reading.left[row.key]
        if is_nothing(item.value) or item.value in quiet:
            reading.rest(row.key)
        else:
            as_it_is(row, reading)

    return take


def says_nothing(row: Row, reading: Reading) -> None:
    """Whatever the value is, nothing of what is learned depends on it."""
    reading.rest(row.key)


def together(how: Callable[[Row, Any], None], ours: str, *keys: str, remark: str = "") -> tuple[Row, ...]:
    """Rows of keys that make one setting. The function is called for the first that a file has, and takes them all."""
    return tuple(Row(key, ours, how, remark) for key in keys)


def without_setting(reason: str, keys: str, how: Callable[[Row, Any], None]) -> tuple[Row, ...]:
    """Rows of keys that become no setting, all for one reason."""
    return tuple(Row(key, "", how, reason) for key in listed(keys))
