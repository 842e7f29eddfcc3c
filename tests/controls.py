"""Controls for tests of work that can be left: what they wish is a matter of how often they were asked."""

from __future__ import annotations

import itertools
from pathlib import Path

from loraloom.control import Control, Request

__all__ = ["Asked", "asked_to_stop_at", "unfinished"]


class Asked:
    """A control that passes on its wishes one by one, the last one for ever, and counts how often it was asked."""

    def __init__(self, *wishes: Request) -> None:
        self._wishes = itertools.chain(wishes, itertools.repeat(wishes[-1]))
        self.times = 0

    def __call__(self) -> Request:
        self.times += 1
        return next(self._wishes)


def asked_to_stop_at(question: int) -> Control:
    """A control that pauses once at the first question and wishes a stop at this one (from 2 on)."""
    return Asked(Request.PAUSE, *[Request.GO] * (question - 2), Request.STOP)


def unfinished(folder: Path) -> list[str]:
    """Names of what should not be left anywhere below a folder."""
    return sorted(path.name for path in folder.rglob(".tmp-*"))
