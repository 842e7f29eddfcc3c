"""One thing about a dataset that a person should know."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraloom.plain_text import one_line

__all__ = ["Problem", "Severity", "normal_name", "readable", "worst_first"]

Severity = Literal["error", "warning", "info"]
_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Problem:
    """``error``: a picture or caption that could not be used; ``warning``: used, but probably not as meant;
    ``info``: a choice made for the person. ``kind`` is one word per sort of problem, for grouping."""

    severity: Severity
    kind: str
    path: Path
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{readable(self.path)}: {self.problem}"
        return f"{text} ({self.hint})" if self.hint else text


def worst_first(problems: Iterable[Problem]) -> list[Problem]:
    """Errors, then warnings, then infos; the same kinds together, else in the order given."""
    problems = list(problems)
    seen = {kind: index for index, kind in enumerate(dict.fromkeys(problem.kind for problem in problems))}
    return sorted(problems, key=lambda problem: (_ORDER[problem.severity], seen[problem.kind]))


def readable(path: Path | str) -> str:
    """The path as text that every terminal and JSON file can hold: no control characters, no undecodable bytes."""
    return one_line(str(path))


def normal_name(path: Path | str) -> str:
    """A file name in Unicode's composed form, as text that can be encoded: the same on every file system."""
    text = path if isinstance(path, str) else path.as_posix()
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)
