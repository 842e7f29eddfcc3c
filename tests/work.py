"""How much work something is, told in a way that no slow, busy or other machine changes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["HANGS_AFTER_S", "Count", "counted", "growth"]

HANGS_AFTER_S = 1500.0
"""How long a process of a test may take before it counts as hanging: never a bound on speed."""


@dataclass
class Count:
    """How many functions were entered and left, Python's own included."""

    calls: int = 0


@contextmanager
def counted() -> Iterator[Count]:
    """Counts the calls inside the block, also where the block raises."""
    count = Count()

    def seen(frame: FrameType, event: str, argument: object) -> None:
        count.calls += 1

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield count
    finally:
        sys.setprofile(before)


_MEASURED_NS = 40_000_000
"""Some systems count processor time in ticks of 10 to 16 ms: what takes less is repeated until it takes this long."""


def growth(function: Callable[[str], Any], small: str, large: str, *, tries: int = 5) -> float:
    """How many times as long ``function`` works at ``large`` as at ``small``: the best of several tries of each.

    A ratio within one run, of processor time, with the garbage collector at rest: for work inside regular expressions,
    which calls do not count. Eight times the text takes about 8 times as long where work grows with the text, and 64
    times where it grows with its square.
    """

    def took_ns(text: str, rounds: int) -> int:
        gc.disable()
        began = time.process_time_ns()
        for _ in range(rounds):
            function(text)
        taken = time.process_time_ns() - began
        gc.enable()
        return taken

    def best(text: str) -> float:
        rounds = 1
        while (first := took_ns(text, rounds)) < _MEASURED_NS:
            rounds *= 2
        return min(first, *(took_ns(text, rounds) for _ in range(tries - 1))) / rounds

    return best(large) / best(small)
