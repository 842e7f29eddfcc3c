"""Which programs read a file of which kind: what the kinds say of it, for the start of a run and for the docs.

The facts are from the source of the programs named, at the versions named; those about LyCORIS and diffusers are
tested against the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_kinds import ADAPTERS

__all__ = ["NO", "PROGRAMS", "Reading", "as_table", "reader_remark", "readings"]

PROGRAMS = ("AUTOMATIC1111", "Forge", "ComfyUI", "LyCORIS", "diffusers")
NO = "no"


@dataclass(frozen=True)
class Reading:
    """``title``: the kind as people choose it; ``by``: what each of :data:`PROGRAMS` makes of its file, "yes" first."""

    title: str
    by: tuple[str, str, str, str, str]
    setting: str = ""
    """The setting, besides the kind, that makes the difference."""

    @classmethod
    def by_none(cls, title: str) -> Reading:
        """No program but this one: so it is for a kind of another package that says nothing else."""
        return cls(title, (NO, NO, NO, NO, NO))

    @property
    def is_universal(self) -> bool:
        """Whether every program reads the file right."""
        return all(text.startswith("yes") for text in self.by)


def reader_remark(settings: AdapterSettings) -> str | None:
    """The sentence for the start of a run whose file not every program reads; None where all do."""
    kind: Any = ADAPTERS.load(settings.kind)
    reading = kind.reading(settings)
    if reading.is_universal:
        return None

    pairs = list(zip(PROGRAMS, reading.by, strict=True))
    able = [_with_reason(program, text, "yes") for program, text in pairs if text.startswith("yes")]
    unable = [_with_reason(program, text, NO) for program, text in pairs if not text.startswith("yes")]
    chosen = f", {reading.setting}" if reading.setting else ""
    return (
        f"adapter.kind={settings.kind}{chosen}: not every program reads the file. Not read right by "
        f"{'; '.join(unable)}. Read by {'; '.join(['Loraloom', *able])}"
    )


def _with_reason(program: str, text: str, answer: str) -> str:
    """``yes since 1.9`` as ``PROGRAM (since 1.9)``."""
    reason = text.removeprefix(answer).strip(" :,;()")
    return f"{program} ({reason})" if reason else program


def readings() -> Iterator[Reading]:
    """Who reads the files of every kind, one after another."""
    for name in ADAPTERS:
        kind: Any = ADAPTERS.load(name)
        if kind.stored_as() == name:
            yield from kind.readings


def as_table() -> str:
    """The table for the docs, in Markdown."""
    rows = [("kind", "Loraloom", *PROGRAMS), tuple("---" for _ in range(len(PROGRAMS) + 2))]
    rows += [(reading.title, "yes", *reading.by) for reading in readings()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
