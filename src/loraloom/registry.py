"""Named choices: light entries whose code is imported on first use, and plugins found by entry point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from loraloom.errors import PluginError, UnknownNameError

__all__ = ["Entry", "Registry"]


@dataclass(frozen=True)
class Entry:
    """One choice: where its code is (``"package.module:attribute"``) and one line for people."""

    target: str
    summary: str = ""

    def load(self) -> Any:
        """The object itself; imports its module."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


class Registry(Mapping[str, Entry]):
    """A table of named choices.

    ``kind`` is the word people read in errors ("sampler"). Installed packages add entries through the entry-point
    group ``loraloom.<kind>`` (blanks become underscores), behind the built-in ones, whose names they cannot take.
    ``plugins`` is the class of their entries.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, Entry],
        *,
        aliases: Mapping[str, str] | None = None,
        plugins: type[Entry] = Entry,
    ) -> None:
        self.kind = kind
        self._plugin_entry = plugins
        self._entries = dict(entries)
        self._aliases = dict(aliases or {})
        self._plugins: dict[str, Entry] | None = None

    def _all(self) -> dict[str, Entry]:
        if self._plugins is None:
            group = f"loraloom.{self.kind.replace(' ', '_')}"
            points = entry_points(group=group)
            self._plugins = {point.name: self._plugin_entry(point.value, "plugin") for point in points}
        return {**self._entries, **{name: entry for name, entry in self._plugins.items() if name not in self._entries}}

    def __getitem__(self, name: str) -> Entry:
        entries = self._all()
        name = self._aliases.get(name, name)
        if name not in entries:
            raise UnknownNameError(self.kind, name, entries)
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all() or name in self._aliases

    def load(self, name: str) -> Any:
        """Import and return the object behind ``name``. Raises UnknownNameError; PluginError for a broken plugin."""
        entry = self[name]
        if name in self._entries or name in self._aliases:
            return entry.load()

        try:
            return entry.load()
        except Exception as error:  # whatever another package's module raises
            raise PluginError(self.kind, name, entry.target) from error
