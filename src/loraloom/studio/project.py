"""The run folder, which is the record of a run: ``settings.toml``, ``events.jsonl``, ``previews/``, ``weights/``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from loraloom.errors import OutputError
from loraloom.events import Event, from_record, to_record
from loraloom.formats.files import write_text
from loraloom.settings import Settings

__all__ = ["EventLog", "RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @classmethod
    def create(cls, output: Path, name: str, settings: Settings) -> RunFolder:
        """A new folder ``output/name`` (``name-2``, ``name-3`` when taken: no run overwrites another)."""
        path, number = output / name, 1
        try:
            output.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
                    path = output / f"{name}-{number}"
            for part in ("previews", "weights"):
                (path / part).mkdir()
        except OSError as error:
            raise OutputError(f"the run folder {path} cannot be made: {error.strerror}", "set output=FOLDER") from error
        write_text(path / "settings.toml", settings.to_toml())
        return cls(path)

    @property
    def events_path(self) -> Path:
        """One JSON event a line."""
        return self.path / "events.jsonl"

    def events(self) -> Iterator[Event]:
        """Every event recorded so far; a last line cut short by a crash is left out."""
        if not self.events_path.exists():
            return
        for line in self.events_path.read_text(encoding="utf-8").splitlines():
            try:
                yield from_record(json.loads(line))
            except (ValueError, KeyError):
                continue


class EventLog:
    """The listener that writes a run's events to its folder, each as soon as it happens."""

    def __init__(self, folder: RunFolder) -> None:
        self._file: TextIO = folder.events_path.open("a", encoding="utf-8", newline="\n")

    def __call__(self, event: Event) -> None:
        self._file.write(json.dumps(to_record(event), ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
